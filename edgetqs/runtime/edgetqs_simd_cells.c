/* Functions by table and cells for x86-64, in place of edgetqs_cells.c: see edgetqs_simd_cells.h. */
#include "edgetqs_simd.h"

/* About 65536 * sigmoid(i / 24) - 32768; the last entry stands twice. */
const int16_t edgetqs_sigmoid_table[257] = {
#include "sigmoid_table.inc"
};

#define CELLS(type, name) static type here_##name
#include "edgetqs_simd_cells.h"

#if defined(EDGETQS_AVX2)
#define BEST(name, ...) (has_avx2() ? edgetqs_avx2_##name(__VA_ARGS__) : here_##name(__VA_ARGS__))
#else
#define BEST(name, ...) here_##name(__VA_ARGS__)
#endif

void edgetqs_sigmoid(int16_t *values, unsigned count)
{
    BEST(sigmoid, values, count);
}

void edgetqs_sigmoid_wide(int16_t *values, unsigned count, unsigned table_shift)
{
    BEST(sigmoid_wide, values, count, table_shift);
}

void edgetqs_tanh(int16_t *values, unsigned count, unsigned table_shift)
{
    BEST(tanh, values, count, table_shift);
}

uint32_t edgetqs_lstm_update(const int16_t *gates, int16_t *h, int16_t *c, unsigned units, unsigned cell_bits)
{
    return BEST(lstm_update, gates, h, c, units, cell_bits);
}

void edgetqs_gru_reset_add(int16_t *a, const int16_t *r, const int16_t *b, unsigned units)
{
    BEST(gru_reset_add, a, r, b, units);
}

void edgetqs_gru_reset(int16_t *a, const int16_t *r, const int16_t *b, unsigned units)
{
    BEST(gru_reset, a, r, b, units);
}

void edgetqs_gru_update(const int16_t *z, int16_t *fresh, int16_t *h, unsigned units, unsigned table_shift)
{
    BEST(gru_update, z, fresh, h, units, table_shift);
}
