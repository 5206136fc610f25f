/*
 * Matrix rows for aarch64 (Advanced SIMD).
 *
 * Layout: blocks of eight rows, the last one filled up with rows of zeros, columns
 * padded to 8. A block is its weights, its biases, its multipliers. Weights go
 * column by column:
 *   int8  a byte for each row
 *   int4  a byte for each of rows 0 to 3 with the row four below it: 16 lower + upper,
 *         a signed number, which is summed whole and, rounded to the lower row, again
 * so that a column's weights, widened, are multiplied with one lane of x.
 */
#include "edgetqs_simd.h"

#define BLOCK 8u

/* Sums of rows 0 to 3 and of rows 4 to 7. */
typedef struct {
    ulanes32 upper;
    ulanes32 lower;
} sums;

#if defined(EDGETQS_NEON)

/* A row a lane: what low or high half of w holds times one lane of x. */
#define ADD_LOW(sum, w, x, lane) ((ulanes32)vmlal_laneq_s16((int32x4_t)(sum), vget_low_s16(w), x, lane))
#define ADD_HIGH(sum, w, x, lane) ((ulanes32)vmlal_high_laneq_s16((int32x4_t)(sum), w, x, lane))

/* Columns 2 pair and the next one, of 16 bytes of int8 weights. */
#define ADD_TWO_COLUMNS8(s, w, x, pair)                                  \
    do {                                                                 \
        int8x16_t bytes = vld1q_s8((w) + 16 * (pair));                   \
        int16x8_t column = vmovl_s8(vget_low_s8(bytes));                 \
        (s)->upper = ADD_LOW((s)->upper, column, x, 2 * (pair));         \
        (s)->lower = ADD_HIGH((s)->lower, column, x, 2 * (pair));        \
        column = vmovl_high_s8(bytes);                                   \
        (s)->upper = ADD_LOW((s)->upper, column, x, 2 * (pair) + 1);     \
        (s)->lower = ADD_HIGH((s)->lower, column, x, 2 * (pair) + 1);    \
    } while (0)

static inline void add_eight_columns8(sums *s, const int8_t *w, const int16_t *from)
{
    int16x8_t x = vld1q_s16(from);
    ADD_TWO_COLUMNS8(s, w, x, 0);
    ADD_TWO_COLUMNS8(s, w, x, 1);
    ADD_TWO_COLUMNS8(s, w, x, 2);
    ADD_TWO_COLUMNS8(s, w, x, 3);
}

/* Two columns of int4 weights; until the end upper holds the sum of both. */
#define ADD_TWO_COLUMNS4(s, both, x, pair)                               \
    do {                                                                 \
        int16x8_t whole = (both);                                        \
        int16x8_t rounded = vrshrq_n_s16(whole, 4);                      \
        (s)->upper = ADD_LOW((s)->upper, whole, x, 2 * (pair));          \
        (s)->lower = ADD_LOW((s)->lower, rounded, x, 2 * (pair));        \
        (s)->upper = ADD_HIGH((s)->upper, whole, x, 2 * (pair) + 1);     \
        (s)->lower = ADD_HIGH((s)->lower, rounded, x, 2 * (pair) + 1);   \
    } while (0)

static inline void add_eight_columns4(sums *s, const int8_t *w, const int16_t *from)
{
    int16x8_t x = vld1q_s16(from);
    int8x16_t bytes = vld1q_s8(w);
    ADD_TWO_COLUMNS4(s, vmovl_s8(vget_low_s8(bytes)), x, 0);
    ADD_TWO_COLUMNS4(s, vmovl_high_s8(bytes), x, 1);
    bytes = vld1q_s8(w + 16);
    ADD_TWO_COLUMNS4(s, vmovl_s8(vget_low_s8(bytes)), x, 2);
    ADD_TWO_COLUMNS4(s, vmovl_high_s8(bytes), x, 3);
}

/* Keeps gcc from moving sums to other registers in every round of a loop. */
#define KEEP(s) __asm__("" : "+w"((s).upper), "+w"((s).lower))

/* One instruction, which gcc would make two. */
#define SUBTRACT_16_TIMES(sum, lower, sixteen) \
    __asm__("mls %0.4s, %1.4s, %2.4s" : "+w"(sum) : "w"(lower), "w"(sixteen))
static inline ulanes32 requantized(ulanes32 sum, ulanes32 multiplier)
{
    int32x4_t m = (int32x4_t)multiplier;
    int32x4_t sign = (int32x4_t)sign_of(sum);
    int64x2_t low = vaddw_s32(vmull_s32(vget_low_s32((int32x4_t)sum), vget_low_s32(m)), vget_low_s32(sign));
    int64x2_t high = vaddw_high_s32(vmull_high_s32((int32x4_t)sum, m), sign);
    return (ulanes32)vrshrn_high_n_s64(vrshrn_n_s64(low, 32), high, 32);
}

#else

#define KEEP(s) ((void)0)
#define SUBTRACT_16_TIMES(sum, lower, sixteen) ((sum) -= (lower) * (sixteen))

static inline void add_eight_columns8(sums *s, const int8_t *w, const int16_t *x)
{
    for (unsigned column = 0; column < 8u; ++column) {
        for (unsigned k = 0; k < 4u; ++k) {
            s->upper[k] += (uint32_t)(w[k] * x[column]);
            s->lower[k] += (uint32_t)(w[k + 4u] * x[column]);
        }
        w += BLOCK;
    }
}

static inline void add_eight_columns4(sums *s, const int8_t *w, const int16_t *x)
{
    for (unsigned column = 0; column < 8u; ++column) {
        for (unsigned k = 0; k < 4u; ++k) {
            s->upper[k] += (uint32_t)(w[k] * x[column]);
            s->lower[k] += (uint32_t)(((w[k] + 8) >> 4) * x[column]);
        }
        w += BLOCK / 2u;
    }
}

static inline ulanes32 requantized(ulanes32 sum, ulanes32 multiplier)
{
    ulanes32 value;
    for (unsigned k = 0; k < 4u; ++k) {
        value[k] = (uint32_t)edgetqs_requantize((int32_t)sum[k], multiplier[k]);
    }
    return value;
}

#endif

/* One block, whose sums become values of y. Gives what follows it. */
static inline const int8_t *block(const int8_t *w, unsigned width, bool biased, const int16_t *x, const int16_t *end,
                                  int16_t *y, unsigned rows, bool add, ulanes32 *clipped)
{
    const ulanes32 sixteen = all32(16);
    sums s = {all32(0), all32(0)};
    do {
        if (width == 8u) {
            add_eight_columns8(&s, w, x);
        } else {
            add_eight_columns4(&s, w, x);
        }
        w += BLOCK * width;
        x += 8;
    } while (x < end);
    KEEP(s);
    if (width == 4u) {
        SUBTRACT_16_TIMES(s.upper, s.lower, sixteen);
    }
    if (biased) {
        s.upper += load32(w);
        s.lower += load32(w + 16);
        w += 32;
    }
    ulanes32 upper = requantized(s.upper, load32(w));
    ulanes32 lower = requantized(s.lower, load32(w + 16));
    *clipped |= unfit(upper) | unfit(lower);
    lanes16 values = narrowed(upper, lower);
    store_some(y, add ? saturated_sum(load_some(y, rows), values) : values, rows);
    return w + 32;
}

static inline uint32_t rows_of_width(const edgetqs_rows *m, unsigned width, const int16_t *x, int16_t *y, bool add)
{
    const int16_t *end = x + ((m->columns + 7u) & ~7u);
    const int8_t *w = (const void *)m->stored;
    const bool biased = m->biased;
    unsigned left = m->rows;
    ulanes32 clipped = all32(0);
    for (; left >= BLOCK; left -= BLOCK) {
        w = block(w, width, biased, x, end, y, BLOCK, add, &clipped);
        y += BLOCK;
    }
    if (left > 0u) {
        (void)block(w, width, biased, x, end, y, left, add, &clipped);
    }
    return any_unfit(clipped);
}

uint32_t edgetqs_rows8_neon(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add)
{
    return rows_of_width(m, 8, x, y, add);
}

uint32_t edgetqs_rows4_neon(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add)
{
    return rows_of_width(m, 4, x, y, add);
}
