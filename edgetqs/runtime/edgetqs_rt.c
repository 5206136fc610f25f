/* edgetqs runtime: see edgetqs_rt.h. */
#include "edgetqs_rt.h"

/* Shifting a negative value right is left to the compiler by C99; this runtime
 * needs the arithmetic shift that gcc and clang document. */
typedef char edgetqs_needs_arithmetic_shift[(-1 >> 1) == -1 ? 1 : -1];

/* About 65536 * sigmoid(i / 24). */
static const uint16_t sigmoid_table[256] = {
#include "sigmoid_table.inc"
};

/* ---- Rows, portable ---- */

static int32_t dot8(const int8_t *w, const int16_t *x, unsigned columns, int32_t sum)
{
    for (unsigned k = 0; k < columns; ++k) {
        sum += (int32_t)w[k] * x[k];
    }
    return sum;
}

static int32_t low_nibble(uint8_t pair)
{
    return (int32_t)((pair & 15u) ^ 8u) - 8;
}

static int32_t high_nibble(uint8_t pair)
{
    return (int32_t)(((unsigned)pair >> 4) ^ 8u) - 8;
}

static int32_t dot4(const uint8_t *w, const int16_t *x, unsigned columns, int32_t sum)
{
    unsigned k = 0;
    for (; k + 1u < columns; k += 2u) {
        sum += low_nibble(*w) * x[k] + high_nibble(*w) * x[k + 1u];
        ++w;
    }
    return k < columns ? sum + low_nibble(*w) * x[k] : sum;
}

/* Bytes of a row's weights. */
static unsigned bytes8(const edgetqs_rows *m)
{
    return m->columns;
}

static unsigned bytes4(const edgetqs_rows *m)
{
    return (m->columns + 1u) / 2u;
}

/* The multipliers lie behind the weights and the biases. */
static const uint32_t *multipliers(const edgetqs_rows *m, unsigned row_bytes)
{
    return m->stored + (row_bytes * m->rows + 3u) / 4u + (m->biased ? m->rows : 0u);
}

static int32_t bias_of(const edgetqs_rows *m, const uint32_t *multiplier, unsigned row)
{
    return m->biased ? (int32_t)(multiplier - m->rows)[row] : 0;
}

uint32_t edgetqs_rows8(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add)
{
    const int8_t *w = (const void *)m->stored;
    const uint32_t *multiplier = multipliers(m, bytes8(m));
    uint32_t clipped = 0;
    for (unsigned row = 0; row < m->rows; ++row) {
        int32_t sum = dot8(w, x, m->columns, bias_of(m, multiplier, row));
        clipped |= edgetqs_store(&y[row], edgetqs_requantize(sum, multiplier[row]), add);
        w += bytes8(m);
    }
    return clipped;
}

uint32_t edgetqs_rows4(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add)
{
    const uint8_t *w = (const void *)m->stored;
    const uint32_t *multiplier = multipliers(m, bytes4(m));
    uint32_t clipped = 0;
    for (unsigned row = 0; row < m->rows; ++row) {
        int32_t sum = dot4(w, x, m->columns, bias_of(m, multiplier, row));
        clipped |= edgetqs_store(&y[row], edgetqs_requantize(sum, multiplier[row]), add);
        w += bytes4(m);
    }
    return clipped;
}

/* 512 columns of int8 weights keep a partial sum within an int32. */
#define WIDE_CHUNK 512u

/* factor: multiplier and, from bit 16 on, shift. */
static int32_t requantize_wide(int64_t sum, uint32_t factor)
{
    uint32_t shift = factor >> 16;
    uint64_t magnitude = sum < 0 ? (uint64_t)0 - (uint64_t)sum : (uint64_t)sum;
    int32_t result = (int32_t)((magnitude * (factor & 0xFFFFu) + ((uint64_t)1 << (shift - 1u))) >> shift);
    return sum < 0 ? -result : result;
}

uint32_t edgetqs_rows8_wide(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add)
{
    const int8_t *w = (const void *)m->stored;
    const uint32_t *factor = multipliers(m, bytes8(m));
    uint32_t clipped = 0;
    for (unsigned row = 0; row < m->rows; ++row) {
        int64_t sum = bias_of(m, factor, row);
        for (unsigned k = 0; k < m->columns; k += WIDE_CHUNK) {
            unsigned count = m->columns - k < WIDE_CHUNK ? m->columns - k : WIDE_CHUNK;
            sum += dot8(w + k, x + k, count, 0);
        }
        clipped |= edgetqs_store(&y[row], requantize_wide(sum, factor[row]), add);
        w += bytes8(m);
    }
    return clipped;
}

uint32_t edgetqs_rows4_wide(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add)
{
    const uint8_t *w = (const void *)m->stored;
    const uint32_t *factor = multipliers(m, bytes4(m));
    uint32_t clipped = 0;
    for (unsigned row = 0; row < m->rows; ++row) {
        int64_t sum = bias_of(m, factor, row);
        for (unsigned k = 0; k < m->columns; k += WIDE_CHUNK) {
            unsigned count = m->columns - k < WIDE_CHUNK ? m->columns - k : WIDE_CHUNK;
            sum += dot4(w + k / 2u, x + k, count, 0);
        }
        clipped |= edgetqs_store(&y[row], requantize_wide(sum, factor[row]), add);
        w += bytes4(m);
    }
    return clipped;
}

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

/* ---- Physical values ---- */

static bool is_finite(float value)
{
    union {
        float value;
        uint32_t bits;
    } both;
    both.value = value;
    return (both.bits & 0x7F800000u) != 0x7F800000u;
}

bool edgetqs_encode(const edgetqs_channel *channels, unsigned count, const float *values, int16_t *q)
{
    for (unsigned k = 0; k < count; ++k) {
        if (!is_finite(values[k])) {
            return false;
        }
    }
    for (unsigned k = 0; k < count; ++k) {
        float scaled = (values[k] - channels[k].mean) * channels[k].gain;
        if (scaled >= 32767.0f) {
            q[k] = 32767;
        } else if (scaled <= -32768.0f) {
            q[k] = -32768;
        } else {
            q[k] = (int16_t)(scaled < 0.0f ? -(int32_t)(0.5f - scaled) : (int32_t)(scaled + 0.5f));
        }
    }
    return true;
}

void edgetqs_decode(const edgetqs_channel *channels, unsigned count, const int16_t *q, float *values)
{
    for (unsigned k = 0; k < count; ++k) {
        values[k] = (float)q[k] * channels[k].gain + channels[k].mean;
    }
}

/* ---- Closed loop ---- */

void edgetqs_feed_back(const edgetqs_loop *loop, unsigned count, const int16_t *y, int16_t *x)
{
    for (unsigned k = 0; k < count; ++k) {
        int64_t half = (int64_t)1 << (loop[k].shift - 1u);
        int64_t moved = ((int64_t)y[loop[k].source] * loop[k].multiplier + loop[k].offset + half) >> loop[k].shift;
        x[loop[k].target] = moved > 32767 ? 32767 : moved < -32768 ? (int16_t)-32768 : (int16_t)moved;
    }
}

void edgetqs_copy(int16_t *to, const int16_t *from, unsigned count)
{
    for (unsigned k = 0; k < count; ++k) {
        to[k] = from[k];
    }
}

void edgetqs_clear(int16_t *values, unsigned count)
{
    for (unsigned k = 0; k < count; ++k) {
        values[k] = 0;
    }
}
