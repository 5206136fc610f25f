/* edgetqs runtime, windows and frames: see edgetqs_rt.h. */
#include "edgetqs_rt.h"

void edgetqs_slide(int16_t *window, unsigned size, const int16_t *newest, unsigned count)
{
    edgetqs_copy(window, window + count, size - count);
    edgetqs_copy(window + (size - count), newest, count);
}

/* Zeros from count values on, up to the padding of vectors that rows are multiplied with. */
static void pad(int16_t *values, unsigned count)
{
    for (; count % EDGETQS_PAD != 0u; ++count) {
        values[count] = 0;
    }
}

void edgetqs_frame(int16_t *to, const int16_t *from, unsigned count)
{
    edgetqs_copy(to, from, count);
    pad(to, count);
}

void edgetqs_gather(int16_t *to, const int16_t *from, const int16_t *sources, unsigned taps, unsigned features)
{
    for (unsigned k = 0; k < taps; ++k) {
        if (sources[k] < 0) {
            edgetqs_clear(to + k * features, features);
        } else {
            edgetqs_copy(to + k * features, from + (unsigned)sources[k] * features, features);
        }
    }
    pad(to, taps * features);
}

void edgetqs_pool(int16_t *to, const int16_t *from, const int16_t *sources, unsigned frames, unsigned taps, unsigned features)
{
    for (unsigned t = 0; t < frames; ++t) {
        for (unsigned k = 0; k < features; ++k) {
            int16_t largest = INT16_MIN;
            for (unsigned tap = 0; tap < taps; ++tap) {
                int16_t value = from[(unsigned)sources[tap] * features + k];
                largest = value > largest ? value : largest;
            }
            to[k] = largest;
        }
        to += features;
        sources += taps;
    }
}

void edgetqs_average(int16_t *to, const int16_t *from, const int16_t *sources, unsigned frames, unsigned taps, unsigned features)
{
    int32_t half = (int32_t)(taps / 2u);
    for (unsigned t = 0; t < frames; ++t) {
        for (unsigned k = 0; k < features; ++k) {
            int32_t sum = 0;
            for (unsigned tap = 0; tap < taps; ++tap) {
                sum += from[(unsigned)sources[tap] * features + k];
            }
            to[k] = (int16_t)((sum > 0 ? sum + half : sum - half) / (int32_t)taps);
        }
        to += features;
        sources += taps;
    }
}

void edgetqs_join(int16_t *to, const int16_t *a, unsigned na, const int16_t *b, unsigned nb, unsigned frames)
{
    for (unsigned t = 0; t < frames; ++t) {
        edgetqs_copy(to, a, na);
        edgetqs_copy(to + na, b, nb);
        to += na + nb;
        a += na;
        b += nb;
    }
}
