/*
 * Functions by table and cells for aarch64, eight values at a time: the same
 * integers as edgetqs_cells.c. A host that is none runs edgetqs_simd_cells.h.
 * The table is read as edgetqs_simd_cells.h tells; here a fraction stands at 2^-15.
 */
#include "edgetqs_simd.h"

/* About 65536 * sigmoid(i / 24) - 32768; the last entry stands twice. */
const int16_t edgetqs_sigmoid_table[257] = {
#include "sigmoid_table.inc"
};

#if defined(__aarch64__)

#include <arm_neon.h>

typedef struct {
    uint16_t factor;
    uint16x8_t most; /* that u counts */
    uint16x8_t plus;
    uint16x8_t minus;
} parameters;

#define TANH_BITS 8
#define SIGMOID_BITS 7

static inline parameters parameters_of(unsigned bits, unsigned k)
{
    parameters p = {
        (uint16_t)((15u << bits) >> k),
        vdupq_n_u16((uint16_t)((((255u << (16u - bits)) / 15u) << k) - 1u)),
        vdupq_n_u16((uint16_t)(((k + 1u) >> 1) << (bits - 1u))),
        vdupq_n_u16((uint16_t)((k >> 1) << (bits - 2u))),
    };
    return p;
}

static inline uint16x8_t magnitude_of(int16x8_t z)
{
    return vreinterpretq_u16_s16(vabsq_s16(z));
}

/* Lanes of -1 where v is negative. */
static inline int16x8_t sign_of_each(int16x8_t v)
{
    return vshrq_n_s16(v, 15);
}

/* Two neighbouring entries, by the place of the first in bytes. */
static inline uint32_t pair_at(uint16_t bytes)
{
    uint32_t pair;
    __builtin_memcpy(&pair, (const char *)edgetqs_sigmoid_table + bytes, sizeof pair);
    return pair;
}

/* An entry, from it to the one after it, and how far; steps and fractions are negative. */
typedef struct {
    int16x8_t entry;
    int16x8_t step;
    int16x8_t fraction; /* at 2^-15 */
} place;

static inline place look_up(uint16x8_t u, int16x8_t sign, parameters p, unsigned bits)
{
    uint16x8_t low = vreinterpretq_u16_u32(vmull_n_u16(vget_low_u16(u), p.factor));
    uint16x8_t high = vreinterpretq_u16_u32(vmull_high_n_u16(u, p.factor));
    uint16x8_t e = vuzp2q_u16(low, high);
    uint16x8_t rounding = vbslq_u16(vreinterpretq_u16_s16(sign), p.minus, p.plus);
    uint16x8_t fraction = vhaddq_u16(vuzp1q_u16(low, high), rounding);
    e = vaddq_u16(e, e);
    uint32x4_t first = {pair_at(e[0]), pair_at(e[1]), pair_at(e[2]), pair_at(e[3])};
    uint32x4_t second = {pair_at(e[4]), pair_at(e[5]), pair_at(e[6]), pair_at(e[7])};
    int16x8_t one = vreinterpretq_s16_u32(first);
    int16x8_t other = vreinterpretq_s16_u32(second);
    int16x8_t entry = vuzp1q_s16(one, other);
    fraction = vandq_u16(fraction, vdupq_n_u16((uint16_t)(0x10000u - (1u << (bits - 1u)))));
    place found = {entry, vsubq_s16(entry, vuzp2q_s16(one, other)), vnegq_s16(vreinterpretq_s16_u16(fraction))};
    return found;
}

static inline int16x8_t with_sign(int16x8_t magnitude, int16x8_t sign)
{
    return vsubq_s16(veorq_s16(magnitude, sign), sign);
}

/* Of a z with that magnitude and sign. */
static inline int16x8_t tanh_of(uint16x8_t u, int16x8_t sign, parameters p)
{
    place at = look_up(vminq_u16(u, p.most), sign, p, TANH_BITS);
    return with_sign(vaddq_s16(at.entry, vqrdmulhq_s16(at.fraction, at.step)), sign);
}

static inline int16x8_t sigmoid_of(uint16x8_t u, int16x8_t sign, parameters p)
{
    place at = look_up(u, sign, p, SIGMOID_BITS);
    int16x8_t half = vrhaddq_s16(at.entry, vqdmulhq_s16(at.fraction, at.step));
    return vaddq_s16(with_sign(half, sign), vdupq_n_s16(1 << 14));
}

/* What is left of a vector when fewer than eight values are. */
static inline int16x8_t first_of(const int16_t *from, unsigned count)
{
    return (int16x8_t)load_some(from, count);
}

static inline void store_first(int16_t *to, int16x8_t values, unsigned count)
{
    store_some(to, (lanes16)values, count);
}

void edgetqs_sigmoid(int16_t *values, unsigned count)
{
    const parameters p = parameters_of(SIGMOID_BITS, 2);
    for (; count >= VALUES; count -= VALUES) {
        int16x8_t z = vld1q_s16(values);
        vst1q_s16(values, sigmoid_of(magnitude_of(z), sign_of_each(z), p));
        values += VALUES;
    }
    if (count > 0u) {
        int16x8_t z = first_of(values, count);
        store_first(values, sigmoid_of(magnitude_of(z), sign_of_each(z), p), count);
    }
}

void edgetqs_sigmoid_wide(int16_t *values, unsigned count, unsigned table_shift)
{
    const parameters p = parameters_of(SIGMOID_BITS, table_shift - 11u);
    for (unsigned k = 0; k < count; k += VALUES) {
        int16x8_t z = first_of(values + k, count - k);
        store_first(values + k, sigmoid_of(vminq_u16(magnitude_of(z), p.most), sign_of_each(z), p), count - k);
    }
}

void edgetqs_tanh(int16_t *values, unsigned count, unsigned table_shift)
{
    const parameters p = parameters_of(TANH_BITS, table_shift - 11u);
    for (; count >= VALUES; count -= VALUES) {
        int16x8_t z = vld1q_s16(values);
        vst1q_s16(values, tanh_of(magnitude_of(z), sign_of_each(z), p));
        values += VALUES;
    }
    if (count > 0u) {
        int16x8_t z = first_of(values, count);
        store_first(values, tanh_of(magnitude_of(z), sign_of_each(z), p), count);
    }
}

/* ---- Cells ---- */

/* A halving with ties up, then ties away from zero: products of lanes, with what they are to be rounded with. */
static inline int32x4_t product_low(int16x8_t gate, int16x8_t value, int16x8_t one)
{
    return vaddw_s16(vmull_s16(vget_low_s16(gate), vget_low_s16(value)), vget_low_s16(one));
}

static inline int32x4_t product_high(int16x8_t gate, int16x8_t value, int16x8_t one)
{
    return vaddw_high_s16(vmull_high_s16(gate, value), one);
}

/* One, of the value's sign. */
static inline int16x8_t one_like(int16x8_t value)
{
    return vorrq_s16(sign_of_each(value), vdupq_n_s16(1));
}

/* gate * value / 2^15, which fits. */
static inline int16x8_t gated(int16x8_t gate, int16x8_t value)
{
    int16x8_t one = one_like(value);
    return vrshrn_high_n_s32(vrshrn_n_s32(product_low(gate, value, one), 15), product_high(gate, value, one), 15);
}

typedef struct {
    parameters tanh;
    int32x4_t product_shift;
    int32x4_t cell_shift;
    int32x4_t clipped; /* what it took off, collected */
} update;

/* Gives h, and c as it goes on. */
static inline int16x8_t updated(update *u, int16x8_t i, int16x8_t f, int16x8_t fresh, int16x8_t o, int16x8_t *c)
{
    int16x8_t one = one_like(fresh);
    int32x4_t low = vrshlq_s32(product_low(i, fresh, one), u->product_shift);
    int32x4_t high = vrshlq_s32(product_high(i, fresh, one), u->product_shift);
    one = one_like(*c);
    low = vrsraq_n_s32(low, product_low(f, *c, one), 15);
    high = vrsraq_n_s32(high, product_high(f, *c, one), 15);
    int16x8_t cell = vqmovn_high_s32(vqmovn_s32(low), high);
    u->clipped = vorrq_s32(u->clipped, vsubw_s16(low, vget_low_s16(cell)));
    u->clipped = vorrq_s32(u->clipped, vsubw_high_s16(high, cell));
    *c = cell;
    /* As tanh reads it, at 5*2^-13: see edgetqs_cells.c. */
    uint16x8_t size = magnitude_of(cell);
    uint32x4_t scaled_low = vrshlq_u32(vmull_n_u16(vget_low_u16(size), 52429), u->cell_shift);
    uint32x4_t scaled_high = vrshlq_u32(vmull_high_n_u16(size, 52429), u->cell_shift);
    size = vqmovn_high_u32(vqmovn_u32(scaled_low), scaled_high);
    return gated(o, tanh_of(size, sign_of_each(cell), u->tanh));
}

uint32_t edgetqs_lstm_update(const int16_t *gates, int16_t *h, int16_t *c, unsigned units, unsigned cell_bits)
{
    const int16_t *i = gates;
    const int16_t *f = gates + units;
    const int16_t *fresh = gates + 2u * units;
    const int16_t *o = gates + 3u * units;
    update u = {
        parameters_of(TANH_BITS, 1),
        vdupq_n_s32((int)cell_bits - 30),
        vdupq_n_s32(-(int)cell_bits - 5),
        vdupq_n_s32(0),
    };
    unsigned k = 0;
    for (; k + VALUES <= units; k += VALUES) {
        int16x8_t cell = vld1q_s16(c + k);
        vst1q_s16(h + k, updated(&u, vld1q_s16(i + k), vld1q_s16(f + k), vld1q_s16(fresh + k), vld1q_s16(o + k), &cell));
        vst1q_s16(c + k, cell);
    }
    if (k < units) {
        const unsigned rest = units - k;
        int16x8_t cell = first_of(c + k, rest);
        int16x8_t fed = first_of(fresh + k, rest);
        int16x8_t made = updated(&u, first_of(i + k, rest), first_of(f + k, rest), fed, first_of(o + k, rest), &cell);
        store_first(h + k, made, rest);
        store_first(c + k, cell, rest);
    }
    return vmaxvq_u32(vreinterpretq_u32_s32(u.clipped));
}

void edgetqs_gru_reset_add(int16_t *a, const int16_t *r, const int16_t *b, unsigned units)
{
    for (unsigned k = 0; k < units; k += VALUES) {
        const unsigned rest = units - k;
        int16x8_t product = gated(first_of(r + k, rest), first_of(b + k, rest));
        store_first(a + k, vqaddq_s16(first_of(a + k, rest), product), rest);
    }
}

void edgetqs_gru_reset(int16_t *a, const int16_t *r, const int16_t *b, unsigned units)
{
    for (unsigned k = 0; k < units; k += VALUES) {
        store_first(a + k, gated(first_of(r + k, units - k), first_of(b + k, units - k)), units - k);
    }
}

void edgetqs_gru_update(const int16_t *z, int16_t *fresh, int16_t *h, unsigned units, unsigned table_shift)
{
    const parameters p = parameters_of(TANH_BITS, table_shift - 11u);
    for (unsigned k = 0; k < units; k += VALUES) {
        const unsigned rest = units - k;
        int16x8_t gate = first_of(z + k, rest);
        int16x8_t candidate = first_of(fresh + k, rest);
        candidate = tanh_of(magnitude_of(candidate), sign_of_each(candidate), p);
        int16x8_t moved = vsubq_s16(candidate, gated(gate, candidate)); /* towards 0 */
        store_first(h + k, vqaddq_s16(moved, gated(gate, first_of(h + k, rest))), rest);
    }
}

#else

#define CELLS(type, name) type edgetqs_##name
#include "edgetqs_simd_cells.h"

#endif
