/* edgetqs runtime, softmax: see edgetqs_rt.h and edgetqs/softmax.py. */
#include "edgetqs_rt.h"

/* exp(-10 + k / 51.2) at 2^-15, corrected for being interpolated */
static const int16_t exp_table[513] = {
#include "exp_table.inc"
};

/* Between low and high, fraction in steps of 1/128. */
static int32_t interpolate(int32_t low, int32_t high, int32_t fraction)
{
    return low + (((high - low) * fraction + 64) >> 7);
}

/* Rounded, ties up. */
__attribute__((noinline)) static int32_t divide(uint32_t numerator, uint32_t denominator)
{
    return (int32_t)((numerator + denominator / 2u) / denominator);
}

/* LiteRT's 1 / (1 + index / 512) at 2^-15, corrected for being interpolated; index 0 to 512. */
static int32_t reciprocal_entry(uint32_t index)
{
    int32_t entry = divide(16777216u, 512u + index);
    if (index < 512u) {
        int32_t interpolated = divide(16777216u + (uint32_t)entry * (513u + index), 2u * (513u + index));
        int32_t above = interpolated - divide(33554432u, 1025u + 2u * index);
        entry -= above < 0 ? -((1 - above) >> 1) : (above + 1) >> 1;
    }
    return entry > 32767 ? 32767 : entry;
}

/* 1 / total as a fraction of its leading power of two; bits is what total has. */
static int32_t reciprocal(uint32_t total, unsigned bits)
{
    uint32_t place = (((total << (31u - bits)) + (1u << 13)) >> 14) - 65536u;
    uint32_t start = place >> 7; /* 512 only with a fraction of 0 */
    return interpolate(reciprocal_entry(start), reciprocal_entry(start + 1u), (int32_t)(place & 127u));
}

/* exp of a logit that is that much below the greatest. */
static int32_t exp_below(int32_t below, uint32_t multiplier, unsigned shift)
{
    int64_t half = (int64_t)1 << (shift - 1u);
    int32_t scaled = (int32_t)(((int64_t)below * (int64_t)multiplier + half) >> shift);
    int32_t place = scaled < -65535 ? 0 : scaled + 65535;
    return interpolate(exp_table[place >> 7], exp_table[(place >> 7) + 1], place & 127);
}

void edgetqs_softmax(int16_t *values, unsigned count, uint32_t multiplier, unsigned shift)
{
    int32_t greatest = values[0];
    for (unsigned k = 1; k < count; ++k) {
        greatest = values[k] > greatest ? values[k] : greatest;
    }
    uint32_t total = 0;
    for (unsigned k = 0; k < count; ++k) {
        int32_t value = exp_below(values[k] - greatest, multiplier, shift);
        values[k] = (int16_t)value;
        total += (uint32_t)value;
    }
    unsigned bits = 0;
    while (total >> bits != 0u) {
        ++bits;
    }
    int32_t scale = reciprocal(total, bits);
    for (unsigned k = 0; k < count; ++k) {
        /* Below 2^30, and bits is 15 or more. */
        int32_t value = (values[k] * scale + (1 << (bits - 2u))) >> (bits - 1u);
        values[k] = edgetqs_saturate(value);
    }
}
