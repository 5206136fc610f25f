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
 * In a block of one, padded to 4 columns, weights of either width are bytes in the
 * order c0 c2 c1 c3, so that SXTB16 gives (c0, c1) and, rotated, (c2, c3).
 * The sum of x takes off the 8s, once a vector. x is read as pairs of int16, up
 * to the padded length.
 *
 * The cores run edgetqs_dsp_rows.S; here is the same in C, weight by weight, for
 * a host and its sanitizers.
 */
#include "edgetqs_blocks.h"

#if !defined(__ARM_FEATURE_DSP)

/* Halves are numbered column by column, or pair of rows by pair of rows within two columns. */
static int32_t block8(const uint32_t *w, unsigned row, unsigned column)
{
    int32_t half = edgetqs_field(w, column / 2u * 4u + row / 2u * 2u + column % 2u, 16);
    int32_t low = (int8_t)(half & 0xFF);
    return row % 2u == 0u ? low : (half - low) / 256;
}

static int32_t block4(const uint32_t *w, unsigned row, unsigned column)
{
    return row < 3u ? edgetqs_offset_field(w, 4u * column + row, 4) : edgetqs_field(w, 4u * column + row, 4);
}

static int32_t one8(const uint32_t *w, unsigned row, unsigned column)
{
    static const unsigned place[4] = {0, 2, 1, 3};
    return edgetqs_field(w, row + column / 4u * 4u + place[column % 4u], 8);
}

uint32_t edgetqs_rows8_dsp(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add)
{
    static const edgetqs_blocks four = {4, 8, 4, block8};
    static const edgetqs_blocks one = {1, 8, 4, one8};
    return edgetqs_rows_in_blocks(m, x, y, add, &four, &one);
}

uint32_t edgetqs_rows4_dsp(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add)
{
    static const edgetqs_blocks four = {4, 4, 4, block4};
    static const edgetqs_blocks one = {1, 8, 4, one8};
    return edgetqs_rows_in_blocks(m, x, y, add, &four, &one);
}

#endif
