/* Multiplies with the rows in harness.in, which test_rows.py writes: words that say what comes (see below), then the
 * stored words, x as it is padded and what y holds. Back come the values of y and whether one was clipped. The calls
 * themselves are counted. */
#include "edgetqs_rt.h"
#include "port.h"

#define MOST_WORDS 2048u
#define MOST_COLUMNS 128u
#define MOST_ROWS 128u

static uint32_t stored[MOST_WORDS];
static int16_t x[MOST_COLUMNS] EDGETQS_ALIGNED;
static int16_t y[MOST_ROWS + 1u] EDGETQS_ALIGNED;

typedef uint32_t product(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add);

static product *const functions[2][2] = {{edgetqs_rows4, edgetqs_rows8}, {ROWS4, ROWS8}};

enum { WIDTH, OWN, ROWS, COLUMNS, BIASED, ADD, STORED, WORDS };

__attribute__((noinline, used)) void edgetqs_count_begin(void)
{
    __asm__ volatile("" ::: "memory");
}

__attribute__((noinline, used)) void edgetqs_count_end(void)
{
    __asm__ volatile("" ::: "memory");
}

int main(void)
{
    uint32_t words[WORDS];
    if (port_open() != 0) {
        port_exit(2);
    }
    while (port_read(words, sizeof words) == sizeof words) {
        uint32_t padded = (words[COLUMNS] + EDGETQS_PAD - 1u) / EDGETQS_PAD * EDGETQS_PAD;
        if (words[STORED] > MOST_WORDS || padded > MOST_COLUMNS || words[ROWS] > MOST_ROWS) {
            port_exit(3);
        }
        (void)port_read(stored, 4u * words[STORED]);
        (void)port_read(x, 2u * padded);
        (void)port_read(y, 2u * words[ROWS]);
        edgetqs_rows m = {stored, (uint16_t)words[ROWS], (uint16_t)words[COLUMNS], words[BIASED] != 0u};
        bool add = words[ADD] != 0u;
        product *multiply = functions[words[OWN] != 0u][words[WIDTH] == 8u];
        edgetqs_count_begin();
        uint32_t clipped = multiply(&m, x, y, add);
        edgetqs_count_end();
        y[words[ROWS]] = clipped != 0u;
        port_write(y, 2u * (words[ROWS] + 1u));
    }
    port_exit(0);
}
