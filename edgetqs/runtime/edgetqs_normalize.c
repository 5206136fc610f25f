/* edgetqs runtime, LayerNormalization: see edgetqs_rt.h and edgetqs/normalization.py. */
#include "edgetqs_rt.h"

/* 2^19 / sqrt(64 + k) */
static const uint16_t rsqrt_table[193] = {
#include "rsqrt_table.inc"
};

/* 2^44 / sqrt(mantissa); mantissa has 27 or 28 bits. */
static int32_t reciprocal_root(uint32_t mantissa)
{
    const uint16_t *entry = &rsqrt_table[(mantissa >> 20) - 64u];
    uint32_t fall = (uint32_t)entry[0] - entry[1];
    return (int32_t)(((uint32_t)entry[0] << 15) - fall * ((mantissa >> 5) & 0x7FFFu));
}

uint32_t edgetqs_layer_normalize(const edgetqs_normalization *layer, int16_t *values)
{
    int32_t total = 0;
    uint64_t squares = 0;
    for (unsigned k = 0; k < layer->count; ++k) {
        total += values[k];
        squares += (uint32_t)((int32_t)values[k] * values[k]);
    }
    /* The sum of (size x - offset)^2 is size (size sum(x^2) - factor sum(x)^2). */
    int32_t size = layer->count * (int32_t)layer->factor;
    int32_t offset = total * layer->factor;
    int64_t spread = size * (int64_t)squares - (int64_t)offset * total;
    uint64_t power = (uint64_t)(size * spread) + layer->epsilon;
    int32_t gain = 1;
    while (power >> 58 == 0u) {
        power <<= 2;
        gain *= 2;
    }
    int64_t root = reciprocal_root((uint32_t)(power >> 32));
    uint32_t clipped = 0;
    for (unsigned k = 0; k < layer->count; ++k) {
        int32_t centred = (size * values[k] - offset) * gain;
        int32_t normalized = (int32_t)((centred * root) >> 32);
        int64_t sum = (int64_t)normalized * layer->gamma[k] + (int64_t)layer->beta[k] * 65536;
        clipped |= edgetqs_store(&values[k], (int32_t)((sum + ((int64_t)1 << 31)) >> 32), false);
    }
    return clipped;
}
