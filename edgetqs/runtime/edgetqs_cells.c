/* edgetqs runtime, functions by table and cells: see edgetqs_rt.h. */
#include "edgetqs_rt.h"

/* About 65536 * sigmoid(i / 24). */
static const uint16_t sigmoid_table[256] = {
#include "sigmoid_table.inc"
};

/* ---- Functions by table ---- */

static int32_t table_position(int16_t value, unsigned table_shift)
{
    return ((int32_t)value * 30720 + (1 << (table_shift - 1u))) >> table_shift;
}

static int16_t sigmoid_of(int16_t value, unsigned table_shift)
{
    int32_t position = table_position(value, table_shift);
    uint32_t magnitude = position < 0 ? 0u - (uint32_t)position : (uint32_t)position;
    uint32_t entry = magnitude >> 9;
    uint32_t result = (uint32_t)0x7FFF << 10;
    if (entry < 255u) {
        uint32_t low = sigmoid_table[entry];
        result = (low << 9) + (magnitude & 511u) * (sigmoid_table[entry + 1u] - low);
    }
    result = position >= 0 ? result + 512u : ((uint32_t)1 << 25) - result + 511u;
    return (int16_t)(result >> 10);
}

static int16_t tanh_of(int16_t value, unsigned table_shift)
{
    int32_t position = table_position(value, table_shift);
    uint32_t magnitude = position < 0 ? 0u - (uint32_t)position : (uint32_t)position;
    uint32_t entry = magnitude >> 8;
    int32_t result = 0xFFFF << 8;
    if (entry < 255u) {
        uint32_t low = sigmoid_table[entry];
        result = (int32_t)((low << 8) + (magnitude & 255u) * (sigmoid_table[entry + 1u] - low));
    }
    result -= 1 << 23;
    return (int16_t)((position >= 0 ? result + 128 : 127 - result) >> 8);
}

void edgetqs_sigmoid(int16_t *values, unsigned count, unsigned table_shift)
{
    for (unsigned k = 0; k < count; ++k) {
        values[k] = sigmoid_of(values[k], table_shift);
    }
}

void edgetqs_tanh(int16_t *values, unsigned count, unsigned table_shift)
{
    for (unsigned k = 0; k < count; ++k) {
        values[k] = tanh_of(values[k], table_shift);
    }
}

void edgetqs_relu(int16_t *values, unsigned count)
{
    for (unsigned k = 0; k < count; ++k) {
        values[k] = values[k] < 0 ? 0 : values[k];
    }
}

/* value / 2^shift, ties away from zero. */
static int32_t rounding_shift(int32_t value, unsigned shift)
{
    int32_t half = (1 << shift) >> 1;
    return value < 0 ? -((half - value) >> shift) : (value + half) >> shift;
}

/* value * mantissa / 2^31, ties up. */
static int32_t doubling_high_product(int32_t value, int32_t mantissa)
{
    int64_t product = (int64_t)value * mantissa;
    int64_t half = (int64_t)1 << 30;
    return (int32_t)(product < 0 ? -((half - 1 - product) >> 31) : (product + half) >> 31);
}

/* slope * z, at 2^-16 and clipped to one half, moved up by one half; at 2^-15. */
static int16_t centre(int32_t value)
{
    return edgetqs_saturate(((edgetqs_saturate(value) + 1) >> 1) + (1 << 14));
}

void edgetqs_hard_sigmoid_fifth(int16_t *values, unsigned count, unsigned z_bits)
{
    for (unsigned k = 0; k < count; ++k) {
        values[k] = centre((int32_t)values[k] * (1 << (16u - z_bits)));
    }
}

void edgetqs_hard_sigmoid_sixth(int16_t *values, unsigned count, unsigned z_bits)
{
    for (unsigned k = 0; k < count; ++k) {
        values[k] = centre(rounding_shift(doubling_high_product((int32_t)values[k] * 21845, 1342177280), z_bits - 2u));
    }
}

/* ---- Cells ---- */

/* gate * value / 2^(shift + 1): a halving with ties up, then ties away from zero.
 * A gate is never negative, so no result leaves an int16. */
static int32_t gated(int16_t gate, int16_t value, unsigned shift)
{
    return rounding_shift(((int32_t)gate * value + 1) >> 1, shift);
}

/* The cell state at 2^-cell_bits as tanh reads it, at 5*2^-13: times 0.8 * 2^(11 - cell_bits). */
static int16_t rescale(int16_t c, unsigned cell_bits)
{
    unsigned up = cell_bits < 11u ? 11u - cell_bits : 0u;
    unsigned down = cell_bits > 11u ? cell_bits - 11u : 0u;
    return edgetqs_saturate(rounding_shift(doubling_high_product((int32_t)c * (1 << up), 1717986918), down));
}

uint32_t edgetqs_lstm_update(const int16_t *gates, int16_t *h, int16_t *c, unsigned units, unsigned cell_bits)
{
    const int16_t *i = gates;
    const int16_t *f = gates + units;
    const int16_t *fresh = gates + 2u * units;
    const int16_t *o = gates + 3u * units;
    uint32_t clipped = 0;
    for (unsigned k = 0; k < units; ++k) {
        clipped |= edgetqs_store(&c[k], gated(f[k], c[k], 14) + gated(i[k], fresh[k], 29u - cell_bits), false);
        h[k] = (int16_t)gated(o[k], tanh_of(rescale(c[k], cell_bits), 12), 14);
    }
    return clipped;
}

void edgetqs_gru_reset_add(int16_t *a, const int16_t *r, const int16_t *b, unsigned units)
{
    for (unsigned k = 0; k < units; ++k) {
        a[k] = edgetqs_saturate(a[k] + gated(r[k], b[k], 14));
    }
}

void edgetqs_gru_reset(int16_t *a, const int16_t *r, const int16_t *b, unsigned units)
{
    for (unsigned k = 0; k < units; ++k) {
        a[k] = (int16_t)gated(r[k], b[k], 14);
    }
}

void edgetqs_gru_update(const int16_t *z, int16_t *fresh, int16_t *h, unsigned units, unsigned table_shift)
{
    for (unsigned k = 0; k < units; ++k) {
        int16_t candidate = tanh_of(fresh[k], table_shift);
        int16_t rest = edgetqs_saturate(candidate - gated(z[k], candidate, 14));
        h[k] = edgetqs_saturate(rest + gated(z[k], h[k], 14));
    }
}
