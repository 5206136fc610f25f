/*
 * The board side of a build: start-up, UART, stack measurement.
 *
 * board_start.c  reset, faults, stack, time
 * board_uart.c   one driver, chosen by the target file
 * board_mem.c    the memory functions that gcc may call
 * board_link.c   restart, image check and clock of the firmware that answers over the UART
 * board_watchdog.c  one driver, chosen by the target file, or none
 * board_posix.c, board_link_posix.c  the same on Linux: standard input and output
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
int board_poll(void);                 /* a byte that has come, or -1 */

/* ---- Stack: painted at reset, so that its use can be read off ---- */

/* Bytes used below the stack's top since the last painting, the deepest point
 * counts. Equal to the size set aside: it overflowed. */
uint32_t board_stack_peak(void);
void board_stack_repaint(void);
uint32_t board_stack_size(void); /* bytes set aside; 0: no limit is known */
int board_stack_intact(void);    /* 0: the words next to the limit were written to */

/* ---- Time ---- */

/* SysTick at the core's clock, counting up. It wraps: subtract two readings and
 * apply the mask. */
#define BOARD_TICKS_MASK 0xFFFFFFu
uint32_t board_ticks(void);

/* What a clock counts. */
#define BOARD_CLOCK_SYSTICK 1u /* 24 bits at the core's clock; in QEMU with -icount, instructions */
#define BOARD_CLOCK_DWT 2u     /* 32 bits: cycles of the core */
#define BOARD_CLOCK_NS 3u      /* 32 bits: nanoseconds */
/* The best clock there is, started by the first call. */
uint32_t board_clock_kind(void);
/* Ticks since a reading of board_clock, which must be less than one turn ago. */
uint32_t board_clock(void);
uint32_t board_clock_since(uint32_t reading);

/* ---- Restarts ---- */

/* Why the program started. */
#define BOARD_POWER_UP 0u
#define BOARD_REQUESTED 1u  /* board_restart */
#define BOARD_FAULTED 2u    /* board_fault: see the record */
#define BOARD_WATCHDOG 3u
#define BOARD_UNEXPECTED 4u /* RAM was in use: a reset pin, a debugger, a watchdog that is not ours */

typedef struct {
    uint32_t cause;     /* why the program started */
    uint32_t exception; /* of a fault: number, place, return address, CFSR */
    uint32_t pc;
    uint32_t lr;
    uint32_t cfsr;
} board_record;

/* Called once, first of all. */
const board_record *board_started(void);
__attribute__((noreturn)) void board_restart(void);
/* A watchdog, where the target names one, restarts a program that does not call
 * board_alive within some seconds. */
void board_watchdog_start(void);
void board_alive(void);
int board_watchdog_was_it(void); /* whether the hardware says that it caused this start */

/* ---- The image, as it was linked, against what is in flash ---- */

typedef struct {
    uint32_t expected; /* CRC-32 */
    uint32_t found;
} board_image;

board_image board_check_image(void);

/* ---- The end ---- */

/* What board_exit is called with after a fault. */
#define BOARD_EXIT_FAULT 99

/* In an emulator (EDGETQS_SEMIHOST) ends it with this exit code; on a board
 * sleeps for ever. Called with the value that main returns. */
__attribute__((noreturn)) void board_exit(int code);

#endif
