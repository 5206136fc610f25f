/* Rows and cells for x86-64 with AVX2: see edgetqs_simd.c, which tells the layout, and edgetqs_simd_cells.h. */
#define EDGETQS_FOR_AVX2
#include "edgetqs_simd.h"

#if defined(EDGETQS_AVX2)

#define CELLS(type, name) type edgetqs_avx2_##name
#include "edgetqs_simd_cells.h"

/* The sum of x, taken from 0, as one of a row's two sums. */
static inline ulanes64 minus_sum_of(const int16_t *x, const int16_t *end)
{
    __m128i sum = _mm_setzero_si128();
    for (; x < end; x += 8) {
        sum = _mm_sub_epi32(sum, _mm_madd_epi16(_mm_loadu_si128((const void *)x), _mm_set1_epi16(1)));
    }
    sum = _mm_hadd_epi32(sum, sum);
    return (ulanes64)_mm256_broadcastd_epi32(_mm_hadd_epi32(sum, sum)) >> 32;
}

/* Two sums a row, of rows 0 to 3 and of rows 4 to 7, become one. */
static inline ulanes32 total(ulanes32 first, ulanes32 second)
{
    return (ulanes32)_mm256_permute4x64_epi64(_mm256_hadd_epi32((__m256i)first, (__m256i)second), 0xD8);
}

static inline __m256i requantized(__m256i sum, const uint32_t *multiplier)
{
    const __m256i half = _mm256_set1_epi64x(0x80000000);
    __m256i m = (__m256i)load32(multiplier);
    __m256i magnitude = _mm256_abs_epi32(sum);
    __m256i even = _mm256_add_epi64(_mm256_mul_epu32(magnitude, m), half);
    __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(magnitude, 32), _mm256_shuffle_epi32(m, 0xF5));
    __m256i value = _mm256_blend_epi32(_mm256_shuffle_epi32(even, 0xF5), _mm256_add_epi64(odd, half), 0xAA);
    return _mm256_sign_epi32(value, sum);
}

/* Sums of a block's rows, which lack their biases, become values of y. Gives what follows the block's weights. */
static inline const uint32_t *finish(const uint32_t *w, ulanes32 sum, bool biased, int16_t *y, unsigned rows, bool add,
                                     ulanes32 *clipped)
{
    if (biased) {
        sum += load32(w);
        w += 8;
    }
    __m256i value = (__m256i)requantized((__m256i)sum, w);
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

/* Loaded once. */
#define IN_REGISTER(vector) __asm__("" : "+x"(vector))
#define LOW_BYTE ((ulanes16)all32(0x00FF00FFu))

static inline void add_columns8(ulanes32 *first, ulanes32 *second, const uint32_t *w, const int16_t *x)
{
    lanes16 four = fours(x);
    ulanes16 weights = load16(w);
    IN_REGISTER(weights);
    *first += pair_products((lanes16)(weights & LOW_BYTE), four);
    *second += pair_products((lanes16)weights >> 8, four);
}

uint32_t edgetqs_avx2_rows8(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add)
{
    const int16_t *end = x + ((m->columns + 7u) & ~7u);
    const ulanes32 offset = (ulanes32)minus_sum_of(x, end) << 7;
    const uint32_t *w = m->stored;
    const bool biased = m->biased;
    ulanes32 clipped = all32(0);
    for (unsigned row = 0; row < m->rows; row += 8u) {
        ulanes32 first = offset;
        ulanes32 second = all32(0);
        const int16_t *eight = x;
        do {
            add_columns8(&first, &second, w, eight);
            add_columns8(&first, &second, w + 8, eight + 4);
            w += 16;
            eight += 8;
        } while (eight < end);
        w = finish(w, total(first, second), biased, y + row, m->rows - row, add, &clipped);
    }
    return any_unfit(clipped);
}

/* Sums of a block's first rows, and of 16 times its second rows and those. */
typedef struct {
    ulanes32 first;
    ulanes32 both;
} sums4;

static inline void add_columns4(sums4 *sums, const uint32_t *w, lanes16 four, lanes16 next)
{
    const ulanes16 low_nibble = (ulanes16)all32(0x000F000Fu);
    ulanes16 weights = load16(w);
    IN_REGISTER(weights);
    ulanes16 upper = weights >> 8;
    sums->first += pair_products((lanes16)(weights & low_nibble), four);
    sums->both += pair_products((lanes16)(weights & LOW_BYTE), four);
    sums->first += pair_products((lanes16)(upper & low_nibble), next);
    sums->both += pair_products((lanes16)upper, next);
}

static inline ulanes32 total4(sums4 sums)
{
    const __m256i places = _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4);
    return (ulanes32)_mm256_srav_epi32((__m256i)total(sums.first, sums.both - sums.first), places);
}

uint32_t edgetqs_avx2_rows4(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add)
{
    const int16_t *end = x + ((m->columns + 7u) & ~7u);
    const ulanes32 offset = (ulanes32)minus_sum_of(x, end) << 3;
    const sums4 start = {offset, (offset << 4) + offset};
    const uint32_t *w = m->stored;
    const bool biased = m->biased;
    const unsigned words = (unsigned)(end - x) + (biased ? 16u : 8u); /* of a block */
    ulanes32 clipped = all32(0);
    unsigned row = 0;
    for (; row + 8u < m->rows; row += 16u) { /* two blocks share x */
        sums4 upper = start;
        sums4 lower = start;
        const int16_t *eight = x;
        do {
            lanes16 four = fours(eight);
            lanes16 next = fours(eight + 4);
            add_columns4(&upper, w, four, next);
            add_columns4(&lower, w + words, four, next);
            w += 8;
            eight += 8;
        } while (eight < end);
        const uint32_t *second = w + words;
        (void)finish(w, total4(upper), biased, y + row, 8, add, &clipped);
        w = finish(second, total4(lower), biased, y + row + 8u, m->rows - row - 8u, add, &clipped);
    }
    if (row < m->rows) {
        sums4 sums = start;
        const int16_t *eight = x;
        do {
            add_columns4(&sums, w, fours(eight), fours(eight + 4));
            w += 8;
            eight += 8;
        } while (eight < end);
        (void)finish(w, total4(sums), biased, y + row, m->rows - row, add, &clipped);
    }
    return any_unfit(clipped);
}

#if defined(__clang__)
#pragma clang attribute pop
#endif

#else

typedef int edgetqs_not_empty;

#endif
