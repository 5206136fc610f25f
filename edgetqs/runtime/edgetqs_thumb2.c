/*
 * Matrix rows for ARMv7-M without the DSP extension (Cortex-M3).
 *
 * Layout: rows in blocks of four, what is left over in blocks of one. A block is
 * its weights, its biases, its multipliers. In a block of four, whose columns are
 * padded to a multiple of 4:
 *   int8  a word for each column, a byte for each row
 *   int4  a word for two columns c0 and c1 of rows r0 to r3, in nibbles, from the
 *         lowest on: c0 r0, c0 r3, c0 r2, c1 r1, c1 r0, c1 r3, c1 r2, c0 r1, so that
 *         word & 0xF000000F is c0 r0 + 2^28 c0 r1: a long product makes two sums,
 *         2^28 apart; rotated by 8, 16 and 24 it gives the others. The lower of
 *         two rows holds value + 8.
 * In a block of one, padded to 4 columns, weights of either width are bytes, column
 * by column.
 *
 * The core runs edgetqs_thumb2_rows.S; here is the same in C, weight by weight,
 * for a host and its sanitizers.
 */
#include "edgetqs_blocks.h"

#if !defined(__ARM_ARCH_7M__)

static int32_t block8(const uint32_t *w, unsigned row, unsigned column)
{
    return edgetqs_field(w, 4u * column + row, 8);
}

static int32_t block4(const uint32_t *w, unsigned row, unsigned column)
{
    static const unsigned place[2][4] = {{0, 7, 2, 1}, {4, 3, 6, 5}};
    unsigned index = column / 2u * 8u + place[column % 2u][row];
    return row % 2u == 0u ? edgetqs_offset_field(w, index, 4) : edgetqs_field(w, index, 4);
}

static int32_t one8(const uint32_t *w, unsigned row, unsigned column)
{
    return edgetqs_field(w, row + column, 8);
}

uint32_t edgetqs_rows8_thumb2(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add)
{
    static const edgetqs_blocks four = {4, 8, 4, block8};
    static const edgetqs_blocks one = {1, 8, 4, one8};
    return edgetqs_rows_in_blocks(m, x, y, add, &four, &one);
}

uint32_t edgetqs_rows4_thumb2(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add)
{
    static const edgetqs_blocks four = {4, 4, 4, block4};
    static const edgetqs_blocks one = {1, 8, 4, one8};
    return edgetqs_rows_in_blocks(m, x, y, add, &four, &one);
}

#endif
