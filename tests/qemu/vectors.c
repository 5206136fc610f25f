/* Runs the functions of a whole vector on what is in harness.in, which test_vectors.py writes: words that say what
 * comes (see below), then rows of int16 values. Every row is written back, after LayerNormalization with a value
 * behind it that tells whether something was clipped. */
#include "edgetqs_rt.h"
#include "port.h"

#define MOST 512u

static int16_t values[MOST + 1u];
static int32_t gamma[MOST];
static int32_t beta[MOST];

/* What words[0] is: 1 softmax, 2 LayerNormalization. */
enum { WHAT, COUNT, ROWS, MULTIPLIER, SHIFT, FACTOR, EPSILON_LOW, EPSILON_HIGH, WORDS };

static void softmax(const uint32_t *words)
{
    for (uint32_t row = 0; row < words[ROWS]; ++row) {
        (void)port_read(values, 2u * words[COUNT]);
        edgetqs_softmax(values, words[COUNT], words[MULTIPLIER], words[SHIFT]);
        port_write(values, 2u * words[COUNT]);
    }
}

static void normalize(const uint32_t *words)
{
    edgetqs_normalization layer = {gamma, beta, words[EPSILON_LOW] | (uint64_t)words[EPSILON_HIGH] << 32,
                                   (uint16_t)words[COUNT], (uint16_t)words[FACTOR]};
    (void)port_read(gamma, 4u * words[COUNT]);
    (void)port_read(beta, 4u * words[COUNT]);
    for (uint32_t row = 0; row < words[ROWS]; ++row) {
        (void)port_read(values, 2u * words[COUNT]);
        values[words[COUNT]] = edgetqs_layer_normalize(&layer, values) != 0u;
        port_write(values, 2u * (words[COUNT] + 1u));
    }
}

int main(void)
{
    uint32_t words[WORDS];
    if (port_open() != 0) {
        port_exit(2);
    }
    while (port_read(words, sizeof words) == sizeof words) {
        if (words[COUNT] > MOST) {
            port_exit(3);
        }
        if (words[WHAT] == 1u) {
            softmax(words);
        } else {
            normalize(words);
        }
    }
    port_exit(0);
}
