/* Rows for x86-64: see edgetqs_simd_rows.h. */
#include "edgetqs_simd_rows.h"

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

static inline uint32_t sum_of(const int16_t *x, unsigned columns)
{
    const lanes16 one = {1, 1, 1, 1, 1, 1, 1, 1};
    ulanes32 sum = all32(0);
    for (const int16_t *end = x + columns; x < end; x += 8) {
        sum += pair_products((lanes16)load16(x), one);
    }
    return sum[0] + sum[1] + sum[2] + sum[3];
}

/* Sums of eight rows, which lack their biases, become values of y; biases: of the block, 0 where there are none. */
static inline void finish(ulanes32 low, ulanes32 high, const uint32_t *w, unsigned biases, int16_t *y, unsigned rows,
                          bool add, ulanes32 *clipped)
{
    if (biases > 0u) {
        low += load32(w);
        high += load32(w + 4);
        w += biases;
    }
    low = requantized(low, load32(w));
    high = requantized(high, load32(w + 4));
    *clipped |= unfit(low) | unfit(high);
    lanes16 values = narrowed(low, high);
    store_some(y, add ? saturated_sum(load_some(y, rows), values) : values, rows);
}

static inline const uint32_t *finish16(const uint32_t *w, sums s, sums t, bool biased, int16_t *y, bool add,
                                       ulanes32 *clipped)
{
    const unsigned biases = biased ? 16u : 0u;
    finish(s.first, t.first, w, biases, y, 8, add, clipped);
    finish(s.second, t.second, w + 8, biases, y + 8, 8, add, clipped);
    return w + biases + 16;
}

static inline const uint32_t *finish8(const uint32_t *w, sums s, bool biased, int16_t *y, unsigned rows, bool add,
                                      ulanes32 *clipped)
{
    const unsigned biases = biased ? 8u : 0u;
    finish(s.first, s.second, w, biases, y, rows, add, clipped);
    return w + biases + 8;
}

uint32_t edgetqs_rows8_simd(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add)
{
    const uint32_t sum_of_x = sum_of(x, m->columns);
#if defined(EDGETQS_AVX2)
    if (has_avx2()) {
        return edgetqs_avx2_rows8(m, x, sum_of_x, y, add);
    }
#endif
    const int16_t *end = x + ((m->columns + 3u) & ~3u);
    const sums begin = begin8(sum_of_x);
    const uint32_t *w = m->stored;
    const bool biased = m->biased;
    ulanes32 clipped = all32(0);
    unsigned row = 0;
    for (; row + 16u <= m->rows; row += 16u) {
        sums s = begin;
        sums t = begin;
        const int16_t *at = x;
        do {
            lanes16 pair = pair_of(at);
            add_columns8(&s, load16(w), pair);
            add_columns8(&t, load16(w + 4), pair);
            pair = pair_of(at + 2);
            add_columns8(&s, load16(w + 8), pair);
            add_columns8(&t, load16(w + 12), pair);
            w += 16;
            at += 4;
        } while (at < end);
        w = finish16(w, s, t, biased, y + row, add, &clipped);
    }
    for (; row < m->rows; row += 8u) {
        sums s = begin;
        const int16_t *at = x;
        do {
            add_columns8(&s, load16(w), pair_of(at));
            add_columns8(&s, load16(w + 4), pair_of(at + 2));
            w += 8;
            at += 4;
        } while (at < end);
        w = finish8(w, s, biased, y + row, m->rows - row, add, &clipped);
    }
    return any_unfit(clipped);
}

uint32_t edgetqs_rows4_simd(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add)
{
    const uint32_t sum_of_x = sum_of(x, m->columns);
#if defined(EDGETQS_AVX2)
    if (has_avx2()) {
        return edgetqs_avx2_rows4(m, x, sum_of_x, y, add);
    }
#endif
    const int16_t *end = x + ((m->columns + 3u) & ~3u);
    const sums begin = begin4(sum_of_x);
    const uint32_t *w = m->stored;
    const bool biased = m->biased;
    ulanes32 clipped = all32(0);
    unsigned row = 0;
    for (; row + 16u <= m->rows; row += 16u) {
        sums s = begin;
        sums t = begin;
        const int16_t *at = x;
        do {
            lanes16 pair = pair_of(at);
            lanes16 next = pair_of(at + 2);
            add_columns4(&s, load16(w), pair, next);
            add_columns4(&t, load16(w + 4), pair, next);
            w += 8;
            at += 4;
        } while (at < end);
        w = finish16(w, apart4(s), apart4(t), biased, y + row, add, &clipped);
    }
    for (; row < m->rows; row += 8u) {
        sums s = begin;
        const int16_t *at = x;
        do {
            add_columns4(&s, load16(w), pair_of(at), pair_of(at + 2));
            w += 4;
            at += 4;
        } while (at < end);
        w = finish8(w, apart4(s), biased, y + row, m->rows - row, add, &clipped);
    }
    return any_unfit(clipped);
}
