/* edgetqs runtime: see edgetqs_rt.h. */
#include "edgetqs_rt.h"

/* Shifting a negative value right is left to the compiler by C99; this runtime
 * needs the arithmetic shift that gcc and clang document. */
typedef char edgetqs_needs_arithmetic_shift[(-1 >> 1) == -1 ? 1 : -1];

/* ---- Rows, portable ---- */

static int32_t dot8(const int8_t *w, const int16_t *x, unsigned columns)
{
    int32_t sum = 0;
    for (unsigned k = 0; k < columns; ++k) {
        sum += (int32_t)w[k] * x[k];
    }
    return sum;
}

typedef struct {
    int32_t first;
    int32_t second;
} pair;

/* Two rows of int4 weights, 16 second + first in a byte. The sum of both wraps on its way. */
static pair dot4(const int8_t *w, const int16_t *x, unsigned columns)
{
    uint32_t both = 0;
    uint32_t second = 0;
    for (unsigned k = 0; k < columns; ++k) {
        both += (uint32_t)(w[k] * x[k]);
        second += (uint32_t)(((w[k] + 8) >> 4) * x[k]);
    }
    return (pair){(int32_t)(both - 16u * second), (int32_t)second};
}

/* Bytes of all weights. */
static unsigned bytes8(const edgetqs_rows *m)
{
    return (unsigned)m->rows * m->columns;
}

static unsigned bytes4(const edgetqs_rows *m)
{
    return (m->rows + 1u) / 2u * m->columns;
}

/* The multipliers lie behind the weights and the biases. */
static const uint32_t *multipliers(const edgetqs_rows *m, unsigned bytes)
{
    return m->stored + (bytes + 3u) / 4u + (m->biased ? m->rows : 0u);
}

static int32_t bias_of(const edgetqs_rows *m, const uint32_t *multiplier, unsigned row)
{
    return m->biased ? (int32_t)(multiplier - m->rows)[row] : 0;
}

/* A row's sum becomes a value of y. */
static inline uint32_t put(const edgetqs_rows *m, const uint32_t *multiplier, unsigned row, int32_t sum, int16_t *y, bool add)
{
    return edgetqs_store(&y[row], edgetqs_requantize(sum + bias_of(m, multiplier, row), multiplier[row]), add);
}

uint32_t edgetqs_rows8(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add)
{
    const int8_t *w = (const void *)m->stored;
    const uint32_t *multiplier = multipliers(m, bytes8(m));
    uint32_t clipped = 0;
    for (unsigned row = 0; row < m->rows; ++row) {
        clipped |= put(m, multiplier, row, dot8(w, x, m->columns), y, add);
        w += m->columns;
    }
    return clipped;
}

uint32_t edgetqs_rows4(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add)
{
    const int8_t *w = (const void *)m->stored;
    const uint32_t *multiplier = multipliers(m, bytes4(m));
    uint32_t clipped = 0;
    unsigned row = 0;
    for (; row + 1u < m->rows; row += 2u) {
        pair sum = dot4(w, x, m->columns);
        clipped |= put(m, multiplier, row, sum.first, y, add);
        clipped |= put(m, multiplier, row + 1u, sum.second, y, add);
        w += m->columns;
    }
    if (row < m->rows) {
        clipped |= put(m, multiplier, row, dot8(w, x, m->columns), y, add);
    }
    return clipped;
}

/* 512 columns keep a partial sum within an int32. */
#define WIDE_CHUNK 512u

static unsigned chunk(unsigned columns)
{
    return columns < WIDE_CHUNK ? columns : WIDE_CHUNK;
}

static int64_t wide_dot8(const int8_t *w, const int16_t *x, unsigned columns)
{
    int64_t sum = 0;
    for (unsigned k = 0; k < columns; k += WIDE_CHUNK) {
        sum += dot8(w + k, x + k, chunk(columns - k));
    }
    return sum;
}

/* factor: multiplier and, from bit 16 on, shift. */
static int32_t requantize_wide(int64_t sum, uint32_t factor)
{
    uint32_t shift = factor >> 16;
    uint64_t magnitude = sum < 0 ? (uint64_t)0 - (uint64_t)sum : (uint64_t)sum;
    int32_t result = (int32_t)((magnitude * (factor & 0xFFFFu) + ((uint64_t)1 << (shift - 1u))) >> shift);
    return sum < 0 ? -result : result;
}

static inline uint32_t put_wide(const edgetqs_rows *m, const uint32_t *factor, unsigned row, int64_t sum, int16_t *y, bool add)
{
    return edgetqs_store(&y[row], requantize_wide(sum + bias_of(m, factor, row), factor[row]), add);
}

uint32_t edgetqs_rows8_wide(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add)
{
    const int8_t *w = (const void *)m->stored;
    const uint32_t *factor = multipliers(m, bytes8(m));
    uint32_t clipped = 0;
    for (unsigned row = 0; row < m->rows; ++row) {
        clipped |= put_wide(m, factor, row, wide_dot8(w, x, m->columns), y, add);
        w += m->columns;
    }
    return clipped;
}

uint32_t edgetqs_rows4_wide(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add)
{
    const int8_t *w = (const void *)m->stored;
    const uint32_t *factor = multipliers(m, bytes4(m));
    uint32_t clipped = 0;
    unsigned row = 0;
    for (; row + 1u < m->rows; row += 2u) {
        int64_t first = 0;
        int64_t second = 0;
        for (unsigned k = 0; k < m->columns; k += WIDE_CHUNK) {
            pair sum = dot4(w + k, x + k, chunk(m->columns - k));
            first += sum.first;
            second += sum.second;
        }
        clipped |= put_wide(m, factor, row, first, y, add);
        clipped |= put_wide(m, factor, row + 1u, second, y, add);
        w += m->columns;
    }
    if (row < m->rows) {
        clipped |= put_wide(m, factor, row, wide_dot8(w, x, m->columns), y, add);
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
