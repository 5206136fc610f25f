/*
 * Functions by table and cells on vectors of any width; cells are explained in
 * edgetqs_cells.c. CELLS(type, name) begins a function here; VALUES are computed at
 * a time.
 *
 * Table: with u = |z|, 15 u / 2^k (k = table_shift - 11) is an entry e and, below
 * it, a fraction of 8 bits (tanh) or 9 (sigmoid), to which up to 2 / 2^k are added
 * for rounding: plus or minus, as z is signed. 15 u 2^(bits - k) has e in its upper
 * half and the fraction in the lower one, which is halved as that is added, so that
 * a carry is not lost: it makes a fraction of 1, where the line to the next entry
 * ends. Where the functions are flat they keep the value that they have at a u
 * that is still within the table.
 */

/* ---- Functions by table ---- */

typedef struct {
    int bits;
    ulanes16 factor;
    ulanes16 most; /* that u counts */
    ulanes16 plus;
    ulanes16 minus;
} parameters;

#define TANH_BITS 8
#define SIGMOID_BITS 7

static inline parameters parameters_of(unsigned bits, unsigned k)
{
    return (parameters){
        (int)bits,
        all16((15u << bits) >> k),
        all16((((255u << (16u - bits)) / 15u) << k) - 1u),
        all16(((k + 1u) >> 1) << (bits - 1u)),
        all16((k >> 1) << (bits - 2u)),
    };
}

static inline ulanes16 sign_of_each(lanes16 v)
{
    return (ulanes16)(v >> 15);
}

static inline ulanes16 with_sign(ulanes16 v, ulanes16 sign)
{
    return (v ^ sign) - sign;
}

static inline uint32_t pair_at(uint64_t index)
{
    uint32_t pair;
    __builtin_memcpy(&pair, &edgetqs_sigmoid_table[index], sizeof pair);
    return pair;
}

/* Two neighbouring entries in each of four lanes. A gather takes longer. */
static inline fours32 four_pairs(uint64_t indices)
{
    return (fours32){pair_at(indices & 0xFFFF), pair_at(indices >> 16 & 0xFFFF), pair_at(indices >> 32 & 0xFFFF),
                     pair_at(indices >> 48)};
}

static inline lanes16 entries_low(ulanes64 indices)
{
#if VECTOR == 32
    return (lanes16)_mm256_set_m128i((__m128i)four_pairs(indices[2]), (__m128i)four_pairs(indices[0]));
#else
    return (lanes16)four_pairs(indices[0]);
#endif
}

static inline lanes16 entries_high(ulanes64 indices)
{
#if VECTOR == 32
    return (lanes16)_mm256_set_m128i((__m128i)four_pairs(indices[3]), (__m128i)four_pairs(indices[1]));
#else
    return (lanes16)four_pairs(indices[1]);
#endif
}

/* The value at a z with that magnitude and sign, less the value at 0, without the sign. */
static inline ulanes16 interpolated(ulanes16 u, ulanes16 sign, parameters p)
{
    ulanes16 rounding = (sign & p.minus) | (~sign & p.plus);
    ulanes16 fraction = averaged(u * p.factor, rounding) >> (p.bits - 1);
    ulanes16 rest = all16(1u << (16 - p.bits)) - fraction;
    ulanes64 e = (ulanes64)upper_products(u, p.factor);
    ulanes32 low = pair_products(entries_low(e), pairs_low((lanes16)rest, (lanes16)fraction));
    ulanes32 high = pair_products(entries_high(e), pairs_high((lanes16)rest, (lanes16)fraction));
    const int by = p.bits == TANH_BITS ? 8 : 10;
    return (ulanes16)narrowed(rounded(low, by), rounded(high, by));
}

static inline lanes16 tanh_of(ulanes16 u, ulanes16 sign, parameters p)
{
    return (lanes16)with_sign(interpolated(smaller(u, p.most), sign, p), sign);
}

static inline lanes16 sigmoid_of(ulanes16 u, ulanes16 sign, parameters p)
{
    return (lanes16)(with_sign(interpolated(u, sign, p), sign) + all16(1u << 14));
}

CELLS(void, sigmoid)(int16_t *values, unsigned count)
{
    const parameters p = parameters_of(SIGMOID_BITS, 2);
    for (unsigned k = 0; k < count; k += VALUES) {
        lanes16 z = load_some(values + k, count - k);
        ulanes16 sign = sign_of_each(z);
        store_some(values + k, sigmoid_of(with_sign((ulanes16)z, sign), sign, p), count - k);
    }
}

CELLS(void, sigmoid_wide)(int16_t *values, unsigned count, unsigned table_shift)
{
    const parameters p = parameters_of(SIGMOID_BITS, table_shift - 11u);
    for (unsigned k = 0; k < count; k += VALUES) {
        lanes16 z = load_some(values + k, count - k);
        ulanes16 sign = sign_of_each(z);
        store_some(values + k, sigmoid_of(smaller(with_sign((ulanes16)z, sign), p.most), sign, p), count - k);
    }
}

static inline lanes16 tanh_of_z(lanes16 z, parameters p)
{
    ulanes16 sign = sign_of_each(z);
    return tanh_of(with_sign((ulanes16)z, sign), sign, p);
}

CELLS(void, tanh)(int16_t *values, unsigned count, unsigned table_shift)
{
    const parameters p = parameters_of(TANH_BITS, table_shift - 11u);
    for (unsigned k = 0; k < count; k += VALUES) {
        store_some(values + k, tanh_of_z(load_some(values + k, count - k), p), count - k);
    }
}

/* ---- Cells ---- */

/* gate * value / 2^(shift + 1), see edgetqs_cells.c; of the lower and of the upper lanes. */
static inline ulanes32 gated_low(lanes16 gate, lanes16 value, int shift)
{
    ulanes32 product = pair_products(pairs_low(gate, (lanes16)all16(2)), pairs_low(value, value >> 15));
    return shifted(product + all32((1u << shift) + 1u), shift + 1);
}

static inline ulanes32 gated_high(lanes16 gate, lanes16 value, int shift)
{
    ulanes32 product = pair_products(pairs_high(gate, (lanes16)all16(2)), pairs_high(value, value >> 15));
    return shifted(product + all32((1u << shift) + 1u), shift + 1);
}

/* gate * value / 2^15, which fits. */
static inline lanes16 gated(lanes16 gate, lanes16 value)
{
    return narrowed(gated_low(gate, value, 14), gated_high(gate, value, 14));
}

/* A cell state's magnitude as tanh reads it, at 5*2^-13: times 52429 / 2^(cell_bits + 5), or more than tanh counts. */
static inline ulanes16 scaled(ulanes16 magnitude, unsigned cell_bits)
{
    const ulanes16 factor = all16(52429);
    lanes16 lower = (lanes16)(magnitude * factor);
    lanes16 upper = (lanes16)upper_products(magnitude, factor);
    ulanes32 low = rounded((ulanes32)pairs_low(lower, upper), (int)cell_bits + 5);
    ulanes32 high = rounded((ulanes32)pairs_high(lower, upper), (int)cell_bits + 5);
    return (ulanes16)narrowed(low, high);
}

CELLS(uint32_t, lstm_update)(const int16_t *gates, int16_t *h, int16_t *c, unsigned units, unsigned cell_bits)
{
    const int16_t *i = gates;
    const int16_t *f = gates + units;
    const int16_t *fresh = gates + 2u * units;
    const int16_t *o = gates + 3u * units;
    const int shift = 29 - (int)cell_bits;
    const parameters p = parameters_of(TANH_BITS, 1);
    ulanes32 clipped = all32(0);
    for (unsigned k = 0; k < units; k += VALUES) {
        const unsigned rest = units - k;
        lanes16 cell = load_some(c + k, rest);
        lanes16 forget = load_some(f + k, rest);
        lanes16 in = load_some(i + k, rest);
        lanes16 candidate = load_some(fresh + k, rest);
        ulanes32 low = gated_low(forget, cell, 14) + gated_low(in, candidate, shift);
        ulanes32 high = gated_high(forget, cell, 14) + gated_high(in, candidate, shift);
        clipped |= unfit(low) | unfit(high);
        cell = narrowed(low, high);
        store_some(c + k, cell, rest);
        ulanes16 sign = sign_of_each(cell);
        lanes16 out = tanh_of(scaled(with_sign((ulanes16)cell, sign), cell_bits), sign, p);
        store_some(h + k, gated(load_some(o + k, rest), out), rest);
    }
    return any_unfit(clipped);
}

CELLS(void, gru_reset_add)(int16_t *a, const int16_t *r, const int16_t *b, unsigned units)
{
    for (unsigned k = 0; k < units; k += VALUES) {
        lanes16 product = gated(load_some(r + k, units - k), load_some(b + k, units - k));
        store_some(a + k, saturated_sum(load_some(a + k, units - k), product), units - k);
    }
}

CELLS(void, gru_reset)(int16_t *a, const int16_t *r, const int16_t *b, unsigned units)
{
    for (unsigned k = 0; k < units; k += VALUES) {
        store_some(a + k, gated(load_some(r + k, units - k), load_some(b + k, units - k)), units - k);
    }
}

CELLS(void, gru_update)(const int16_t *z, int16_t *fresh, int16_t *h, unsigned units, unsigned table_shift)
{
    const parameters p = parameters_of(TANH_BITS, table_shift - 11u);
    for (unsigned k = 0; k < units; k += VALUES) {
        const unsigned rest = units - k;
        lanes16 gate = load_some(z + k, rest);
        lanes16 candidate = tanh_of_z(load_some(fresh + k, rest), p);
        lanes16 moved = (lanes16)((ulanes16)candidate - (ulanes16)gated(gate, candidate)); /* towards 0 */
        store_some(h + k, saturated_sum(moved, gated(gate, load_some(h + k, rest))), rest);
    }
}
