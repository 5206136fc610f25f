/*
 * Rows that are stored in blocks, weight by weight: how a layout whose cores run
 * assembly is written down in C, for a host and its sanitizers.
 */
#ifndef EDGETQS_BLOCKS_H
#define EDGETQS_BLOCKS_H

#include "edgetqs_rt.h"

/* How blocks of some number of rows are stored. */
typedef struct {
    unsigned rows;
    unsigned width;  /* of a weight, in bits */
    unsigned padded; /* columns are padded to a multiple of this */
    int32_t (*weight)(const uint32_t *w, unsigned row, unsigned column); /* of the block that begins at w */
} edgetqs_blocks;

/* All rows of m: blocks as large as many until fewer rows are left, then blocks as large as few. */
static inline uint32_t edgetqs_rows_in_blocks(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add,
                                              const edgetqs_blocks *many, const edgetqs_blocks *few)
{
    const uint32_t *w = m->stored;
    uint32_t clipped = 0;
    for (unsigned row = 0; row < m->rows;) {
        const edgetqs_blocks *block = m->rows - row >= many->rows ? many : few;
        unsigned columns = (m->columns + block->padded - 1u) / block->padded * block->padded;
        const uint32_t *bias = w + (block->rows * columns * block->width + 31u) / 32u;
        const uint32_t *multiplier = bias + (m->biased ? block->rows : 0u);
        for (unsigned k = 0; k < block->rows; ++k) {
            int32_t sum = m->biased ? (int32_t)bias[k] : 0;
            for (unsigned column = 0; column < columns; ++column) {
                sum += block->weight(w, k, column) * x[column];
            }
            clipped |= edgetqs_store(&y[row + k], edgetqs_requantize(sum, multiplier[k]), add);
        }
        w = multiplier + block->rows;
        row += block->rows;
    }
    return clipped;
}

/* Field number index of w, a signed number of width bits, and one that is stored with half its range added. */
static inline int32_t edgetqs_field(const uint32_t *w, unsigned index, unsigned width)
{
    uint32_t half = 1u << (width - 1u);
    uint32_t field = w[index * width / 32u] >> (index * width % 32u) & (2u * half - 1u);
    return (int32_t)(field ^ half) - (int32_t)half;
}

static inline int32_t edgetqs_offset_field(const uint32_t *w, unsigned index, unsigned width)
{
    uint32_t half = 1u << (width - 1u);
    return (int32_t)(w[index * width / 32u] >> (index * width % 32u) & (2u * half - 1u)) - (int32_t)half;
}

#endif
