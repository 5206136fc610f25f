/*
 * Functions by table and cells on vectors of any width; the arithmetic is explained
 * in edgetqs_cells.c. CELLS(type, name) begins a function here; VALUES are computed at
 * a time.
 */

/* ---- Functions by table ---- */

static inline uint32_t pair_at(uint32_t index)
{
    uint32_t pair;
    __builtin_memcpy(&pair, &edgetqs_sigmoid_table[index], sizeof pair);
    return pair;
}

/* Two neighbouring entries a lane; no index is above 255. */
static inline ulanes32 pairs_at(ulanes32 index)
{
#if VECTOR == 32
    return (ulanes32)_mm256_i32gather_epi32((const int *)(const void *)edgetqs_sigmoid_table, (__m256i)index, 2);
#elif defined(EDGETQS_SSE2)
    __m128i i = (__m128i)index;
    return (ulanes32){pair_at((uint32_t)_mm_extract_epi16(i, 0)), pair_at((uint32_t)_mm_extract_epi16(i, 2)),
                      pair_at((uint32_t)_mm_extract_epi16(i, 4)), pair_at((uint32_t)_mm_extract_epi16(i, 6))};
#else
    return (ulanes32){pair_at(index[0]), pair_at(index[1]), pair_at(index[2]), pair_at(index[3])};
#endif
}

static inline ulanes32 interpolated(ulanes32 magnitude, int fraction)
{
    ulanes32 between = magnitude & all32((1u << fraction) - 1u);
    ulanes32 weights = (between << 16) + (all32(1u << fraction) - between);
    return pair_products((lanes16)pairs_at(magnitude >> fraction), (lanes16)weights);
}

static inline ulanes32 position_of(ulanes32 z, int up)
{
    return rounded((z << 4) - z, up);
}

static inline ulanes32 at_most(ulanes32 v, uint32_t most)
{
    ulanes32 above = (ulanes32)((lanes32)v > (lanes32)all32(most));
    return (v & ~above) | (all32(most) & above);
}

/* The function is flat from entry 255 on, and has that same value, rounded, at the position before. */
#define SIGMOID_LAST (255u * 512u - 1u)

/* What is interpolated, with the position's sign. */
static inline ulanes32 sigmoid_of(ulanes32 z, int up)
{
    ulanes32 position = position_of(z, up);
    ulanes32 sign = sign_of(position);
    ulanes32 magnitude = (position ^ sign) - sign;
    if (up < 2) {
        magnitude = at_most(magnitude, SIGMOID_LAST);
    }
    return interpolated(magnitude, 9) ^ sign;
}

static inline lanes16 sigmoid_of_z(lanes16 z, int up)
{
    ulanes32 low = sigmoid_of(wide_low(z), up);
    ulanes32 high = sigmoid_of(wide_high(z), up);
    const ulanes32 centre = all32((1u << 24) + 512u);
    return narrowed(shifted(low + centre, 10), shifted(high + centre, 10));
}

static inline ulanes32 tanh_of(ulanes32 position)
{
    ulanes32 sign = sign_of(position);
    ulanes32 magnitude = at_most((position ^ sign) - sign, 0xFFFF);
    return interpolated(magnitude, 8) ^ sign;
}

static inline lanes16 tanh_of_z(lanes16 z, int up)
{
    return narrowed(rounded(tanh_of(position_of(wide_low(z), up)), 8), rounded(tanh_of(position_of(wide_high(z), up)), 8));
}

static inline void sigmoids(int16_t *values, unsigned count, int up)
{
    for (unsigned k = 0; k < count; k += VALUES) {
        lanes16 z = load_some(values + k, count - k);
        store_some(values + k, sigmoid_of_z(z, up), count - k);
    }
}

CELLS(void, sigmoid)(int16_t *values, unsigned count)
{
    sigmoids(values, count, 2);
}

CELLS(void, sigmoid_wide)(int16_t *values, unsigned count, unsigned table_shift)
{
    sigmoids(values, count, (int)table_shift - 11);
}

CELLS(void, tanh)(int16_t *values, unsigned count, unsigned table_shift)
{
    for (unsigned k = 0; k < count; k += VALUES) {
        store_some(values + k, tanh_of_z(load_some(values + k, count - k), (int)table_shift - 11), count - k);
    }
}

/* ---- Cells ---- */

/* gate * value / 2^(shift + 1), see edgetqs_cells.c; of the lower and of the upper lanes. */
static inline ulanes32 gated_low(lanes16 gate, lanes16 value, int shift)
{
    ulanes32 half = all32((1u << shift) + 1u);
#if defined(EDGETQS_SSE2)
    lanes16 gates = (lanes16)INTRINSIC(unpacklo_epi16)((native)gate, (native)all16(2));
    lanes16 values = (lanes16)INTRINSIC(unpacklo_epi16)((native)value, (native)(value >> 15));
    return shifted(pair_products(gates, values) + half, shift + 1);
#else
    ulanes32 v = wide_low(value);
    return shifted(wide_low(gate) * v + half + (sign_of(v) << 1), shift + 1);
#endif
}

static inline ulanes32 gated_high(lanes16 gate, lanes16 value, int shift)
{
    ulanes32 half = all32((1u << shift) + 1u);
#if defined(EDGETQS_SSE2)
    lanes16 gates = (lanes16)INTRINSIC(unpackhi_epi16)((native)gate, (native)all16(2));
    lanes16 values = (lanes16)INTRINSIC(unpackhi_epi16)((native)value, (native)(value >> 15));
    return shifted(pair_products(gates, values) + half, shift + 1);
#else
    ulanes32 v = wide_high(value);
    return shifted(wide_high(gate) * v + half + (sign_of(v) << 1), shift + 1);
#endif
}

/* gate * value / 2^15, which fits. */
static inline lanes16 gated(lanes16 gate, lanes16 value)
{
    return narrowed(gated_low(gate, value, 14), gated_high(gate, value, 14));
}

/* The cell state as tanh reads it. */
static inline ulanes32 scaled(ulanes32 cell, unsigned cell_bits)
{
#if defined(EDGETQS_SSE2)
    const lanes16 factor = (lanes16)all32(26215u << 16 | 26214u);
    ulanes32 product = pair_products((lanes16)((cell << 16) | (cell & all32(0xFFFF))), factor);
#else
    ulanes32 product = cell * all32(52429);
#endif
    return rounded(product, (int)cell_bits + 5);
}

CELLS(uint32_t, lstm_update)(const int16_t *gates, int16_t *h, int16_t *c, unsigned units, unsigned cell_bits)
{
    const int16_t *i = gates;
    const int16_t *f = gates + units;
    const int16_t *fresh = gates + 2u * units;
    const int16_t *o = gates + 3u * units;
    const int shift = 29 - (int)cell_bits;
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
        low = tanh_of(position_of(scaled(wide_low(cell), cell_bits), 1));
        high = tanh_of(position_of(scaled(wide_high(cell), cell_bits), 1));
        store_some(h + k, gated(load_some(o + k, rest), narrowed(rounded(low, 8), rounded(high, 8))), rest);
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
    for (unsigned k = 0; k < units; k += VALUES) {
        const unsigned rest = units - k;
        lanes16 gate = load_some(z + k, rest);
        lanes16 candidate = tanh_of_z(load_some(fresh + k, rest), (int)table_shift - 11);
        lanes16 moved = (lanes16)((ulanes16)candidate - (ulanes16)gated(gate, candidate)); /* towards 0 */
        store_some(h + k, saturated_sum(moved, gated(gate, load_some(h + k, rest))), rest);
    }
}
