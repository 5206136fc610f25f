/*
 * edgetqs runtime: the integer arithmetic of recurrent forecasters.
 *
 * edgetqs_rt.c     matrix rows, conversion from and to floats, the closed loop
 * edgetqs_cells.c  functions by table, cells
 * edgetqs_gates.c  functions without a table
 * edgetqs_softmax.c, edgetqs_normalize.c  functions of a whole vector
 * edgetqs_dsp.c    matrix rows for cores with SMLAD (Cortex-M4, M7, M33 ...)
 * edgetqs_thumb2.c matrix rows for Cortex-M3
 * edgetqs_thumb1.c matrix rows for Cortex-M0, with cells of their own
 * edgetqs_mve.c    matrix rows for cores with Helium (Cortex-M55 ...), with cells of their own
 * edgetqs_simd.c   matrix rows for x86-64, with cells of their own
 * edgetqs_neon.c   matrix rows for aarch64, with cells of their own
 *
 * C99, freestanding: no allocation, no recursion, no standard library. Every
 * function computes the same integers as edgetqs/fixedpoint.py and
 * edgetqs/reference.py. Activations are int16, sums int32 (proven to fit when
 * the model was made), weights int8 or int4.
 */
#ifndef EDGETQS_RT_H
#define EDGETQS_RT_H

#include <stdbool.h>
#include <stdint.h>

#define EDGETQS_RT_VERSION 3

/* Vectors that rows are multiplied with start on a word and are padded to a
 * multiple of this many values. */
#define EDGETQS_PAD 8
#define EDGETQS_ALIGNED __attribute__((aligned(4)))

/* In a trace build the harness writes down what was computed; see harness.c. */
#ifdef EDGETQS_TRACE_BUILD
void edgetqs_trace(uint16_t layer, uint16_t what, const int16_t *values, uint16_t count);
#define EDGETQS_TRACE(layer, what, values, count) edgetqs_trace(layer, what, values, count)
#else
#define EDGETQS_TRACE(layer, what, values, count) ((void)0)
#endif

/* ---- Rows of a matrix: y = saturate(round((W x + bias) * multiplier / 2^32)), ties away from zero ----
 *
 * What is stored, and in which layout, is told and decided in edgetqs/layout.py.
 */
typedef struct {
    const uint32_t *stored; /* weights, biases, multipliers (below 2^31) */
    uint16_t rows;
    uint16_t columns;
    bool biased; /* else there are no biases */
} edgetqs_rows;

/* Each gives 0 if no row was clipped to int16, else another number. With add, y
 * is a saturating sum of what it holds and the new value. */
uint32_t edgetqs_rows8(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add);
uint32_t edgetqs_rows4(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add);
uint32_t edgetqs_rows8_dsp(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add);
uint32_t edgetqs_rows4_dsp(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add);
uint32_t edgetqs_rows8_thumb2(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add);
uint32_t edgetqs_rows4_thumb2(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add);
uint32_t edgetqs_rows8_thumb1(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add);
uint32_t edgetqs_rows4_thumb1(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add);
uint32_t edgetqs_rows8_mve(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add);
uint32_t edgetqs_rows4_mve(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add);
uint32_t edgetqs_rows8_simd(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add);
uint32_t edgetqs_rows4_simd(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add);
uint32_t edgetqs_rows8_neon(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add);
uint32_t edgetqs_rows4_neon(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add);
/* For rows whose sums do not fit an int32 or that have multipliers and shifts of their own. */
uint32_t edgetqs_rows8_wide(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add);
uint32_t edgetqs_rows4_wide(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add);

/* ---- Functions by table; table_shift is 13, 12 or 11 for z at 5*2^-14, -13, -12 ---- */
void edgetqs_sigmoid(int16_t *values, unsigned count); /* at 5*2^-14, where z does not pass the table's end */
void edgetqs_sigmoid_wide(int16_t *values, unsigned count, unsigned table_shift);
void edgetqs_tanh(int16_t *values, unsigned count, unsigned table_shift);
void edgetqs_relu(int16_t *values, unsigned count);
/* clip(0.2 z + 0.5, 0, 1) and clip(z / 6 + 0.5, 0, 1), z at 5*2^-z_bits */
void edgetqs_hard_sigmoid_fifth(int16_t *values, unsigned count, unsigned z_bits);
void edgetqs_hard_sigmoid_sixth(int16_t *values, unsigned count, unsigned z_bits);

/* ---- Functions of a whole vector, in place ---- */

/* Logits to shares at 2^-15; multiplier (2^30 to 2^31) and shift (17 to 31) are those of edgetqs/softmax.py. */
void edgetqs_softmax(int16_t *values, unsigned count, uint32_t multiplier, unsigned shift);

/* What each number is, is told in edgetqs/normalization.py. */
typedef struct {
    const int32_t *gamma;
    const int32_t *beta;
    uint64_t epsilon;
    uint16_t count;  /* 1 to 512 */
    uint16_t factor; /* a power of two; count * factor is 257 to 512 */
} edgetqs_normalization;
/* Gives 0 if no value was clipped. */
uint32_t edgetqs_layer_normalize(const edgetqs_normalization *layer, int16_t *values);

/* ---- Cells ---- */

/* gates: i f c o, squashed; c at 2^-cell_bits. Gives 0 if no cell state was clipped. */
uint32_t edgetqs_lstm_update(const int16_t *gates, int16_t *h, int16_t *c, unsigned units, unsigned cell_bits);
/* a = a + r * b (reset_after) and a = r * b */
void edgetqs_gru_reset_add(int16_t *a, const int16_t *r, const int16_t *b, unsigned units);
void edgetqs_gru_reset(int16_t *a, const int16_t *r, const int16_t *b, unsigned units);
/* z: the gate's values, fresh: the candidate's pre-activations. */
void edgetqs_gru_update(const int16_t *z, int16_t *fresh, int16_t *h, unsigned units, unsigned table_shift);

/* The same cells in parts, for activations other than tanh. A mantissa is one of these, of 2^31. */
#define EDGETQS_FIVE_EIGHTHS 1342177280
#define EDGETQS_FOUR_FIFTHS 1717986918
/* values = values * mantissa * 2^shift; gives 0 if nothing was clipped. */
uint32_t edgetqs_rescale(int16_t *values, unsigned count, int32_t mantissa, int shift);
/* gates: i f g o; g at 2^-15 where z_bits is 0, else at 5*2^-z_bits. Gives 0 if no c was clipped. */
uint32_t edgetqs_lstm_cell(const int16_t *gates, int16_t *c, unsigned units, unsigned cell_bits, unsigned z_bits);
/* values within +-limit */
void edgetqs_bound(int16_t *values, unsigned count, int16_t limit);
/* h = o * a / 2^(shift + 1); gives 0 if nothing was clipped. */
uint32_t edgetqs_lstm_output(const int16_t *o, const int16_t *a, int16_t *h, unsigned units, unsigned shift);
/* h = (1 - z) * fresh + z * h */
void edgetqs_gru_mix(const int16_t *z, const int16_t *fresh, int16_t *h, unsigned units);

/* ---- Windows and frames: values that lie one after the other ---- */

/* The window's oldest values make room for the newest. */
void edgetqs_slide(int16_t *window, unsigned size, const int16_t *newest, unsigned count);
/* One frame as a vector that rows are multiplied with: on a word, padded with zeros. */
void edgetqs_frame(int16_t *to, const int16_t *from, unsigned count);
/* The same of `taps` frames by their numbers; -1 is a frame of zeros. */
void edgetqs_gather(int16_t *to, const int16_t *from, const int16_t *sources, unsigned taps, unsigned features);
/* Each frame's largest tap, feature by feature. */
void edgetqs_pool(int16_t *to, const int16_t *from, const int16_t *sources, unsigned frames, unsigned taps, unsigned features);
/* The mean of each frame's taps, halves away from zero. */
void edgetqs_average(int16_t *to, const int16_t *from, const int16_t *sources, unsigned frames, unsigned taps, unsigned features);
/* Frame by frame, na values of a and nb of b. */
void edgetqs_join(int16_t *to, const int16_t *a, unsigned na, const int16_t *b, unsigned nb, unsigned frames);

/* ---- Physical values ---- */
typedef struct {
    float mean;
    float gain;
} edgetqs_channel;

/* q = round((value - mean) * gain), clipped; false, with q untouched, if a value is not finite. */
bool edgetqs_encode(const edgetqs_channel *channels, unsigned count, const float *values, int16_t *q);
/* value = q * gain + mean */
void edgetqs_decode(const edgetqs_channel *channels, unsigned count, const int16_t *q, float *values);

/* ---- Closed loop: x[target] = saturate((y[source] * multiplier + offset) / 2^shift), ties up ---- */
typedef struct {
    uint16_t source;
    uint16_t target;
    int32_t multiplier;
    int64_t offset;
    uint8_t shift;
} edgetqs_loop;
void edgetqs_feed_back(const edgetqs_loop *loop, unsigned count, const int16_t *y, int16_t *x);

void edgetqs_copy(int16_t *to, const int16_t *from, unsigned count);
void edgetqs_clear(int16_t *values, unsigned count);

/* ---- Shared by the row functions ---- */

static inline int16_t edgetqs_saturate(int32_t value)
{
    if (value > 32767) {
        return 32767;
    }
    return value < -32768 ? (int16_t)-32768 : (int16_t)value;
}

/* sum * multiplier / 2^32, ties away from zero; the result fits an int32. */
static inline int32_t edgetqs_requantize(int32_t sum, uint32_t multiplier)
{
    return (int32_t)(((int64_t)sum * (int32_t)multiplier + ((int64_t)1 << 31) + (sum >> 31)) >> 32);
}

/* Stores one row's value; gives a number other than 0 if it was clipped. */
static inline uint32_t edgetqs_store(int16_t *y, int32_t value, bool add)
{
    int16_t clipped = edgetqs_saturate(value);
    *y = add ? edgetqs_saturate((int32_t)*y + clipped) : clipped;
    return (uint32_t)(clipped ^ value);
}

#endif
