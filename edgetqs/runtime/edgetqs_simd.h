/*
 * Vectors for edgetqs_simd*: SSE2 and AVX2 of x86-64 or, with EDGETQS_NO_SIMD and
 * on any other core, plain C.
 *
 * What every core has is written with the vector types of gcc and clang; unsigned
 * lanes, since sums may wrap on their way. AVX2 works on each half of its vectors
 * as SSE2 on a whole one: pairs_low and pairs_high take the values as narrowed puts
 * them back.
 *
 *   EDGETQS_NO_SIMD  plain C even where there are vectors
 *   EDGETQS_NO_AVX2  SSE2 even on a processor with AVX2
 */
#ifndef EDGETQS_SIMD_H
#define EDGETQS_SIMD_H

#include "edgetqs_rt.h"

#if defined(EDGETQS_NO_SIMD)
#elif defined(__x86_64__)
#include <immintrin.h>
#define EDGETQS_SSE2 1
#if !defined(EDGETQS_NO_AVX2)
#define EDGETQS_AVX2 1 /* used where the processor has it */
#endif
#endif

/* edgetqs_simd_avx2.c is to be compiled for AVX2 whatever the rest is compiled for. */
#if defined(EDGETQS_AVX2) && defined(EDGETQS_FOR_AVX2)
#define VECTOR 32
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC target("avx2")
#endif
#else
#define VECTOR 16
#endif

#define VALUES (VECTOR / 2u) /* of 16 bits, a vector */

typedef int16_t lanes16 __attribute__((vector_size(VECTOR)));
typedef uint16_t ulanes16 __attribute__((vector_size(VECTOR)));
typedef int32_t lanes32 __attribute__((vector_size(VECTOR)));
typedef uint32_t ulanes32 __attribute__((vector_size(VECTOR)));
typedef uint64_t ulanes64 __attribute__((vector_size(VECTOR)));
typedef uint32_t fours32 __attribute__((vector_size(16)));
#if VECTOR == 32
typedef __m256i native;
#define INTRINSIC(name) _mm256_##name
#elif defined(EDGETQS_SSE2)
typedef __m128i native;
#define INTRINSIC(name) _mm_##name
#endif

extern const int16_t edgetqs_sigmoid_table[257];

#if defined(EDGETQS_AVX2)
static inline bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") != 0;
}

uint32_t edgetqs_avx2_rows8(const edgetqs_rows *m, const int16_t *x, uint32_t sum_of_x, int16_t *y, bool add);
uint32_t edgetqs_avx2_rows4(const edgetqs_rows *m, const int16_t *x, uint32_t sum_of_x, int16_t *y, bool add);
void edgetqs_avx2_sigmoid(int16_t *values, unsigned count);
void edgetqs_avx2_sigmoid_wide(int16_t *values, unsigned count, unsigned table_shift);
void edgetqs_avx2_tanh(int16_t *values, unsigned count, unsigned table_shift);
uint32_t edgetqs_avx2_lstm_update(const int16_t *gates, int16_t *h, int16_t *c, unsigned units, unsigned cell_bits);
void edgetqs_avx2_gru_reset_add(int16_t *a, const int16_t *r, const int16_t *b, unsigned units);
void edgetqs_avx2_gru_reset(int16_t *a, const int16_t *r, const int16_t *b, unsigned units);
void edgetqs_avx2_gru_update(const int16_t *z, int16_t *fresh, int16_t *h, unsigned units, unsigned table_shift);
#endif

/* ---- Loading and storing ---- */

static inline ulanes16 load16(const void *from)
{
    ulanes16 v;
    __builtin_memcpy(&v, from, sizeof v);
    return v;
}

static inline ulanes32 load32(const void *from)
{
    ulanes32 v;
    __builtin_memcpy(&v, from, sizeof v);
    return v;
}

/* Keeps gcc from calling memcpy for a few values. */
#define ONE_BY_ONE(k) __asm__("" : "+r"(k))

/* The first values of a vector: all if there are so many. */
static inline lanes16 load_some(const int16_t *from, unsigned count)
{
    if (count >= VALUES) {
        return (lanes16)load16(from);
    }
    int16_t some[VALUES] = {0};
    for (unsigned k = 0; k < count; ++k) {
        ONE_BY_ONE(k);
        some[k] = from[k];
    }
    return (lanes16)load16(some);
}

static inline void store_some(int16_t *to, lanes16 values, unsigned count)
{
    if (count >= VALUES) {
        __builtin_memcpy(to, &values, sizeof values);
        return;
    }
    int16_t some[VALUES];
    __builtin_memcpy(some, &values, sizeof values);
    for (unsigned k = 0; k < count; ++k) {
        ONE_BY_ONE(k);
        to[k] = some[k];
    }
}

static inline ulanes32 all32(uint32_t value)
{
    return (ulanes32){0} + value;
}

static inline ulanes16 all16(unsigned value)
{
    return (ulanes16)all32(value << 16 | value);
}

/* Two values in every 32 bits. */
static inline lanes16 pair_of(const int16_t *from)
{
    uint32_t pair;
    __builtin_memcpy(&pair, from, sizeof pair);
    return (lanes16)all32(pair);
}

/* ---- Arithmetic ---- */

/* Arithmetic right shift. */
static inline ulanes32 shifted(ulanes32 v, int by)
{
    return (ulanes32)((lanes32)v >> by);
}

/* v / 2^by, ties up. */
static inline ulanes32 rounded(ulanes32 v, int by)
{
    return shifted(v + all32((1u << by) >> 1), by);
}

static inline ulanes32 sign_of(ulanes32 v)
{
    return shifted(v, 31);
}

/* Lanes that do not fit an int16 leave a bit above the lowest 15. */
static inline ulanes32 unfit(ulanes32 v)
{
    return v ^ sign_of(v);
}

static inline uint32_t any_unfit(ulanes32 collected)
{
    uint32_t any = 0;
    for (unsigned k = 0; k < VALUES / 2u; ++k) {
        any |= collected[k];
    }
    return any >> 15;
}

static inline lanes16 saturated_sum(lanes16 a, lanes16 b)
{
#if defined(EDGETQS_SSE2)
    return (lanes16)INTRINSIC(adds_epi16)((native)a, (native)b);
#else
    lanes16 v;
    for (unsigned k = 0; k < VALUES; ++k) {
        v[k] = edgetqs_saturate((int32_t)a[k] + b[k]);
    }
    return v;
#endif
}

/* (a + b + 1) / 2 */
static inline ulanes16 averaged(ulanes16 a, ulanes16 b)
{
#if defined(EDGETQS_SSE2)
    return (ulanes16)INTRINSIC(avg_epu16)((native)a, (native)b);
#else
    return (a >> 1) + (b >> 1) + ((a | b) & 1);
#endif
}

static inline ulanes16 smaller(ulanes16 a, ulanes16 b)
{
#if defined(EDGETQS_SSE2)
    return a - (ulanes16)INTRINSIC(subs_epu16)((native)a, (native)b);
#else
    ulanes16 above = (ulanes16)(a > b);
    return (a & ~above) | (b & above);
#endif
}

/* The upper half of each product. */
static inline ulanes16 upper_products(ulanes16 a, ulanes16 b)
{
#if defined(EDGETQS_SSE2)
    return (ulanes16)INTRINSIC(mulhi_epu16)((native)a, (native)b);
#else
    ulanes16 v;
    for (unsigned k = 0; k < VALUES; ++k) {
        v[k] = (uint16_t)((uint32_t)a[k] * b[k] >> 16);
    }
    return v;
#endif
}

/* Sums of products of neighbouring int16. */
static inline ulanes32 pair_products(lanes16 a, lanes16 b)
{
#if defined(EDGETQS_SSE2)
    return (ulanes32)INTRINSIC(madd_epi16)((native)a, (native)b);
#else
    ulanes32 low = shifted((ulanes32)a << 16, 16) * shifted((ulanes32)b << 16, 16);
    return low + shifted((ulanes32)a, 16) * shifted((ulanes32)b, 16);
#endif
}

/* ---- Two vectors of 32 bits of one of 16 bits, and back ---- */

static inline lanes16 narrowed(ulanes32 low, ulanes32 high)
{
#if defined(EDGETQS_SSE2)
    return (lanes16)INTRINSIC(packs_epi32)((native)low, (native)high);
#else
    lanes16 v;
    for (unsigned k = 0; k < VALUES / 2u; ++k) {
        v[k] = edgetqs_saturate((int32_t)low[k]);
        v[k + VALUES / 2u] = edgetqs_saturate((int32_t)high[k]);
    }
    return v;
#endif
}

/* Lanes of a below lanes of b. */
static inline lanes16 pairs_low(lanes16 a, lanes16 b)
{
#if defined(EDGETQS_SSE2)
    return (lanes16)INTRINSIC(unpacklo_epi16)((native)a, (native)b);
#else
    return (lanes16){a[0], b[0], a[1], b[1], a[2], b[2], a[3], b[3]};
#endif
}

static inline lanes16 pairs_high(lanes16 a, lanes16 b)
{
#if defined(EDGETQS_SSE2)
    return (lanes16)INTRINSIC(unpackhi_epi16)((native)a, (native)b);
#else
    return (lanes16){a[4], b[4], a[5], b[5], a[6], b[6], a[7], b[7]};
#endif
}

#endif
