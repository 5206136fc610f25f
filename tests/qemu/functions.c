/* Writes what the functions by table and the LSTM's cell give for every int16: sigmoid; sigmoid_wide and tanh by
 * table_shift 11, 12, 13; h and c by cell_bits 3 to 11, with the cell state kept and the output gate open. */
#include "edgetqs_rt.h"
#include "port.h"

#define MANY 512

static int16_t values[MANY];
static int16_t hidden[MANY];
static int16_t gates[4 * MANY];

static void count_up(int32_t start)
{
    for (int32_t k = 0; k < MANY; ++k) {
        values[k] = (int16_t)(start + k);
    }
}

static void lstm(unsigned cell_bits)
{
    for (unsigned k = 0; k < MANY; ++k) {
        gates[k] = gates[k + 2u * MANY] = 0;
        gates[k + MANY] = gates[k + 3u * MANY] = 32767;
    }
    (void)edgetqs_lstm_update(gates, hidden, values, MANY, cell_bits);
    port_write(hidden, sizeof hidden);
}

int main(void)
{
    if (port_open() != 0) {
        port_exit(2);
    }
    for (unsigned what = 0; what < 16u; ++what) {
        for (int32_t start = -32768; start < 32768; start += MANY) {
            count_up(start);
            if (what == 0u) {
                edgetqs_sigmoid(values, MANY);
            } else if (what < 4u) {
                edgetqs_sigmoid_wide(values, MANY, 10u + what);
            } else if (what < 7u) {
                edgetqs_tanh(values, MANY, 7u + what);
            } else {
                lstm(what - 4u);
            }
            port_write(values, sizeof values);
        }
    }
    port_exit(0);
}
