/*
 * The board side of a build: start-up, UART, stack measurement.
 *
 * board_start.c  reset, faults, stack, time
 * board_uart.c   one driver, chosen by the target file
 * board_mem.c    the memory functions that gcc may call
 *
 * No C library is needed. Interrupts stay as they are after reset: off.
 */
#ifndef EDGETQS_BOARD_H
#define EDGETQS_BOARD_H

#include <stdint.h>

/* ---- UART: 115200 baud, 8 data bits, no parity, one stop bit ---- */

void board_uart_init(void);
void board_putc(char c);              /* waits for room */
void board_puts(const char *text);    /* adds no line end */
void board_put_hex(uint32_t value);   /* 0x and eight digits */
int board_getc(void);                 /* waits for a byte: 0 to 255 */

/* ---- Stack: painted at reset, so that its use can be read off ---- */

/* Bytes used below the stack's top since the last painting, the deepest point
 * counts. Equal to the size set aside: it overflowed. */
uint32_t board_stack_peak(void);
void board_stack_repaint(void);

/* ---- Time ---- */

/* SysTick at the core's clock, counting up. It wraps: subtract two readings and
 * apply the mask. */
#define BOARD_TICKS_MASK 0xFFFFFFu
uint32_t board_ticks(void);

/* ---- The end ---- */

/* What board_exit is called with after a fault. */
#define BOARD_EXIT_FAULT 99

/* In an emulator (EDGETQS_SEMIHOST) ends it with this exit code; on a board
 * sleeps for ever. Called with the value that main returns. */
__attribute__((noreturn)) void board_exit(int code);

#endif
