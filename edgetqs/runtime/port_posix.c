/* The harness's port for Linux. See port.h. */
#include "port.h"

#include <stdio.h>
#include <stdlib.h>

static FILE *input;
static FILE *output;

int port_open(void)
{
    input = fopen("harness.in", "rb");
    output = fopen("harness.out", "wb");
    return input == NULL || output == NULL ? -1 : 0;
}

size_t port_read(void *to, size_t count)
{
    const size_t got = fread(to, 1, count, input);

    if (ferror(input) != 0) {
        port_log("port: cannot read harness.in\n");
        port_exit(PORT_EXIT_IO);
    }
    return got;
}

void port_write(const void *from, size_t count)
{
    if (fwrite(from, 1, count, output) != count) {
        port_log("port: cannot write harness.out\n");
        port_exit(PORT_EXIT_IO);
    }
}

void port_log(const char *text)
{
    fputs(text, stderr);
}

void port_exit(int code)
{
    FILE *const file = output;

    output = NULL;
    if (file != NULL && fclose(file) != 0 && code == 0) {
        port_log("port: cannot write harness.out\n");
        code = PORT_EXIT_IO;
    }
    exit(code);
}

uint32_t port_ticks(void)
{
    return 0;
}

uint32_t port_stack_peak(void)
{
    return 0;
}

void port_stack_repaint(void)
{
}
