/* The harness's port for a Cortex-M in an emulator. See port.h. */
#include "board.h"
#include "port.h"
#include "semihost.h"

#define FAILED 0xFFFFFFFFu /* -1 */

static uint32_t input;
static uint32_t output;

static uint32_t open_file(const char *name, uint32_t length, uint32_t mode)
{
    const uint32_t block[3] = {(uint32_t)name, mode, length};
    return semihost_call(SEMIHOST_OPEN, block);
}

static void close_file(uint32_t handle)
{
    semihost_call(SEMIHOST_CLOSE, &handle);
}

int port_open(void)
{
    input = open_file("harness.in", sizeof "harness.in" - 1u, SEMIHOST_MODE_RB);
    output = open_file("harness.out", sizeof "harness.out" - 1u, SEMIHOST_MODE_WB);
    return input == FAILED || output == FAILED ? -1 : 0;
}

size_t port_read(void *to, size_t count)
{
    const uint32_t block[3] = {input, (uint32_t)to, count};
    const uint32_t missing = semihost_call(SEMIHOST_READ, block);

    if (missing > count) {
        port_log("port: cannot read harness.in\n");
        port_exit(PORT_EXIT_IO);
    }
    return count - missing;
}

void port_write(const void *from, size_t count)
{
    const uint32_t block[3] = {output, (uint32_t)from, count};

    if (semihost_call(SEMIHOST_WRITE, block) != 0u) {
        port_log("port: cannot write harness.out\n");
        port_exit(PORT_EXIT_IO);
    }
}

void port_log(const char *text)
{
    semihost_call(SEMIHOST_WRITE0, text);
}

void port_exit(int code)
{
    close_file(input);
    close_file(output);
    board_exit(code);
}

uint32_t port_ticks(void)
{
    return board_ticks();
}

uint32_t port_stack_peak(void)
{
    return board_stack_peak();
}

void port_stack_repaint(void)
{
    board_stack_repaint();
}
