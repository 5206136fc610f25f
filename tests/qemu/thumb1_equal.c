/* Whether the assembly for ARMv6-M computes what the same functions do in C, whose names begin with c_ here. Exit
 * code 0, or the number of the check that failed first. */
#include "equal.h"

uint32_t c_edgetqs_rows8_thumb1(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add);
uint32_t c_edgetqs_rows4_thumb1(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add);

#define MANY 512u
#define GUARD 4u

static int16_t gates[4u * MANY];
static int16_t state[2][2][MANY + GUARD]; /* by the assembly, by the C; h and c */
static uint32_t words[512];

static bool same_states(void)
{
    return same(state[0][0], state[1][0], MANY + GUARD) && same(state[0][1], state[1][1], MANY + GUARD);
}

/* The values from start on, of which there are MANY, in all four vectors. */
static void count_up(uint32_t start)
{
    for (unsigned k = 0; k < MANY; ++k) {
        int16_t v = (int16_t)((int32_t)(start + k) - 32768);
        state[0][0][k] = state[0][1][k] = state[1][0][k] = state[1][1][k] = v;
    }
}

static int by_table(void)
{
    for (uint32_t start = 0; start < 65536u; start += MANY) {
        for (unsigned shift = 11; shift <= 13u; ++shift) {
            count_up(start);
            edgetqs_tanh(state[0][0], MANY, shift);
            c_edgetqs_tanh(state[1][0], MANY, shift);
            edgetqs_sigmoid_wide(state[0][1], MANY, shift);
            c_edgetqs_sigmoid_wide(state[1][1], MANY, shift);
            if (!same_states()) {
                return 1;
            }
        }
        count_up(start);
        edgetqs_sigmoid(state[0][0], MANY - 1u);
        c_edgetqs_sigmoid(state[1][0], MANY - 1u);
        edgetqs_sigmoid(state[0][0] + MANY - 1, 1);
        c_edgetqs_sigmoid(state[1][0] + MANY - 1, 1);
        if (!same_states()) {
            return 2;
        }
    }
    return 0;
}

static int lstm(void)
{
    for (unsigned bits = 3; bits <= 11u; ++bits) {
        for (uint32_t start = 0; start < 65536u; start += MANY) { /* every cell state, kept but for its rounding */
            count_up(start);
            for (unsigned k = 0; k < MANY; ++k) {
                gates[k] = 0;
                gates[k + MANY] = gates[k + 3u * MANY] = 32767;
                gates[k + 2u * MANY] = (int16_t)k;
            }
            (void)edgetqs_lstm_update(gates, state[0][0], state[0][1], MANY, bits);
            (void)c_edgetqs_lstm_update(gates, state[1][0], state[1][1], MANY, bits);
            if (!same_states()) {
                return 3;
            }
        }
        for (unsigned round = 0; round < 400u; ++round) {
            unsigned units = 1u + round % 5u;
            fill(gates, gates, 4u * units, gate);
            fill(gates + 2u * units, gates + 2u * units, units, value);
            fill(state[0][0], state[1][0], units + GUARD, value);
            fill(state[0][1], state[1][1], units + GUARD, value);
            for (unsigned k = 0; k < units && round % 2u == 0u; ++k) { /* nothing clips */
                state[0][1][k] = state[1][1][k] = (int16_t)(state[0][1][k] / 4);
                gates[2u * units + k] = (int16_t)(gates[2u * units + k] / 2);
            }
            uint32_t clipped = edgetqs_lstm_update(gates, state[0][0], state[0][1], units, bits);
            uint32_t wanted = c_edgetqs_lstm_update(gates, state[1][0], state[1][1], units, bits);
            if (!same_states() || (clipped != 0u) != (wanted != 0u)) {
                return 4;
            }
        }
    }
    return 0;
}

static int gru(void)
{
    for (unsigned round = 0; round < 3000u; ++round) {
        unsigned units = 1u + round % 5u;
        fill(gates, gates, units, gate);
        fill(gates + units, gates + units, units, value);
        fill(state[0][0], state[1][0], units + GUARD, value);
        fill(state[0][1], state[1][1], units + GUARD, value);
        edgetqs_gru_reset_add(state[0][0], gates, gates + units, units);
        c_edgetqs_gru_reset_add(state[1][0], gates, gates + units, units);
        edgetqs_gru_reset(state[0][1], gates, gates + units, units);
        c_edgetqs_gru_reset(state[1][1], gates, gates + units, units);
        if (!same_states()) {
            return 5;
        }
        fill(state[0][0], state[1][0], units, value);
        fill(state[0][1], state[1][1], units + GUARD, value);
        edgetqs_gru_update(gates, state[0][0], state[0][1], units, 11u + round % 3u);
        c_edgetqs_gru_update(gates, state[1][0], state[1][1], units, 11u + round % 3u);
        if (!same(state[0][1], state[1][1], units + GUARD)) {
            return 6;
        }
    }
    return 0;
}

typedef uint32_t rows_function(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add);

/* Weights without the one value that there is not, small biases, and multipliers among which are powers of two, so
 * that there are ties. */
static void words_of(const edgetqs_rows *m, unsigned width)
{
    unsigned columns = (m->columns + 3u) / 4u * 4u;
    unsigned at = 0;
    for (unsigned row = 0; row < m->rows;) {
        unsigned rows = m->rows - row < 8u ? 1u : 8u;
        for (unsigned k = 0; k < (rows * columns * width + 31u) / 32u; ++k) {
            uint32_t word = any();
            word |= width == 8u ? 0x01010101u : 0x11111111u;
            bool half = width == 4u && rows == 1u && columns % 8u != 0u && k == columns / 8u;
            words[at++] = half ? word & 0xFFFF0000u : word;
        }
        if (width == 4u) {
            words[at++] = 0;
        }
        for (unsigned k = 0; k < (m->biased ? rows : 0u); ++k) {
            words[at++] = (any() & 0xFFFFFu) - 0x80000u;
        }
        for (unsigned k = 0; k < rows; ++k) {
            uint32_t bits = any();
            uint32_t shift = 1u + (bits >> 16) % 17u;
            uint32_t multiplier = (bits & 0x10000000u) != 0u ? 1u << (bits & 7u) : bits & 0x7FFFu;
            words[at++] = multiplier << 16 | shift;
        }
        row += rows;
    }
}

static int rows(unsigned width, rows_function *one, rows_function *other)
{
    static int16_t x[48] EDGETQS_ALIGNED;
    unsigned clips = 0;
    unsigned rounds = 0;
    for (uint16_t count = 1; count <= 26u; ++count) {
        for (uint16_t columns = 1; columns <= 42u; ++columns) {
            for (unsigned kind = 0; kind < 8u; ++kind) {
                edgetqs_rows m = {words, count, columns, (kind & 1u) != 0u};
                words_of(&m, width);
                fill(x, x, 48, value);
                for (unsigned k = 0; k < 48u && kind >= 4u; ++k) {
                    x[k] = (int16_t)(x[k] / 256);
                }
                int16_t *a = &state[0][0][kind];
                int16_t *b = &state[1][0][kind];
                fill(a, b, count + GUARD, value);
                uint32_t clipped = one(&m, x, a, (kind & 2u) != 0u);
                uint32_t wanted = other(&m, x, b, (kind & 2u) != 0u);
                if (!same(a, b, count + GUARD) || (clipped != 0u) != (wanted != 0u)) {
                    return (int)(10u + width);
                }
                clips += clipped != 0u;
                ++rounds;
            }
        }
    }
    return clips > rounds / 20u && clips < rounds - rounds / 20u ? 0 : 7;
}

int main(void)
{
    int failed = by_table();
    failed = failed != 0 ? failed : lstm();
    failed = failed != 0 ? failed : gru();
    failed = failed != 0 ? failed : rows(8, edgetqs_rows8_thumb1, c_edgetqs_rows8_thumb1);
    return failed != 0 ? failed : rows(4, edgetqs_rows4_thumb1, c_edgetqs_rows4_thumb1);
}
