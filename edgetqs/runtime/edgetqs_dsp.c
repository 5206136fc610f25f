/*
 * Matrix rows for cores with the DSP extension (Cortex-M4, M7, M33 ...): two
 * products an SMLAD or SMLALD.
 *
 * Layout: rows in blocks of four, what is left over in blocks of one. A block is
 * its weights, its biases, its multipliers. In a block of four, whose columns are
 * padded to a multiple of 4, a word stands for two columns and each of its halves
 * holds one column of several rows r0, r1 ... as one signed number:
 *   int8  256 r1 + r0; one word for rows 0 and 1, one for rows 2 and 3
 *   int4  4096 r3 + 256 (r2 + 8) + 16 (r1 + 8) + (r0 + 8)
 * so that the sums of whole halves and of their low parts tell the rows apart:
 * three or seven instructions for four or eight products, where taking the rows
 * apart first costs four or eight.
 * In a block of one (padded to 4 columns at int8, 8 at int4):
 *   int8  bytes c0 c2 c1 c3, so that SXTB16 gives (c0, c1) and, rotated, (c2, c3)
 *   int4  value + 8 in nibbles c0 c2 c4 c6 c1 c3 c5 c7, so that
 *         (word >> 4k) & 0x000F000F gives (c2k, c2k+1)
 * The sum of x takes off the 8s, once a vector. x is read as pairs of int16, up
 * to the padded length.
 *
 * The cores run edgetqs_dsp_rows.S; here is the same in C, weight by weight, for
 * a host and its sanitizers.
 */
#include "edgetqs_rt.h"

#if !defined(__ARM_FEATURE_DSP)

/* The weight of one row of four and one column of two in a word of a block. */
static int32_t weight8(uint32_t word, unsigned row, unsigned column)
{
    int32_t half = (int16_t)(word >> (16u * column) & 0xFFFFu);
    int32_t low = (int8_t)(half & 0xFF);
    return row % 2u == 0u ? low : (half - low) / 256;
}

static int32_t weight4(uint32_t word, unsigned row, unsigned column)
{
    int32_t nibble = (int32_t)(word >> (16u * column + 4u * row) & 15u);
    return row < 3u ? nibble - 8 : (nibble ^ 8) - 8;
}

/* The sum, with its bias, becomes a value of y; what follows it in the stored words. */
static const uint32_t *finish(const edgetqs_rows *m, const uint32_t *w, const int32_t *sums, unsigned count, int16_t *y,
                              bool add, uint32_t *clipped)
{
    const uint32_t *multiplier = w + (m->biased ? count : 0u);
    for (unsigned k = 0; k < count; ++k) {
        int32_t bias = m->biased ? (int32_t)w[k] : 0;
        *clipped |= edgetqs_store(&y[k], edgetqs_requantize(sums[k] + bias, multiplier[k]), add);
    }
    return multiplier + count;
}

uint32_t edgetqs_rows8_dsp(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add)
{
    static const unsigned place[4] = {0, 2, 1, 3};
    const uint32_t *w = m->stored;
    const unsigned columns = (m->columns + 3u) & ~3u;
    uint32_t clipped = 0;
    unsigned row = 0;
    for (; row + 4u <= m->rows; row += 4u) {
        int32_t sums[4] = {0};
        for (unsigned column = 0; column < columns; column += 2u) {
            for (unsigned k = 0; k < 4u; ++k) {
                sums[k] += weight8(w[k / 2u], k, 0) * x[column] + weight8(w[k / 2u], k, 1) * x[column + 1u];
            }
            w += 2;
        }
        w = finish(m, w, sums, 4, y + row, add, &clipped);
    }
    for (; row < m->rows; ++row) {
        int32_t sum = 0;
        for (unsigned column = 0; column < columns; ++column) {
            sum += (int8_t)(w[column / 4u] >> (8u * place[column % 4u]) & 0xFFu) * x[column];
        }
        w = finish(m, w + columns / 4u, &sum, 1, y + row, add, &clipped);
    }
    return clipped;
}

uint32_t edgetqs_rows4_dsp(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add)
{
    const uint32_t *w = m->stored;
    uint32_t clipped = 0;
    unsigned row = 0;
    for (; row + 4u <= m->rows; row += 4u) {
        int32_t sums[4] = {0};
        for (unsigned column = 0; column < ((m->columns + 3u) & ~3u); column += 2u) {
            for (unsigned k = 0; k < 4u; ++k) {
                sums[k] += weight4(*w, k, 0) * x[column] + weight4(*w, k, 1) * x[column + 1u];
            }
            ++w;
        }
        w = finish(m, w, sums, 4, y + row, add, &clipped);
    }
    for (; row < m->rows; ++row) {
        int32_t sum = 0;
        for (unsigned column = 0; column < ((m->columns + 7u) & ~7u); ++column) {
            unsigned place = column % 8u / 2u + 4u * (column % 2u);
            sum += ((int32_t)(w[column / 8u] >> (4u * place) & 15u) - 8) * x[column];
        }
        w = finish(m, w + (m->columns + 7u) / 8u, &sum, 1, y + row, add, &clipped);
    }
    return clipped;
}

#else

typedef int edgetqs_not_empty;

#endif
