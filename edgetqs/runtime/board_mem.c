/*
 * The four functions that gcc may call even in freestanding code (GCC manual,
 * 2.1). Plain words where both sides are aligned, bytes otherwise.
 */
#include <stddef.h>
#include <stdint.h>

/* gcc would recognise the loops and replace them by calls of themselves. */
#ifdef __clang__
#define NOT_RECURSIVE
#else
#define NOT_RECURSIVE __attribute__((optimize("no-tree-loop-distribute-patterns")))
#endif

/* A word that may lie on top of objects of any type. */
typedef uint32_t __attribute__((may_alias)) any_word;

#define WORD sizeof(any_word)

static int aligned(const void *a, const void *b)
{
    return (((uintptr_t)a | (uintptr_t)b) & (WORD - 1u)) == 0u;
}

void *memcpy(void *restrict to, const void *restrict from, size_t count);
void *memmove(void *to, const void *from, size_t count);
void *memset(void *to, int value, size_t count);
int memcmp(const void *left, const void *right, size_t count);

NOT_RECURSIVE void *memcpy(void *restrict to, const void *restrict from, size_t count)
{
    unsigned char *out = to;
    const unsigned char *in = from;

    if (aligned(out, in)) {
        for (; count >= WORD; count -= WORD) {
            *(any_word *)out = *(const any_word *)in;
            out += WORD;
            in += WORD;
        }
    }
    while (count-- > 0u) {
        *out++ = *in++;
    }
    return to;
}

NOT_RECURSIVE void *memmove(void *to, const void *from, size_t count)
{
    unsigned char *out = to;
    const unsigned char *in = from;

    if ((uintptr_t)out - (uintptr_t)in >= count) {
        while (count-- > 0u) { /* out lies below in, or the two do not overlap */
            *out++ = *in++;
        }
    } else {
        while (count-- > 0u) {
            out[count] = in[count];
        }
    }
    return to;
}

NOT_RECURSIVE void *memset(void *to, int value, size_t count)
{
    unsigned char *out = to;
    const unsigned char byte = (unsigned char)value;

    if (aligned(out, out)) {
        for (; count >= WORD; count -= WORD) {
            *(any_word *)out = byte * 0x01010101u;
            out += WORD;
        }
    }
    while (count-- > 0u) {
        *out++ = byte;
    }
    return to;
}

NOT_RECURSIVE int memcmp(const void *left, const void *right, size_t count)
{
    const unsigned char *a = left;
    const unsigned char *b = right;

    for (; count > 0u; count--, a++, b++) {
        if (*a != *b) {
            return (int)*a - (int)*b;
        }
    }
    return 0;
}
