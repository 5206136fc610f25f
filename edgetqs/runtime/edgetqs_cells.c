/* edgetqs runtime, functions by table and cells: see edgetqs_rt.h. */
#include "edgetqs_rt.h"

/* Some cores have these in assembly: edgetqs_thumb1_cells.S, edgetqs_mve_cells.S. */
#if defined(__ARM_ARCH_6M__) || defined(__ARM_FEATURE_MVE)
#define IN_ASSEMBLY 1
#else
#define IN_ASSEMBLY 0
#endif

#if !IN_ASSEMBLY

/* About 65536 * sigmoid(i / 24) - 32768; the last entry stands twice. */
static const int16_t sigmoid_table[257] = {
#include "sigmoid_table.inc"
};

#endif

/* ---- What some cores do in one instruction ---- */

#if defined(__ARM_FEATURE_SAT)
static inline int32_t saturate16(int32_t value)
{
    int32_t r;
    __asm__("ssat %0, #16, %1" : "=r"(r) : "r"(value));
    return r;
}

static inline uint32_t at_most_0xFFFF(uint32_t value)
{
    uint32_t r;
    __asm__("usat %0, #16, %1" : "=r"(r) : "r"(value));
    return r;
}
#else
static inline int32_t saturate16(int32_t value)
{
    return edgetqs_saturate(value);
}

static inline uint32_t at_most_0xFFFF(uint32_t value)
{
    return value > 0xFFFFu ? 0xFFFFu : value;
}
#endif

/* A constant that the compiler is to keep in a register rather than to take apart. */
#define IN_REGISTER(constant) __asm__("" : "+r"(constant))

#if !IN_ASSEMBLY

/* (entry[0] << fraction) + between * (entry[1] - entry[0]) */
static inline int32_t interpolated(const int16_t *entry, int32_t between, unsigned fraction)
{
#if defined(__ARM_FEATURE_DSP) || defined(__ARM_FEATURE_UNALIGNED)
    typedef int32_t __attribute__((may_alias, aligned(2))) pair;
    int32_t both = *(const pair *)(const void *)entry;
#else
    int32_t low = entry[0];
    int32_t rise = entry[1] - low;
#endif
#if defined(__ARM_FEATURE_DSP)
    int32_t spread = 0xFFFF;
    int32_t one = 1 << fraction;
    IN_REGISTER(spread);
    IN_REGISTER(one);
    int32_t weights = between * spread + one; /* between above 2^fraction - between */
    int32_t value;
    __asm__("smuad %0, %1, %2" : "=r"(value) : "r"(both), "r"(weights));
    return value;
#elif defined(__ARM_FEATURE_UNALIGNED)
    int32_t low = (int16_t)both;
    int32_t rise = (both >> 16) - low;
#endif
#if !defined(__ARM_FEATURE_DSP)
    return low * (1 << fraction) + between * rise;
#endif
}

/* ---- Functions by table ----
 *
 * A position in the table is an entry and, below it, some bits of fraction. What
 * is interpolated there takes the position's sign: for a negative one ~value
 * stands for -value, since the reference rounds ties up on that side. Then the
 * function's value at 0 and one half to round with are added.
 */

static inline int32_t position_of(int32_t z, unsigned up)
{
    return (15 * z + ((1 << up) >> 1)) >> up;
}

static inline int32_t sigmoid_at(int32_t position, uint32_t magnitude, int32_t centre)
{
    int32_t value = interpolated(&sigmoid_table[magnitude >> 9], (int32_t)(magnitude & 511u), 9);
    return (centre + (value ^ (position >> 31))) >> 10;
}

static inline uint32_t magnitude_of(int32_t position)
{
    int32_t sign = position >> 31;
    return (uint32_t)((position ^ sign) - sign);
}

static inline int32_t tanh_at(int32_t position)
{
    uint32_t magnitude = at_most_0xFFFF(magnitude_of(position)); /* flat from entry 255 on */
    int32_t value = interpolated(&sigmoid_table[magnitude >> 8], (int32_t)(magnitude & 255u), 8);
    return (128 + (value ^ (position >> 31))) >> 8;
}

#define SIGMOID_CENTRE ((1 << 24) + 512)

void edgetqs_sigmoid(int16_t *values, unsigned count)
{
    int32_t centre = SIGMOID_CENTRE;
    IN_REGISTER(centre);
    for (const int16_t *end = values + count; values < end; ++values) {
        int32_t position = position_of(*values, 2);
        *values = (int16_t)sigmoid_at(position, magnitude_of(position), centre);
    }
}

void edgetqs_sigmoid_wide(int16_t *values, unsigned count, unsigned table_shift)
{
    /* The function is flat from entry 255 on, and has that same value, rounded, at the position before. */
    const uint32_t last = 255 * 512 - 1;
    for (const int16_t *end = values + count; values < end; ++values) {
        int32_t position = position_of(*values, table_shift - 11u);
        uint32_t magnitude = magnitude_of(position);
        *values = (int16_t)sigmoid_at(position, magnitude > last ? last : magnitude, SIGMOID_CENTRE);
    }
}

void edgetqs_tanh(int16_t *values, unsigned count, unsigned table_shift)
{
    for (const int16_t *end = values + count; values < end; ++values) {
        *values = (int16_t)tanh_at(position_of(*values, table_shift - 11u));
    }
}

/* ---- Cells ---- */

/* gate * value / 2^(shift + 1): a halving with ties up, then ties away from zero; half is 2^shift + 1. A gate is
 * never negative, so that the product has the value's sign and no result leaves an int16. */
static inline int32_t gated(int16_t gate, int16_t value, int32_t half, unsigned shift)
{
    return (gate * value + (half + (value >> 31) * 2)) >> (shift + 1u);
}

#define HALF ((1 << 14) + 1)

uint32_t edgetqs_lstm_update(const int16_t *gates, int16_t *h, int16_t *c, unsigned units, unsigned cell_bits)
{
    const int16_t *end = c + units;
    unsigned shift = 29u - cell_bits;
    int32_t half = (1 << shift) + 1;
    uint32_t clipped = 0;
    const int16_t *i = gates;
    const int16_t *f = gates + units;
    const int16_t *fresh = gates + 2u * units;
    for (int16_t *cell = c; cell < end; ++cell) {
        int32_t sum = gated(*f++, *cell, HALF, 14) + gated(*i++, *fresh++, half, shift);
        int32_t kept = saturate16(sum);
        clipped |= (uint32_t)(kept ^ sum);
        *cell = (int16_t)kept;
    }
    /* As tanh reads it, at 5*2^-13, the state is 0.8 * 2^(11 - cell_bits) times itself. 52429 / 2^16 is close enough
     * to 0.8: up to where tanh is flat, no multiple of 0.8 lies so near a tie. */
    const int16_t *o = gates + 3u * units;
    int32_t factor = 52429;
    IN_REGISTER(factor);
    for (const int16_t *cell = c; cell < end; ++cell) {
        int32_t scaled = (*cell * factor + (1 << (cell_bits + 4u))) >> (cell_bits + 5u);
        *h++ = (int16_t)gated(*o++, (int16_t)tanh_at(position_of(scaled, 1)), HALF, 14);
    }
    return clipped;
}

void edgetqs_gru_reset_add(int16_t *a, const int16_t *r, const int16_t *b, unsigned units)
{
    for (unsigned k = 0; k < units; ++k) {
        a[k] = (int16_t)saturate16(a[k] + gated(r[k], b[k], HALF, 14));
    }
}

void edgetqs_gru_reset(int16_t *a, const int16_t *r, const int16_t *b, unsigned units)
{
    for (unsigned k = 0; k < units; ++k) {
        a[k] = (int16_t)gated(r[k], b[k], HALF, 14);
    }
}

void edgetqs_gru_update(const int16_t *z, int16_t *fresh, int16_t *h, unsigned units, unsigned table_shift)
{
    for (unsigned k = 0; k < units; ++k) {
        int16_t candidate = (int16_t)tanh_at(position_of(fresh[k], table_shift - 11u));
        int16_t rest = edgetqs_saturate(candidate - gated(z[k], candidate, HALF, 14));
        h[k] = edgetqs_saturate(rest + gated(z[k], h[k], HALF, 14));
    }
}

#endif
