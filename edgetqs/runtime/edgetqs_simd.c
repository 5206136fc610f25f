/*
 * Matrix rows for x86-64 and aarch64.
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
#if defined(EDGETQS_NEON)
    int32x4_t row[4];
#else
    ulanes32 rows[2];
#endif
} sums;

/* x: four columns, twice. */
static inline void add_products(sums *s, unsigned half, ulanes16 weights, lanes16 x)
{
#if defined(EDGETQS_NEON)
    int16x8_t w = (int16x8_t)weights;
    int16x8_t v = (int16x8_t)x;
    s->row[2u * half] = vmlal_s16(s->row[2u * half], vget_low_s16(w), vget_low_s16(v));
    s->row[2u * half + 1u] = vmlal_high_s16(s->row[2u * half + 1u], w, v);
#else
    s->rows[half] += pair_products((lanes16)weights, x);
#endif
}

/* The sums of the four rows. */
static inline ulanes32 total(const sums *s)
{
#if defined(EDGETQS_NEON)
    return (ulanes32)vpaddq_s32(vpaddq_s32(s->row[0], s->row[1]), vpaddq_s32(s->row[2], s->row[3]));
#elif defined(EDGETQS_SSE2)
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
#if defined(EDGETQS_NEON)
    int32x4_t one = (int32x4_t)(ulanes32){value, 0, 0, 0};
    return (sums){{one, one, one, one}};
#else
    ulanes32 one = (ulanes32)((ulanes64){0} + value);
    return (sums){{one, one}};
#endif
}

static inline ulanes32 requantized(ulanes32 sum, ulanes32 multiplier)
{
#if defined(EDGETQS_NEON)
    int32x4_t m = (int32x4_t)multiplier;
    int32x4_t sign = (int32x4_t)sign_of(sum);
    int64x2_t low = vaddw_s32(vmull_s32(vget_low_s32((int32x4_t)sum), vget_low_s32(m)), vget_low_s32(sign));
    int64x2_t high = vaddw_high_s32(vmull_high_s32((int32x4_t)sum, m), sign);
    return (ulanes32)vrshrn_high_n_s64(vrshrn_n_s64(low, 32), high, 32);
#elif defined(EDGETQS_SSE2)
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
#if defined(EDGETQS_NEON)
#define IN_PLACE(s, half) __asm__("" : "+w"((s)->row[2u * (half)]), "+w"((s)->row[2u * (half) + 1u]))
#elif defined(EDGETQS_SSE2)
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
#if defined(EDGETQS_NEON) /* what pays for its many registers only */
        for (; end - at > 8; at += 16) {
            add_columns4(&first, &both, w, at);
            add_columns4(&first, &both, w + 8, at + 8);
            w += 16;
        }
        if (at < end) {
            add_columns4(&first, &both, w, at);
            w += 8;
        }
#else
        do {
            add_columns4(&first, &both, w, at);
            w += 8;
            at += 8;
        } while (at < end);
#endif
        ulanes32 low = total(&first);
        ulanes32 high = shifted(total(&both) - low, 4);
        w = finish(w, low, high, biased, y + row, m->rows - row, add, &clipped);
    }
    return any_unfit(clipped);
}
