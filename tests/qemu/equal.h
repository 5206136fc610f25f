/* What the comparisons of assembly with C share: the C's functions, whose names begin with c_ there, and values to
 * compare them on. */
#ifndef EQUAL_H
#define EQUAL_H

#include "board.h"
#include "edgetqs_rt.h"

void c_edgetqs_sigmoid(int16_t *values, unsigned count);
void c_edgetqs_sigmoid_wide(int16_t *values, unsigned count, unsigned table_shift);
void c_edgetqs_tanh(int16_t *values, unsigned count, unsigned table_shift);
uint32_t c_edgetqs_lstm_update(const int16_t *gates, int16_t *h, int16_t *c, unsigned units, unsigned cell_bits);
void c_edgetqs_gru_reset_add(int16_t *a, const int16_t *r, const int16_t *b, unsigned units);
void c_edgetqs_gru_reset(int16_t *a, const int16_t *r, const int16_t *b, unsigned units);
void c_edgetqs_gru_update(const int16_t *z, int16_t *fresh, int16_t *h, unsigned units, unsigned table_shift);

static uint32_t seed = 1;

static inline uint32_t any(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 17;
    seed ^= seed << 5;
    return seed;
}

/* Values near the ends and near zero are as likely as all others together. */
static inline int16_t value(void)
{
    uint32_t bits = any();
    int32_t small = (int32_t)(bits >> 16 & 7u);
    switch (bits >> 29) {
    case 0:
        return (int16_t)(32767 - small);
    case 1:
        return (int16_t)(small - 32768);
    case 2:
        return (int16_t)(small - 4);
    case 3:
        return (int16_t)((small - 4) * 4096);
    default:
        return (int16_t)((int32_t)(bits & 0xFFFFu) - 32768);
    }
}

static inline int16_t gate(void)
{
    int16_t v = value();
    return v < 0 ? (int16_t)~v : v;
}

static inline void fill(int16_t *a, int16_t *b, unsigned count, int16_t (*draw)(void))
{
    for (unsigned k = 0; k < count; ++k) {
        a[k] = b[k] = draw();
    }
}

static inline bool same(const int16_t *a, const int16_t *b, unsigned count)
{
    for (unsigned k = 0; k < count; ++k) {
        if (a[k] != b[k]) {
            return false;
        }
    }
    return true;
}

#endif
