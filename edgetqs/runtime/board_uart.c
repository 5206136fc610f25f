/*
 * UART drivers. The target file chooses one:
 *   EDGETQS_UART_CMSDK, EDGETQS_UART_STM32 or EDGETQS_UART_NRF51
 *   EDGETQS_UART_BASE      address of its registers
 *   EDGETQS_UART_CLOCK_HZ  clock that its baud rate is divided from
 * Each driver is three functions: init, putc, poll.
 */
#include "board.h"

#define BAUD 115200u
#define REGISTER(address) (*(volatile uint32_t *)(address))
#define UART(offset) REGISTER(EDGETQS_UART_BASE + (offset))

#if defined(EDGETQS_UART_CMSDK)
/* Arm DDI 0479, Cortex-M System Design Kit TRM, 4.3 APB UART. */

#define DATA UART(0x00u)
#define STATE UART(0x04u)
#define CTRL UART(0x08u)
#define BAUDDIV UART(0x10u) /* at least 16 */

#define STATE_TX_FULL 1u
#define STATE_RX_FULL 2u
#define CTRL_TX_RX_ENABLE 3u

void board_uart_init(void)
{
    BAUDDIV = EDGETQS_UART_CLOCK_HZ / BAUD;
    CTRL = CTRL_TX_RX_ENABLE;
}

void board_putc(char c)
{
    while ((STATE & STATE_TX_FULL) != 0u) {
    }
    DATA = (uint8_t)c;
}

int board_poll(void)
{
    return (STATE & STATE_RX_FULL) != 0u ? (int)(DATA & 0xFFu) : -1;
}

#elif defined(EDGETQS_UART_STM32)
/* ST RM0090, 30.6 USART registers; USART1 on PA9 and PA10, alternate function 7. */

#if EDGETQS_UART_BASE != 0x40011000
#error "the stm32 UART driver knows USART1 only: its pins and its clock enable bit"
#endif

#define RCC_AHB1ENR REGISTER(0x40023830u)
#define RCC_APB2ENR REGISTER(0x40023844u)
#define GPIOA_MODER REGISTER(0x40020000u)
#define GPIOA_AFRH REGISTER(0x40020024u)
#define SR UART(0x00u)
#define DR UART(0x04u)
#define BRR UART(0x08u) /* clock / baud rate, at 16 samples a bit */
#define CR1 UART(0x0Cu)

#define RCC_AHB1ENR_GPIOA (1u << 0)
#define RCC_APB2ENR_USART1 (1u << 4)
#define MODER_PA9_PA10_MASK (0xFu << 18)
#define MODER_PA9_PA10_ALTERNATE (0xAu << 18)
#define AFRH_PA9_PA10_MASK (0xFFu << 4)
#define AFRH_PA9_PA10_USART1 (0x77u << 4)
#define SR_RXNE (1u << 5)
#define SR_TXE (1u << 7)
#define CR1_RE_TE_UE ((1u << 2) | (1u << 3) | (1u << 13))

void board_uart_init(void)
{
    RCC_AHB1ENR |= RCC_AHB1ENR_GPIOA;
    RCC_APB2ENR |= RCC_APB2ENR_USART1;
    GPIOA_AFRH = (GPIOA_AFRH & ~AFRH_PA9_PA10_MASK) | AFRH_PA9_PA10_USART1;
    GPIOA_MODER = (GPIOA_MODER & ~MODER_PA9_PA10_MASK) | MODER_PA9_PA10_ALTERNATE;
    BRR = (EDGETQS_UART_CLOCK_HZ + BAUD / 2u) / BAUD;
    CR1 = CR1_RE_TE_UE;
}

void board_putc(char c)
{
    while ((SR & SR_TXE) == 0u) {
    }
    DR = (uint8_t)c;
}

/* Reading SR and then DR also ends an overrun, which RXNE comes with. */
int board_poll(void)
{
    return (SR & SR_RXNE) != 0u ? (int)(DR & 0xFFu) : -1;
}

#elif defined(EDGETQS_UART_NRF51)
/* Nordic nRF51 Series Reference Manual v3.0, 29 UART; pins of the BBC micro:bit. */

#define TASKS_STARTRX UART(0x000u)
#define TASKS_STARTTX UART(0x008u)
#define EVENTS_RXDRDY UART(0x108u)
#define EVENTS_TXDRDY UART(0x11Cu)
#define ENABLE UART(0x500u)
#define PSELTXD UART(0x50Cu)
#define PSELRXD UART(0x514u)
#define RXD UART(0x518u)
#define TXD UART(0x51Cu)
#define BAUDRATE UART(0x524u)

#define ENABLE_ENABLED 4u
#define BAUDRATE_115200 0x01D7E000u
#define PIN_TXD 24u
#define PIN_RXD 25u

void board_uart_init(void)
{
    PSELTXD = PIN_TXD;
    PSELRXD = PIN_RXD;
    BAUDRATE = BAUDRATE_115200;
    ENABLE = ENABLE_ENABLED;
    TASKS_STARTTX = 1u;
    TASKS_STARTRX = 1u;
}

void board_putc(char c)
{
    EVENTS_TXDRDY = 0u;
    TXD = (uint8_t)c;
    while (EVENTS_TXDRDY == 0u) {
    }
}

int board_poll(void)
{
    if (EVENTS_RXDRDY == 0u) {
        return -1;
    }
    EVENTS_RXDRDY = 0u;
    return (int)(RXD & 0xFFu);
}

#else
#error "no UART driver chosen: see the top of this file"
#endif

int board_getc(void)
{
    int byte;

    do {
        byte = board_poll();
    } while (byte < 0);
    return byte;
}

void board_puts(const char *text)
{
    while (*text != '\0') {
        board_putc(*text++);
    }
}

void board_put_hex(uint32_t value)
{
    int shift;

    board_puts("0x");
    for (shift = 28; shift >= 0; shift -= 4) {
        board_putc("0123456789abcdef"[(value >> shift) & 15u]);
    }
}
