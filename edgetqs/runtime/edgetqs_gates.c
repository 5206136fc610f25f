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
