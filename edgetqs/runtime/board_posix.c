/* board.h on Linux: the console is standard output. */
#include "board.h"

#include <stdio.h>
#include <stdlib.h>

void board_uart_init(void)
{
}

void board_putc(char c)
{
    (void)putchar(c);
}

void board_puts(const char *text)
{
    (void)fputs(text, stdout);
}

uint32_t board_stack_peak(void)
{
    return 0;
}
