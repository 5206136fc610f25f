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
 * In a block of one (padded to 4 columns at int8, 8 at int4):
 *   int8  bytes c0 c2 c1 c3, so that SXTB16 gives (c0, c1) and, rotated, (c2, c3)
 *   int4  value + 8 in nibbles c0 c2 c4 c6 c1 c3 c5 c7, so that
 *         (word >> 4k) & 0x000F000F gives (c2k, c2k+1)
 * The sum of x takes off the 8s, once a vector. x is read as pairs of int16, up
 * to the padded length.
 */
#include "edgetqs_rt.h"

typedef uint32_t __attribute__((may_alias)) word;

#define NIBBLES 0x000F000Fu
#define BIASED 1u /* bits that tell the kind of rows */
#define ADD 2u

#if defined(__ARM_FEATURE_DSP)

#define USE_ASM 1

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

/* SSAT keeps in the Q flag that it clipped. Nothing else here sets it: layout.py proves that no sum overflows. */
static inline int32_t clip(int32_t value, uint32_t *clipped)
{
    int32_t r;
    (void)clipped;
    __asm__ volatile("ssat %0, #16, %1" : "=r"(r) : "r"(value));
    return r;
}

static inline void start_clipping(void)
{
    __asm__ volatile("msr apsr_nzcvq, %0" : : "r"(0) : "cc");
}

static inline uint32_t end_clipping(uint32_t clipped)
{
    (void)clipped;
    uint32_t flags;
    __asm__ volatile("mrs %0, apsr" : "=r"(flags));
    return flags & (1u << 27);
}

#else /* the same in C, so that a host's sanitizers see this file */

#define USE_ASM 0

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

static inline int32_t smuad(uint32_t a, uint32_t b)
{
    int32_t low = (int32_t)(int16_t)(a & 0xFFFFu) * (int16_t)(b & 0xFFFFu);
    int32_t high = (int32_t)(int16_t)(a >> 16) * (int16_t)(b >> 16);
    return (int32_t)((uint32_t)low + (uint32_t)high);
}

static inline int32_t smlad(uint32_t a, uint32_t b, int32_t sum)
{
    return (int32_t)((uint32_t)sum + (uint32_t)smuad(a, b));
}

static inline int32_t clip(int32_t value, uint32_t *clipped)
{
    int32_t r = edgetqs_saturate(value);
    *clipped |= (uint32_t)(r ^ value);
    return r;
}

static inline void start_clipping(void)
{
}

static inline uint32_t end_clipping(uint32_t clipped)
{
    return clipped;
}

#endif

/* One sum, with its bias, becomes a value of y; gives what follows in the stored words. */
static inline const word *finish_one(const word *w, int32_t sum, int16_t *y, uint32_t kind, uint32_t *clipped)
{
    if ((kind & BIASED) != 0u) {
        sum += (int32_t)*w++;
    }
    int32_t value = clip(edgetqs_requantize(sum, *w++), clipped);
    *y = (int16_t)((kind & ADD) != 0u ? edgetqs_saturate(*y + value) : value);
    return w;
}

/*
 * Blocks of four rows from the stored words w on, with x up to end, into y. Their
 * number less one stands from bit 2 on above the bits of their kind. Gives what
 * follows them in the stored words.
 */

#if USE_ASM

const word *edgetqs_blocks8_dsp(const word *w, const word *x, const word *end, int16_t *y, uint32_t count_and_kind);
const word *edgetqs_blocks4_dsp(const word *w, const word *x, const word *end, int16_t *y, uint32_t count_and_kind,
                                int32_t eights);

#else

/* Four sums, with their biases, become four values of y; gives what follows in the stored words. */
static const word *finish(const word *w, int32_t sums[4], int16_t *y, uint32_t kind, uint32_t *clipped)
{
    for (unsigned k = 0; k < 4u; ++k) {
        sums[k] += (kind & BIASED) != 0u ? (int32_t)*w++ : 0;
    }
    for (unsigned k = 0; k < 4u; ++k) {
        w = finish_one(w, sums[k], y + k, kind & ADD, clipped);
    }
    return w;
}

/* The upper of two rows that were summed together. */
static int32_t upper(int64_t whole, int32_t low)
{
    return (int32_t)((whole - low) >> 8);
}

static const word *blocks8(const word *w, const word *x, const word *end, int16_t *y, uint32_t count_and_kind,
                           uint32_t *clipped)
{
    for (uint32_t left = count_and_kind / 4u + 1u; left > 0u; --left) {
        int64_t whole[2] = {0, 0};
        int32_t low[2] = {0, 0};
        for (const word *p = x; p < end; ++p) {
            for (unsigned k = 0; k < 2u; ++k) {
                whole[k] += (int64_t)smuad(*w & 0xFFFFu, *p) + smuad(*w & 0xFFFF0000u, *p);
                low[k] = smlad(sxtb16(*w), *p, low[k]);
                ++w;
            }
        }
        int32_t sums[4] = {low[0], upper(whole[0], low[0]), low[1], upper(whole[1], low[1])};
        w = finish(w, sums, y, count_and_kind, clipped);
        y += 4;
    }
    return w;
}

static const word *blocks4(const word *w, const word *x, const word *end, int16_t *y, uint32_t count_and_kind,
                           int32_t eights, uint32_t *clipped)
{
    for (uint32_t left = count_and_kind / 4u + 1u; left > 0u; --left) {
        int64_t whole = -273 * (int64_t)eights;
        int32_t low0 = -eights;
        int32_t low01 = -17 * eights;
        int32_t low2 = -eights;
        for (const word *p = x; p < end; ++p) {
            whole += (int64_t)smuad(*w & 0xFFFFu, *p) + smuad(*w & 0xFFFF0000u, *p);
            low0 = smlad(*w & NIBBLES, *p, low0);
            low01 = smlad(*w & 0x00FF00FFu, *p, low01);
            low2 = smlad((*w >> 8) & NIBBLES, *p, low2);
            ++w;
        }
        int32_t sums[4] = {low0, (low01 - low0) >> 4, low2, (upper(whole, low01) - low2) >> 4};
        w = finish(w, sums, y, count_and_kind, clipped);
        y += 4;
    }
    return w;
}

#define edgetqs_blocks8_dsp(w, x, end, y, kind) blocks8(w, x, end, y, kind, &clipped)
#define edgetqs_blocks4_dsp(w, x, end, y, kind, eights) blocks4(w, x, end, y, kind, eights, &clipped)

#endif

static const word *dot8(const word *w, const word *x, const word *end, int32_t *sum)
{
    for (; x < end; x += 2) {
        *sum = smlad(sxtb16_ror8(*w), x[1], smlad(sxtb16(*w), x[0], *sum));
        ++w;
    }
    return w;
}

static const word *dot4(const word *w, const word *x, const word *end, int32_t *sum)
{
    for (; x < end; x += 4) {
        for (unsigned k = 0; k < 4u; ++k) {
            *sum = smlad((*w >> (4u * k)) & NIBBLES, x[k], *sum);
        }
        ++w;
    }
    return w;
}

uint32_t edgetqs_rows8_dsp(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add)
{
    const word *w = m->stored;
    const word *start = (const word *)(const void *)x;
    const word *end = start + (m->columns + 3u) / 4u * 2u;
    const int16_t *last = y + m->rows;
    uint32_t kind = (add ? ADD : 0u) | (m->biased ? BIASED : 0u);
    uint32_t clipped = 0;
    start_clipping();
    if (m->rows >= 4u) {
        w = edgetqs_blocks8_dsp(w, start, end, y, ((m->rows - 4u) & ~3u) | kind);
        y += m->rows & ~3u;
    }
    for (; y < last; ++y) {
        int32_t sum = 0;
        w = dot8(w, start, end, &sum);
        w = finish_one(w, sum, y, kind, &clipped);
    }
    return end_clipping(clipped);
}

uint32_t edgetqs_rows4_dsp(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add)
{
    const word *w = m->stored;
    const word *start = (const word *)(const void *)x;
    const word *end = start + (m->columns + 3u) / 4u * 2u;
    const int16_t *last = y + m->rows;
    uint32_t kind = (add ? ADD : 0u) | (m->biased ? BIASED : 0u);
    uint32_t clipped = 0;
    int32_t eights = 0;
    for (const word *p = start; p < end; p += 2) {
        eights = smlad(p[1], 0x00080008u, smlad(p[0], 0x00080008u, eights));
    }
    start_clipping();
    if (m->rows >= 4u) {
        w = edgetqs_blocks4_dsp(w, start, end, y, ((m->rows - 4u) & ~3u) | kind, eights);
        y += m->rows & ~3u;
    }
    for (; y < last; ++y) {
        int32_t sum = -eights;
        w = dot4(w, start, start + (m->columns + 7u) / 8u * 4u, &sum);
        w = finish_one(w, sum, y, kind, &clipped);
    }
    return end_clipping(clipped);
}
