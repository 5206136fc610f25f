/*
 * Matrix rows for x86-64.
 *
 * Layout: blocks of eight rows, the last one filled up with rows of zeros, columns
 * padded to 8. A block is its weights, its biases, its
 * multipliers. Weights come in groups of 32 bytes, sixteen halves; half j holds the
 * weights of rows j / 4 and 4 + j / 4:
 *   int8, 4 columns  column j % 4: 256 second + (first + 128)
 *   int4, 8 columns  column j % 4: 16 (second + 8) + (first + 8); column 4 + j % 4: the
 *                    same in the upper byte
 * So one and or one shift widens a vector of weights, at int4 even of two rows at
 * once, 16 second + first, which the first rows' sum then tells apart. The sum of x
 * takes off the 128s and 8s, once a vector. Sums wrap on their way; what they end
 * with fits.
 */
#include "edgetqs_simd.h"

static const ulanes16 low_byte = {0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF};
static const ulanes16 low_nibble = {15, 15, 15, 15, 15, 15, 15, 15};

/* Partial sums of the four rows of half a group, two or four a row. */
typedef struct {
    ulanes32 rows[2];
} sums;

/* x: four columns, twice. */
static inline void add_products(sums *s, unsigned half, ulanes16 weights, lanes16 x)
{
    s->rows[half] += pair_products((lanes16)weights, x);
}

/* The sums of the four rows. */
static inline ulanes32 total(const sums *s)
{
#if defined(EDGETQS_SSE2)
    __m128 a = (__m128)s->rows[0];
    __m128 b = (__m128)s->rows[1];
    return (ulanes32)_mm_shuffle_ps(a, b, 0x88) + (ulanes32)_mm_shuffle_ps(a, b, 0xDD);
#else
    ulanes32 a = s->rows[0];
    ulanes32 b = s->rows[1];
    return (ulanes32){a[0] + a[1], a[2] + a[3], b[0] + b[1], b[2] + b[3]};
#endif
}

/* Sums of four rows, each of them value. */
static inline sums begin(uint32_t value)
{
    ulanes32 one = (ulanes32)((ulanes64){0} + value);
    return (sums){{one, one}};
}

static inline ulanes32 requantized(ulanes32 sum, ulanes32 multiplier)
{
#if defined(EDGETQS_SSE2)
    const ulanes64 half = {0x80000000u, 0x80000000u};
    ulanes32 sign = sign_of(sum);
    ulanes32 magnitude = (sum ^ sign) - sign;
    ulanes64 even = (ulanes64)_mm_mul_epu32((__m128i)magnitude, (__m128i)multiplier) + half;
    ulanes64 odd =
        (ulanes64)_mm_mul_epu32((__m128i)((ulanes64)magnitude >> 32), (__m128i)((ulanes64)multiplier >> 32)) + half;
    ulanes32 value = (ulanes32)(even >> 32 | (odd & ~(ulanes64){0xFFFFFFFFu, 0xFFFFFFFFu}));
    return (value ^ sign) - sign;
#else
    ulanes32 value;
    for (unsigned k = 0; k < 4u; ++k) {
        value[k] = (uint32_t)edgetqs_requantize((int32_t)sum[k], multiplier[k]);
    }
    return value;
#endif
}

static inline uint32_t sum_of(const int16_t *x, const int16_t *end)
{
    const lanes16 one = {1, 1, 1, 1, 1, 1, 1, 1};
    ulanes32 sum = all32(0);
    for (; x < end; x += 8) {
        sum += pair_products((lanes16)load16(x), one);
    }
    return sum[0] + sum[1] + sum[2] + sum[3];
}

/* Rows of a block, whose sums lack their biases, become values of y. Gives what follows the block's weights. */
static inline const uint32_t *finish(const uint32_t *w, ulanes32 low, ulanes32 high, bool biased, int16_t *y,
                                     unsigned rows, bool add, ulanes32 *clipped)
{
    if (biased) {
        low += load32(w);
        high += load32(w + 4);
        w += 8;
    }
    low = requantized(low, load32(w));
    high = requantized(high, load32(w + 4));
    *clipped |= unfit(low) | unfit(high);
    lanes16 values = narrowed(low, high);
    store_some(y, add ? saturated_sum(load_some(y, rows), values) : values, rows);
    return w + 8;
}

/* Keeps gcc from spilling sums, or moving them from register to register and back. */
#if defined(EDGETQS_SSE2)
#define IN_PLACE(s, half) __asm__("" : "+x"((s)->rows[half]))
#else
#define IN_PLACE(s, half) ((void)0)
#endif

static inline void add_columns8(sums *first, sums *second, const uint32_t *w, const int16_t *x)
{
    lanes16 four = fours(x);
    ulanes16 weights = load16(w);
    add_products(first, 0, weights & low_byte, four);
    add_products(second, 0, (ulanes16)((lanes16)weights >> 8), four);
    weights = load16(w + 4);
    add_products(first, 1, weights & low_byte, four);
    add_products(second, 1, (ulanes16)((lanes16)weights >> 8), four);
}

static inline void add_half4(sums *first, sums *both, unsigned half, ulanes16 weights, lanes16 four, lanes16 next)
{
    ulanes16 upper = weights >> 8;
    add_products(first, half, weights & low_nibble, four);
    IN_PLACE(first, half);
    add_products(both, half, weights & low_byte, four);
    IN_PLACE(both, half);
    add_products(first, half, upper & low_nibble, next);
    IN_PLACE(first, half);
    add_products(both, half, upper, next);
    IN_PLACE(both, half);
}

static inline void add_columns4(sums *first, sums *both, const uint32_t *w, const int16_t *x)
{
    lanes16 four = fours(x);
    lanes16 next = fours(x + 4);
    add_half4(first, both, 0, load16(w), four, next);
    add_half4(first, both, 1, load16(w + 4), four, next);
}

uint32_t edgetqs_rows8_simd(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add)
{
#if defined(EDGETQS_AVX2)
    if (has_avx2()) {
        return edgetqs_avx2_rows8(m, x, y, add);
    }
#endif
    const int16_t *end = x + ((m->columns + 7u) & ~7u);
    const uint32_t offset = 0u - 128u * sum_of(x, end);
    const uint32_t *w = m->stored;
    const bool biased = m->biased;
    ulanes32 clipped = all32(0);
    for (unsigned row = 0; row < m->rows; row += 8u) {
        sums first = begin(offset);
        sums second = begin(0);
        const int16_t *at = x;
        do {
            add_columns8(&first, &second, w, at);
            add_columns8(&first, &second, w + 8, at + 4);
            w += 16;
            at += 8;
        } while (at < end);
        w = finish(w, total(&first), total(&second), biased, y + row, m->rows - row, add, &clipped);
    }
    return any_unfit(clipped);
}

uint32_t edgetqs_rows4_simd(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add)
{
#if defined(EDGETQS_AVX2)
    if (has_avx2()) {
        return edgetqs_avx2_rows4(m, x, y, add);
    }
#endif
    const int16_t *end = x + ((m->columns + 7u) & ~7u);
    const uint32_t eights = 8u * sum_of(x, end);
    const uint32_t *w = m->stored;
    const bool biased = m->biased;
    ulanes32 clipped = all32(0);
    for (unsigned row = 0; row < m->rows; row += 8u) {
        sums first = begin(0u - eights);
        sums both = begin(0u - 17u * eights);
        const int16_t *at = x;
        do {
            add_columns4(&first, &both, w, at);
            w += 8;
            at += 8;
        } while (at < end);
        ulanes32 low = total(&first);
        ulanes32 high = shifted(total(&both) - low, 4);
        w = finish(w, low, high, biased, y + row, m->rows - row, add, &clipped);
    }
    return any_unfit(clipped);
}
