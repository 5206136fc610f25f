/*
 * Matrix rows for cores with the DSP extension: two products an SMLAD.
 *
 * Layout: rows in blocks of four, what is left over in blocks of one; columns
 * padded with zeros to a multiple of 4 (int8) or 8 (int4). Within a block, for
 * each group of 4 or 8 columns, one word a row.
 *   int8  bytes c0 c2 c1 c3, so that SXTB16 gives (c0, c1) and, rotated, (c2, c3)
 *   int4  value + 8 in nibbles c0 c2 c4 c6 c1 c3 c5 c7, so that
 *         (word >> 4k) & 0x000F000F gives (c2k, c2k+1); 8 times the sum of x is
 *         taken off once a vector
 * x is read as pairs of int16, up to the padded length.
 */
#include "edgetqs_rt.h"

#include <stddef.h>

typedef uint32_t __attribute__((may_alias)) word;

#if defined(__ARM_FEATURE_DSP)

static inline uint32_t sxtb16(uint32_t v)
{
    uint32_t r;
    __asm__("sxtb16 %0, %1" : "=r"(r) : "r"(v));
    return r;
}

static inline uint32_t sxtb16_ror8(uint32_t v)
{
    uint32_t r;
    __asm__("sxtb16 %0, %1, ror #8" : "=r"(r) : "r"(v));
    return r;
}

static inline int32_t smlad(uint32_t a, uint32_t b, int32_t sum)
{
    int32_t r;
    __asm__("smlad %0, %1, %2, %3" : "=r"(r) : "r"(a), "r"(b), "r"(sum));
    return r;
}

#else /* the same in C, so that a host's sanitizers see this file */

static inline uint32_t sxtb16(uint32_t v)
{
    uint32_t low = ((v & 0xFFu) ^ 0x80u) - 0x80u;
    uint32_t high = (((v >> 16) & 0xFFu) ^ 0x80u) - 0x80u;
    return (low & 0xFFFFu) | (high << 16);
}

static inline uint32_t sxtb16_ror8(uint32_t v)
{
    return sxtb16(v >> 8 | v << 24);
}

static inline int32_t smlad(uint32_t a, uint32_t b, int32_t sum)
{
    int32_t low = (int32_t)(int16_t)(a & 0xFFFFu) * (int16_t)(b & 0xFFFFu);
    int32_t high = (int32_t)(int16_t)(a >> 16) * (int16_t)(b >> 16);
    return (int32_t)((uint32_t)sum + (uint32_t)low + (uint32_t)high);
}

#endif

static uint32_t finish(const edgetqs_rows *m, unsigned row, int32_t sum, int16_t *y, bool add)
{
    return edgetqs_store(&y[row], edgetqs_requantize(sum, m->multiplier[row], m->shift[row]), add);
}

static int32_t first_sum(const edgetqs_rows *m, unsigned row, int32_t correction)
{
    /* The correction may pass the int32 limits on the way; the whole sum does not. */
    return m->bias != NULL ? (int32_t)((uint32_t)m->bias[row] + (uint32_t)correction) : correction;
}

uint32_t edgetqs_rows8_dsp(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add)
{
    const word *w = m->weights;
    const word *end = (const word *)(const void *)x + (m->columns + 3u) / 4u * 2u;
    uint32_t clipped = 0;
    unsigned row = 0;
    for (; row + 4u <= m->rows; row += 4u) {
        int32_t s0 = first_sum(m, row, 0);
        int32_t s1 = first_sum(m, row + 1u, 0);
        int32_t s2 = first_sum(m, row + 2u, 0);
        int32_t s3 = first_sum(m, row + 3u, 0);
        for (const word *p = (const word *)(const void *)x; p < end; p += 2) {
            uint32_t x01 = p[0];
            uint32_t x23 = p[1];
            uint32_t w0 = w[0];
            uint32_t w1 = w[1];
            uint32_t w2 = w[2];
            uint32_t w3 = w[3];
            w += 4;
            s0 = smlad(sxtb16_ror8(w0), x23, smlad(sxtb16(w0), x01, s0));
            s1 = smlad(sxtb16_ror8(w1), x23, smlad(sxtb16(w1), x01, s1));
            s2 = smlad(sxtb16_ror8(w2), x23, smlad(sxtb16(w2), x01, s2));
            s3 = smlad(sxtb16_ror8(w3), x23, smlad(sxtb16(w3), x01, s3));
        }
        clipped += finish(m, row, s0, y, add);
        clipped += finish(m, row + 1u, s1, y, add);
        clipped += finish(m, row + 2u, s2, y, add);
        clipped += finish(m, row + 3u, s3, y, add);
    }
    for (; row < m->rows; ++row) {
        int32_t sum = first_sum(m, row, 0);
        for (const word *p = (const word *)(const void *)x; p < end; p += 2) {
            sum = smlad(sxtb16_ror8(*w), p[1], smlad(sxtb16(*w), p[0], sum));
            ++w;
        }
        clipped += finish(m, row, sum, y, add);
    }
    return clipped;
}

/* Eight columns of one row. */
static inline int32_t dot_nibbles(uint32_t w, const uint32_t x[4], int32_t sum)
{
    const uint32_t mask = 0x000F000Fu;
    sum = smlad(w & mask, x[0], sum);
    sum = smlad((w >> 4) & mask, x[1], sum);
    sum = smlad((w >> 8) & mask, x[2], sum);
    return smlad((w >> 12) & mask, x[3], sum);
}

uint32_t edgetqs_rows4_dsp(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add)
{
    const word *w = m->weights;
    const word *start = (const word *)(const void *)x;
    const word *end = start + (m->columns + 7u) / 8u * 4u;
    int32_t correction = 0;
    for (const word *p = start; p < end; ++p) {
        correction = smlad(*p, 0xFFF8FFF8u, correction); /* -8 and -8 */
    }
    uint32_t clipped = 0;
    unsigned row = 0;
    for (; row + 4u <= m->rows; row += 4u) {
        int32_t s0 = first_sum(m, row, correction);
        int32_t s1 = first_sum(m, row + 1u, correction);
        int32_t s2 = first_sum(m, row + 2u, correction);
        int32_t s3 = first_sum(m, row + 3u, correction);
        for (const word *p = start; p < end; p += 4) {
            uint32_t eight[4] = {p[0], p[1], p[2], p[3]};
            s0 = dot_nibbles(w[0], eight, s0);
            s1 = dot_nibbles(w[1], eight, s1);
            s2 = dot_nibbles(w[2], eight, s2);
            s3 = dot_nibbles(w[3], eight, s3);
            w += 4;
        }
        clipped += finish(m, row, s0, y, add);
        clipped += finish(m, row + 1u, s1, y, add);
        clipped += finish(m, row + 2u, s2, y, add);
        clipped += finish(m, row + 3u, s3, y, add);
    }
    for (; row < m->rows; ++row) {
        int32_t sum = first_sum(m, row, correction);
        for (const word *p = start; p < end; p += 4) {
            uint32_t eight[4] = {p[0], p[1], p[2], p[3]};
            sum = dot_nibbles(*w, eight, sum);
            ++w;
        }
        clipped += finish(m, row, sum, y, add);
    }
    return clipped;
}
