/*
 * Matrix rows for cores with Helium (Cortex-M55).
 *
 * Layout: rows in blocks of eight; what is left over is one more block. A block is
 * its biases, its weights, its multipliers.
 * In a block of eight the weights are groups of eight columns, row after row:
 *   int8  a byte for each column
 *   int4  a byte for each column of two rows r0 and r1: 16 r1 + r0, a signed number;
 *         the bias of r0 stands likewise for 16 times that of r1 and its own
 * Up to 4 (int8) or 3 (int4) columns behind the groups follow one by one: bytes
 * of rows 0 2 4 6 1 3 5 7, or of the pairs of rows. More are padded to a group.
 * In the block that is left over all columns are padded to groups, and its rows
 * or pairs of rows follow each other; an odd row has bytes as at int8.
 *
 * The cores run edgetqs_mve_rows.S; here is the same in C, weight by weight, for
 * a host and its sanitizers.
 */
#include "edgetqs_rt.h"

#include <stddef.h>

#if defined(__ARM_FEATURE_MVE)

/* Read by edgetqs_mve_cells.S: about 65536 * sigmoid(i / 24) - 32768; the last entry stands twice. */
extern const int16_t edgetqs_mve_table[257];
const int16_t edgetqs_mve_table[257] = {
#include "sigmoid_table.inc"
};

#else

#define BLOCK 8u

/* How a block's weights are stored. */
typedef struct {
    const int8_t *w;
    unsigned rows;
    unsigned groups; /* of eight columns */
    unsigned tail;   /* columns behind them */
} block;

/* The upper of two rows in a byte. */
static int32_t upper(int8_t both)
{
    return (both + 128 + 8) / 16 - 8;
}

static int32_t weight8(const block *b, unsigned row, unsigned column)
{
    static const unsigned place[8] = {0, 4, 1, 5, 2, 6, 3, 7};
    unsigned group = column / 8u;
    if (group >= b->groups) {
        return b->w[column * BLOCK + place[row]];
    }
    unsigned index = b->rows < BLOCK ? row * b->groups + group : group * BLOCK + row;
    return b->w[index * 8u + column % 8u];
}

static int32_t weight4(const block *b, unsigned row, unsigned column)
{
    unsigned group = column / 8u;
    unsigned pair = row / 2u;
    unsigned index = b->rows < BLOCK ? pair * b->groups + group : group * (BLOCK / 2u) + pair;
    int8_t both = group < b->groups ? b->w[index * 8u + column % 8u] : b->w[column * (BLOCK / 2u) + pair];
    if (row == b->rows - 1u && row % 2u == 0u) {
        return both;
    }
    return row % 2u == 0u ? both - 16 * upper(both) : upper(both);
}

static uint32_t rows(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add, unsigned width)
{
    const uint32_t *bias = m->stored;
    uint32_t clipped = 0;
    for (unsigned row = 0; row < m->rows; row += BLOCK) {
        unsigned left = m->rows - row;
        block b = {NULL, left < BLOCK ? left : BLOCK, m->columns / 8u, m->columns % 8u};
        if (b.rows < BLOCK || b.tail > (width == 8u ? 4u : 3u)) {
            b.groups += b.tail > 0u;
            b.tail = 0;
        }
        const uint32_t *w = bias + (m->biased ? b.rows : 0u);
        b.w = (const void *)w;
        unsigned bytes = (width == 8u ? b.rows : (b.rows + 1u) / 2u) * (b.groups * 8u + b.tail);
        const uint32_t *multiplier = w + bytes / 4u;
        for (unsigned k = 0; k < b.rows; ++k) {
            uint32_t start = m->biased ? bias[k] : 0u;
            if (m->biased && width == 4u && b.rows == BLOCK && k % 2u == 0u) {
                start -= 16u * bias[k + 1u];
            }
            int32_t sum = (int32_t)start;
            for (unsigned column = 0; column < m->columns; ++column) {
                sum += (width == 8u ? weight8(&b, k, column) : weight4(&b, k, column)) * x[column];
            }
            clipped |= edgetqs_store(&y[row + k], edgetqs_requantize(sum, multiplier[k]), add);
        }
        bias = multiplier + b.rows;
    }
    return clipped;
}

uint32_t edgetqs_rows8_mve(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add)
{
    return rows(m, x, y, add, 8);
}

uint32_t edgetqs_rows4_mve(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add)
{
    return rows(m, x, y, add, 4);
}

#endif
