/* edgetqs runtime: see edgetqs_rt.h. */
#include "edgetqs_rt.h"

/* Shifting a negative value right is left to the compiler by C99; this runtime
 * needs the arithmetic shift that gcc and clang document. */
typedef char edgetqs_needs_arithmetic_shift[(-1 >> 1) == -1 ? 1 : -1];

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
