/*
 * Matrix rows for aarch64 (Advanced SIMD).
 *
 * Layout: rows in blocks of sixteen, the rest in blocks of eight, of which the last
 * one is filled up with rows of zeros; columns padded to 8. A block is its biases,
 * its weights, its multipliers. Weights go column by column:
 *   int8  a byte for each row
 *   int4  a byte for each row of the upper half and the one half a block below it:
 *         16 lower + upper, a signed number; the upper one's bias stands likewise for
 *         16 times the lower one's and its own
 *
 * The core runs edgetqs_neon_rows.S; here is the same in C, weight by weight, for a
 * host and its sanitizers.
 */
#include "edgetqs_rt.h"

#if !defined(__aarch64__)

/* The lower of two rows in a byte. */
static int32_t lower_of(int8_t both)
{
    return (both + 128 + 8) / 16 - 8;
}

static int32_t weight(const int8_t *column, unsigned row, unsigned half, unsigned width)
{
    if (width == 8u) {
        return column[row];
    }
    int8_t both = column[row % half];
    return row < half ? both - 16 * lower_of(both) : lower_of(both);
}

static uint32_t rows(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add, unsigned width)
{
    const unsigned columns = (m->columns + 7u) & ~7u;
    const uint32_t *bias = m->stored;
    uint32_t clipped = 0;
    for (unsigned row = 0; row < m->rows;) {
        const unsigned left = m->rows - row;
        const unsigned size = left < 16u ? 8u : 16u;
        const unsigned bytes = size * width / 8u; /* a column */
        const uint32_t *stored = bias + (m->biased ? size : 0u);
        const uint32_t *multiplier = stored + columns * bytes / 4u;
        for (unsigned k = 0; k < size && k < left; ++k) {
            uint32_t start = m->biased ? bias[k] : 0u;
            if (m->biased && width == 4u && k < size / 2u) {
                start -= 16u * bias[k + size / 2u];
            }
            const int8_t *column = (const void *)stored;
            int32_t sum = (int32_t)start;
            for (unsigned j = 0; j < columns; ++j) {
                sum += weight(column, k, size / 2u, width) * x[j];
                column += bytes;
            }
            clipped |= edgetqs_store(&y[row + k], edgetqs_requantize(sum, multiplier[k]), add);
        }
        bias = multiplier + size;
        row += size;
    }
    return clipped;
}

uint32_t edgetqs_rows8_neon(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add)
{
    return rows(m, x, y, add, 8);
}

uint32_t edgetqs_rows4_neon(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add)
{
    return rows(m, x, y, add, 4);
}

#endif
