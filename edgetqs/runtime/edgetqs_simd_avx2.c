/* Rows and cells for x86-64 with AVX2: see edgetqs_simd_rows.h and edgetqs_simd_cells.h. */
#define EDGETQS_FOR_AVX2
#include "edgetqs_simd_rows.h"

#if defined(EDGETQS_AVX2)

#define CELLS(type, name) type edgetqs_avx2_##name
#include "edgetqs_simd_cells.h"

static inline __m256i requantized(ulanes32 sum, const uint32_t *multiplier)
{
    const __m256i half = _mm256_set1_epi64x(0x80000000);
    __m256i m = (__m256i)load32(multiplier);
    __m256i magnitude = _mm256_abs_epi32((__m256i)sum);
    __m256i even = _mm256_add_epi64(_mm256_mul_epu32(magnitude, m), half);
    __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(magnitude, 32), _mm256_shuffle_epi32(m, 0xF5));
    __m256i value = _mm256_blend_epi32(_mm256_shuffle_epi32(even, 0xF5), _mm256_add_epi64(odd, half), 0xAA);
    return _mm256_sign_epi32(value, (__m256i)sum);
}

/* Sums of sixteen rows, which lack their biases, become values of y. Gives what follows the block. */
static inline const uint32_t *finish16(const uint32_t *w, sums s, bool biased, int16_t *y, bool add, ulanes32 *clipped)
{
    if (biased) {
        s.first += load32(w);
        s.second += load32(w + 8);
        w += 16;
    }
    __m256i first = requantized(s.first, w);
    __m256i second = requantized(s.second, w + 8);
    *clipped |= unfit((ulanes32)first) | unfit((ulanes32)second);
    __m256i values = _mm256_permute4x64_epi64(_mm256_packs_epi32(first, second), 0xD8);
    if (add) {
        values = _mm256_adds_epi16(values, (__m256i)load16(y));
    }
    _mm256_storeu_si256((void *)y, values);
    return w + 16;
}

/* ---- Blocks of eight rows: half a vector holds their weights of some columns, the other half those of the next ---- */

static inline lanes16 halves(const int16_t *x, const int16_t *next)
{
    return (lanes16)_mm256_blend_epi32((__m256i)pair_of(x), (__m256i)pair_of(next), 0xF0);
}

/* Of rows 0 to 3 and rows 4 to 7, with what they begin with. */
static inline ulanes32 total(sums s, sums begin)
{
    __m256i columns = _mm256_permute2x128_si256((__m256i)s.first, (__m256i)s.second, 0x20);
    __m256i others = _mm256_permute2x128_si256((__m256i)s.first, (__m256i)s.second, 0x31);
    return (ulanes32)columns + (ulanes32)others +
           (ulanes32)_mm256_blend_epi32((__m256i)begin.first, (__m256i)begin.second, 0xF0);
}

static inline ulanes32 total4(sums s, sums begin)
{
    const __m256i places = _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4);
    __m256i both = (__m256i)total(s, begin);
    __m256i first = _mm256_permute2x128_si256(both, both, 0x08); /* for the upper half to take off */
    return (ulanes32)_mm256_srav_epi32(_mm256_sub_epi32(both, first), places);
}

static inline const uint32_t *finish8(const uint32_t *w, ulanes32 sum, bool biased, int16_t *y, unsigned rows, bool add,
                                      ulanes32 *clipped)
{
    if (biased) {
        sum += load32(w);
        w += 8;
    }
    __m256i value = requantized(sum, w);
    *clipped |= unfit((ulanes32)value);
    __m128i values = _mm_packs_epi32(_mm256_castsi256_si128(value), _mm256_extracti128_si256(value, 1));
    if (rows >= 8u) {
        if (add) {
            values = _mm_adds_epi16(_mm_loadu_si128((const void *)y), values);
        }
        _mm_storeu_si128((void *)y, values);
    } else {
        int16_t some[8];
        _mm_storeu_si128((void *)some, values);
        for (unsigned k = 0; k < rows; ++k) {
            y[k] = add ? edgetqs_saturate((int32_t)y[k] + some[k]) : some[k];
        }
    }
    return w + 8;
}

/* ---- Rows ---- */

uint32_t edgetqs_avx2_rows8(const edgetqs_rows *m, const int16_t *x, uint32_t sum_of_x, int16_t *y, bool add)
{
    const int16_t *end = x + ((m->columns + 3u) & ~3u);
    const sums begin = begin8(sum_of_x);
    const uint32_t *w = m->stored;
    const bool biased = m->biased;
    ulanes32 clipped = all32(0);
    unsigned row = 0;
    for (; row + 16u <= m->rows; row += 16u) {
        sums s = begin;
        const int16_t *at = x;
        do {
            add_columns8(&s, load16(w), pair_of(at));
            add_columns8(&s, load16(w + 8), pair_of(at + 2));
            w += 16;
            at += 4;
        } while (at < end);
        w = finish16(w, s, biased, y + row, add, &clipped);
    }
    for (; row < m->rows; row += 8u) {
        sums s = {all32(0), all32(0)};
        const int16_t *at = x;
        do {
            add_columns8(&s, load16(w), halves(at, at + 2));
            w += 8;
            at += 4;
        } while (at < end);
        w = finish8(w, total(s, begin), biased, y + row, m->rows - row, add, &clipped);
    }
    return any_unfit(clipped);
}

uint32_t edgetqs_avx2_rows4(const edgetqs_rows *m, const int16_t *x, uint32_t sum_of_x, int16_t *y, bool add)
{
    const int16_t *end = x + ((m->columns + 3u) & ~3u);
    const sums begin = begin4(sum_of_x);
    const uint32_t *w = m->stored;
    const bool biased = m->biased;
    const unsigned words = 2u * (unsigned)(end - x) + (biased ? 32u : 16u); /* of a block */
    ulanes32 clipped = all32(0);
    unsigned row = 0;
    for (; row + 32u <= m->rows; row += 32u) { /* two blocks share x */
        sums upper = begin;
        sums lower = begin;
        const int16_t *at = x;
        do {
            lanes16 pair = pair_of(at);
            lanes16 next = pair_of(at + 2);
            add_columns4(&upper, load16(w), pair, next);
            add_columns4(&lower, load16(w + words), pair, next);
            w += 8;
            at += 4;
        } while (at < end);
        const uint32_t *second = w + words;
        (void)finish16(w, apart4(upper), biased, y + row, add, &clipped);
        w = finish16(second, apart4(lower), biased, y + row + 16u, add, &clipped);
    }
    if (row + 16u <= m->rows) {
        sums s = begin;
        const int16_t *at = x;
        do {
            add_columns4(&s, load16(w), pair_of(at), pair_of(at + 2));
            w += 8;
            at += 4;
        } while (at < end);
        w = finish16(w, apart4(s), biased, y + row, add, &clipped);
        row += 16u;
    }
    for (; row < m->rows; row += 8u) {
        sums s = {all32(0), all32(0)};
        const int16_t *at = x;
        for (; at + 8 <= end; at += 8) {
            add_columns4(&s, load16(w), halves(at, at + 4), halves(at + 2, at + 6));
            w += 8;
        }
        if (at < end) {
            __m128i last = _mm_loadu_si128((const void *)w);
            add_columns4(&s, (ulanes16)_mm256_zextsi128_si256(last), pair_of(at), pair_of(at + 2));
            w += 4;
        }
        w = finish8(w, total4(s, begin), biased, y + row, m->rows - row, add, &clipped);
    }
    return any_unfit(clipped);
}

#if defined(__clang__)
#pragma clang attribute pop
#endif

#else

typedef int edgetqs_not_empty;

#endif
