/*
 * What the test harness needs from the place where it runs.
 *
 * port_semihost.c  a Cortex-M in an emulator: files through semihosting
 * port_posix.c     Linux, here or on a Raspberry Pi
 *
 * Input and output are the files harness.in and harness.out of the current
 * folder. An input or output error that is not the end of a file ends the
 * program with PORT_EXIT_IO.
 */
#ifndef EDGETQS_PORT_H
#define EDGETQS_PORT_H

#include <stddef.h>
#include <stdint.h>

#define PORT_EXIT_IO 98

int port_open(void);                            /* 0, or -1: a file cannot be opened */
size_t port_read(void *to, size_t count);       /* bytes read; fewer than asked for: the end */
void port_write(const void *from, size_t count);
void port_log(const char *text);                /* for people; adds no line end */
__attribute__((noreturn)) void port_exit(int code);

/* Ticks of the core's clock; subtract two readings and apply the mask. Always 0
 * on Linux. */
#define PORT_TICKS_MASK 0xFFFFFFu
uint32_t port_ticks(void);

/* Bytes of stack used since the last painting, from its top to the deepest
 * point. Always 0 on Linux. */
uint32_t port_stack_peak(void);
void port_stack_repaint(void);

#endif
