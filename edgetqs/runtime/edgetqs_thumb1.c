/*
 * Matrix rows for ARMv6-M (Cortex-M0, M0+, M1).
 *
 * Layout: rows in blocks of eight, what is left over in blocks of one. A block is
 * its weights, its biases, its multipliers. In a block of eight, whose columns are
 * padded to a multiple of 4:
 *   int8  two words for each column, of rows 0 to 3 and 4 to 7, a byte for each row,
 *         the first in the lowest; value + 128 but for the highest, which is signed
 *   int4  a word for each column, a nibble for each row in the same way; value + 8
 *         but for the highest, which is signed; behind them a word of 0, which ends
 *         the loop: the lowest nibble of any other word is not 0
 * The whole word, shifted right by one row after the other, is multiplied with x:
 * the sum of one row, less that of the next one times 256 or 16, is its own. All that
 * is exact modulo 2^32, and what is left in the end fits an int32. The sum of x takes
 * off the offsets, once a vector. Biases are stored as such sums.
 * In a block of one:
 *   int8  four columns in a word
 *   int4  eight columns in a word, the first in the highest nibble, value + 8; columns
 *         are padded to a multiple of 4, and there is 0 behind them; then a word of 0
 * A multiplier is stored as m << 16 | n - 15, the factor being m / 2^n, m below 2^15
 * and n at least 16.
 *
 * The core runs edgetqs_thumb1_rows.S; here is the same in C, weight by weight, for a
 * host and its sanitizers.
 */
#include "edgetqs_rt.h"

#if defined(__ARM_ARCH_6M__)

/* As in edgetqs_cells.c, for edgetqs_thumb1_cells.S. */
extern const int16_t edgetqs_thumb1_table[257];
const int16_t edgetqs_thumb1_table[257] = {
#include "sigmoid_table.inc"
};

#else

/* Bits of the words at w as a number, without the offset of half its range if it has one. */
static int32_t field(const uint32_t *w, unsigned index, unsigned width, bool offset)
{
    int32_t range = (int32_t)1 << width;
    int32_t value = (int32_t)(w[index * width / 32u] >> (index * width % 32u) & ((uint32_t)range - 1u));
    return offset ? value - range / 2 : value < range / 2 ? value : value - range;
}

/* A weight of a block of so many rows. */
static int32_t weight(const uint32_t *w, unsigned rows, unsigned width, unsigned row, unsigned column)
{
    if (rows == 8u) {
        return field(w, 8u * column + row, width, (row + 1u) * width % 32u != 0u);
    }
    return width == 8u ? field(w, column, 8, false) : field(w, column ^ 7u, 4, true);
}

static uint32_t rows_of_width(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add, unsigned width)
{
    const uint32_t *w = m->stored;
    unsigned columns = (m->columns + 3u) / 4u * 4u;
    uint32_t clipped = 0;
    for (unsigned row = 0; row < m->rows;) {
        unsigned rows = m->rows - row >= 8u ? 8u : 1u;
        const uint32_t *bias = w + (rows * columns * width + 31u) / 32u + (width == 4u ? 1u : 0u);
        const uint32_t *multiplier = bias + (m->biased ? rows : 0u);
        for (unsigned k = 0; k < rows; ++k) {
            int32_t sum = 0;
            if (m->biased) {
                bool highest = rows == 1u || (k + 1u) * width % 32u == 0u;
                sum = (int32_t)(bias[k] - (highest ? 0u : bias[k + 1u] << width));
            }
            for (unsigned column = 0; column < columns; ++column) {
                sum += weight(w, rows, width, k, column) * x[column];
            }
            uint32_t factor = (multiplier[k] >> 16) << (17u - (multiplier[k] & 0xFFu));
            clipped |= edgetqs_store(&y[row + k], edgetqs_requantize(sum, factor), add);
        }
        w = multiplier + rows;
        row += rows;
    }
    return clipped;
}

uint32_t edgetqs_rows8_thumb1(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add)
{
    return rows_of_width(m, x, y, add, 8);
}

uint32_t edgetqs_rows4_thumb1(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add)
{
    return rows_of_width(m, x, y, add, 4);
}

#endif
