/* Whether the assembly for Helium computes what the same functions do in C, whose names begin with c_ here. Exit
 * code 0, or the number of the check that failed first. */
#include "equal.h"

uint32_t c_edgetqs_rows8_mve(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add);
uint32_t c_edgetqs_rows4_mve(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add);

#define MANY 65536u
#define FEW 48u
#define GUARD 8u

static int16_t mine[MANY];
static int16_t theirs[MANY];
static int16_t gates[4u * 4096u];
static int16_t state[2][2][4096u + GUARD];
static uint32_t words[4096];

static int16_t zero(void)
{
    return 0;
}

static void every(int16_t *values)
{
    for (unsigned k = 0; k < MANY; ++k) {
        values[k] = (int16_t)((int32_t)k - 32768);
    }
}

static int by_table(void)
{
    for (unsigned shift = 11; shift <= 13u; ++shift) {
        every(mine);
        every(theirs);
        edgetqs_tanh(mine, MANY, shift);
        c_edgetqs_tanh(theirs, MANY, shift);
        if (!same(mine, theirs, MANY)) {
            return 1;
        }
        every(mine);
        every(theirs);
        edgetqs_sigmoid_wide(mine, MANY, shift);
        c_edgetqs_sigmoid_wide(theirs, MANY, shift);
        if (!same(mine, theirs, MANY)) {
            return 2;
        }
    }
    every(mine);
    every(theirs);
    edgetqs_sigmoid(mine, MANY);
    c_edgetqs_sigmoid(theirs, MANY);
    if (!same(mine, theirs, MANY)) {
        return 3;
    }
    for (unsigned count = 1; count < FEW; ++count) { /* ends within a vector, and starts anywhere */
        every(mine);
        every(theirs);
        for (unsigned start = 0; start < 4u; ++start) {
            edgetqs_sigmoid(mine + 64u * start + start, count);
            c_edgetqs_sigmoid(theirs + 64u * start + start, count);
            edgetqs_tanh(mine + 64u * start + 1000u, count, 12);
            c_edgetqs_tanh(theirs + 64u * start + 1000u, count, 12);
        }
        if (!same(mine, theirs, 2048)) {
            return 4;
        }
    }
    return 0;
}

static bool same_states(unsigned units)
{
    return same(state[0][0], state[1][0], units + GUARD) && same(state[0][1], state[1][1], units + GUARD);
}

static int lstm(void)
{
    for (unsigned bits = 3; bits <= 11u; ++bits) {
        for (unsigned start = 0; start < MANY; start += 4096u) { /* every cell state, kept but for its rounding */
            for (unsigned k = 0; k < 4096u; ++k) {
                gates[k] = 0;
                gates[k + 4096u] = gates[k + 3u * 4096u] = 32767;
                gates[k + 2u * 4096u] = (int16_t)k;
                state[0][1][k] = state[1][1][k] = (int16_t)((int32_t)(start + k) - 32768);
            }
            (void)edgetqs_lstm_update(gates, state[0][0], state[0][1], 4096, bits);
            (void)c_edgetqs_lstm_update(gates, state[1][0], state[1][1], 4096, bits);
            if (!same_states(4096)) {
                return 10;
            }
        }
        for (unsigned round = 0; round < 400u; ++round) {
            unsigned units = 1u + round % FEW;
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
            if (!same_states(units) || (clipped != 0u) != (wanted != 0u)) {
                return 11;
            }
        }
    }
    return 0;
}

static int gru(void)
{
    for (unsigned round = 0; round < 2000u; ++round) {
        unsigned units = 1u + round % FEW;
        fill(gates, gates, units, gate);
        fill(gates + units, gates + units, units, value);
        fill(state[0][0], state[1][0], units + GUARD, value);
        fill(state[0][1], state[1][1], units + GUARD, value);
        edgetqs_gru_reset_add(state[0][0], gates, gates + units, units);
        c_edgetqs_gru_reset_add(state[1][0], gates, gates + units, units);
        edgetqs_gru_reset(state[0][1], gates, gates + units, units);
        c_edgetqs_gru_reset(state[1][1], gates, gates + units, units);
        if (!same_states(units)) {
            return 20;
        }
        fill(state[0][1], state[1][1], units + GUARD, value);
        fill(theirs, mine, units, value);
        edgetqs_gru_update(gates, mine, state[0][1], units, 11u + round % 3u);
        c_edgetqs_gru_update(gates, theirs, state[1][1], units, 11u + round % 3u);
        if (!same_states(units)) {
            return 21;
        }
    }
    return 0;
}

typedef uint32_t rows_function(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add);

/* Small biases, and multipliers among which are powers of two, so that there are ties. */
static void words_of(const edgetqs_rows *m, unsigned width)
{
    unsigned most = m->columns % 8u > (width == 8u ? 4u : 3u) ? (m->columns + 7u) / 8u * 8u : m->columns;
    unsigned at = 0;
    for (unsigned row = 0; row < m->rows; row += 8u) {
        unsigned rows = m->rows - row < 8u ? m->rows - row : 8u;
        unsigned columns = rows < 8u ? (m->columns + 7u) / 8u * 8u : most;
        for (unsigned k = 0; k < (m->biased ? rows : 0u); ++k) {
            words[at++] = (any() & 0xFFFFFFu) - 0x800000u;
        }
        for (unsigned k = (width == 8u ? rows : (rows + 1u) / 2u) * columns / 4u; k > 0u; --k) {
            words[at++] = any();
        }
        for (unsigned k = 0; k < rows; ++k) {
            uint32_t bits = any();
            words[at++] = (bits & 1u) != 0u ? 1u << (bits >> 3 & 15u) << 11 : bits >> (4u + (bits >> 1 & 7u));
        }
    }
}

static int rows(unsigned width, rows_function *one, rows_function *other)
{
    static int16_t x[64] EDGETQS_ALIGNED;
    unsigned clips = 0;
    unsigned rounds = 0;
    for (uint16_t count = 1; count <= 34u; ++count) {
        for (uint16_t columns = 1; columns <= 42u; ++columns) {
            for (unsigned kind = 0; kind < 4u; ++kind) {
                edgetqs_rows m = {words, count, columns, (kind & 1u) != 0u};
                words_of(&m, width);
                fill(x, x, 64, zero);
                fill(x, x, columns, value);
                int16_t *a = &state[0][0][kind];
                int16_t *b = &state[1][0][kind];
                fill(a, b, count + GUARD, value);
                uint32_t clipped = one(&m, x, a, (kind & 2u) != 0u);
                uint32_t wanted = other(&m, x, b, (kind & 2u) != 0u);
                if (!same(a, b, count + GUARD) || (clipped != 0u) != (wanted != 0u)) {
                    return (int)(20u + width);
                }
                clips += clipped != 0u;
                ++rounds;
            }
        }
    }
    return clips > 0u && clips < rounds ? 0 : 30;
}

int main(void)
{
    int failed = by_table();
    failed = failed != 0 ? failed : lstm();
    failed = failed != 0 ? failed : gru();
    failed = failed != 0 ? failed : rows(8, edgetqs_rows8_mve, c_edgetqs_rows8_mve);
    return failed != 0 ? failed : rows(4, edgetqs_rows4_mve, c_edgetqs_rows4_mve);
}
