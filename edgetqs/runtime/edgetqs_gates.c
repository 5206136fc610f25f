/* edgetqs runtime, functions without a table: see edgetqs_rt.h. */
#include "edgetqs_rt.h"

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

/* ---- Cells in parts ---- */

uint32_t edgetqs_rescale(int16_t *values, unsigned count, int32_t mantissa, int shift)
{
    uint32_t clipped = 0;
    unsigned left = shift > 0 ? (unsigned)shift : 0u;
    unsigned right = shift < 0 ? (unsigned)-shift : 0u;
    for (unsigned k = 0; k < count; ++k) {
        int32_t value = rounding_shift(doubling_high_product((int32_t)values[k] * (1 << left), mantissa), right);
        clipped |= edgetqs_store(&values[k], value, false);
    }
    return clipped;
}

/* a * b / 2^(shift + 1): halved with ties up, then ties away from zero. */
static int32_t multiply(int16_t a, int16_t b, unsigned shift)
{
    return rounding_shift(((int32_t)a * b + 1) >> 1, shift);
}

uint32_t edgetqs_lstm_cell(const int16_t *gates, int16_t *c, unsigned units, unsigned cell_bits, unsigned z_bits)
{
    uint32_t clipped = 0;
    const int16_t *i = gates;
    const int16_t *f = gates + units;
    const int16_t *g = gates + 2u * units;
    for (unsigned k = 0; k < units; ++k) {
        int32_t fresh = 0;
        if (z_bits == 0u) {
            fresh = multiply(i[k], g[k], 29u - cell_bits);
        } else {
            int32_t high = doubling_high_product((int32_t)i[k] * g[k], EDGETQS_FIVE_EIGHTHS);
            fresh = rounding_shift(high, z_bits + 12u - cell_bits);
        }
        int32_t kept = multiply(f[k], c[k], 14);
        clipped |= edgetqs_store(&c[k], (int32_t)edgetqs_saturate(kept) + edgetqs_saturate(fresh), false);
    }
    return clipped;
}

void edgetqs_bound(int16_t *values, unsigned count, int16_t limit)
{
    for (unsigned k = 0; k < count; ++k) {
        if (values[k] > limit) {
            values[k] = limit;
        } else if (values[k] < -limit) {
            values[k] = (int16_t)-limit;
        }
    }
}

uint32_t edgetqs_lstm_output(const int16_t *o, const int16_t *a, int16_t *h, unsigned units, unsigned shift)
{
    uint32_t clipped = 0;
    for (unsigned k = 0; k < units; ++k) {
        clipped |= edgetqs_store(&h[k], multiply(o[k], a[k], shift), false);
    }
    return clipped;
}

void edgetqs_gru_mix(const int16_t *z, const int16_t *fresh, int16_t *h, unsigned units)
{
    for (unsigned k = 0; k < units; ++k) {
        int32_t rest = edgetqs_saturate(fresh[k] - edgetqs_saturate(multiply(z[k], fresh[k], 14)));
        h[k] = edgetqs_saturate(rest + edgetqs_saturate(multiply(z[k], h[k], 14)));
    }
}
