/*
 * Matrix rows on vectors of any width.
 *
 * Layout: blocks of sixteen rows, the rest in blocks of eight, the last one filled
 * up with rows of zeros; columns padded to 4. A block is its weights, its biases,
 * its multipliers. Weights come column by column, in each a word for two rows half
 * a block apart, which holds in its halves
 *   int8, 2 columns  256 second + (first + 128) of column 0; of column 1
 *   int4, 4 columns  16 (second + 8) + (first + 8) of columns 0 and 2, a byte each; of
 *                    columns 1 and 3
 * So one and or one shift widens a vector of weights, at int4 even of two rows at
 * once, 16 second + first, which the first rows' sum then tells apart. The products
 * with x of a lane are added up where they are: nothing goes across lanes. The sum
 * of x takes off the 128s and 8s, once a vector. Sums wrap on their way; what they
 * end with fits.
 */
#include "edgetqs_simd.h"

/* Of a block's first rows, and of its second ones: at int4 16 times those and the first. */
typedef struct {
    ulanes32 first;
    ulanes32 second;
} sums;

#define LOW_BYTE all16(0xFF)
#define LOW_NIBBLE all16(0xF)

/* Keeps gcc from loading twice, from adding up elsewhere first, from moving registers. */
#if defined(EDGETQS_SSE2)
#define IN_REGISTER(vector) __asm__("" : "+x"(vector))
#else
#define IN_REGISTER(vector) ((void)0)
#endif

static inline void add_products(ulanes32 *sum, ulanes16 weights, lanes16 x)
{
    *sum += pair_products((lanes16)weights, x);
    IN_REGISTER(*sum);
}

static inline void add_columns8(sums *s, ulanes16 weights, lanes16 x)
{
    IN_REGISTER(weights);
    add_products(&s->first, weights & LOW_BYTE, x);
    add_products(&s->second, (ulanes16)((lanes16)weights >> 8), x);
}

static inline void add_columns4(sums *s, ulanes16 weights, lanes16 x, lanes16 next)
{
    IN_REGISTER(weights);
    ulanes16 upper = weights >> 8;
    add_products(&s->first, weights & LOW_NIBBLE, x);
    add_products(&s->second, weights & LOW_BYTE, x);
    add_products(&s->first, upper & LOW_NIBBLE, next);
    add_products(&s->second, upper, next);
}

/* What sums begin with. */
static inline sums begin8(uint32_t sum_of_x)
{
    return (sums){all32(0u - 128u * sum_of_x), all32(0)};
}

static inline sums begin4(uint32_t sum_of_x)
{
    return (sums){all32(0u - 8u * sum_of_x), all32(0u - 136u * sum_of_x)};
}

static inline sums apart4(sums s)
{
    return (sums){s.first, shifted(s.second - s.first, 4)};
}
