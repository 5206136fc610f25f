/*
 * UART drivers. The target file chooses one:
 *   EDGETQS_UART_CMSDK, _STM32, _STM32L4, _NRF51 or _RP2040
 *   EDGETQS_UART_BASE      address of its registers
 *   EDGETQS_UART_CLOCK_HZ  clock that its baud rate is divided from
 *   EDGETQS_UART_TX, _RX   pins, counted through all ports
 *   EDGETQS_UART_FUNCTION  what connects the pins to it, where that is a choice
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

#elif defined(EDGETQS_UART_STM32) || defined(EDGETQS_UART_STM32L4)
/* STM32: pins, then the two kinds of USART. */

#ifdef EDGETQS_UART_STM32 /* ST RM0090, 7.3 RCC, 8.4 GPIO and 30.6 USART registers; RM0390 has the same */

#define GPIO 0x40020000u
#define GPIO_CLOCKS REGISTER(0x40023830u) /* RCC_AHB1ENR */
#if EDGETQS_UART_BASE == 0x40011000 /* USART1 */
#define UART_CLOCKS REGISTER(0x40023844u) /* RCC_APB2ENR */
#define UART_CLOCK_BIT 4
#elif EDGETQS_UART_BASE == 0x40004400 /* USART2 */
#define UART_CLOCKS REGISTER(0x40023840u) /* RCC_APB1ENR */
#define UART_CLOCK_BIT 17
#else
#error "the stm32 UART driver knows the clock enable bits of USART1 and USART2 only"
#endif

#define STATE UART(0x00u)
#define RECEIVED UART(0x04u)
#define TRANSMIT UART(0x04u)
#define BRR UART(0x08u)
#define CR1 UART(0x0Cu)
#define CR1_RE_TE_UE ((1u << 2) | (1u << 3) | (1u << 13))
#define DIVIDER ((EDGETQS_UART_CLOCK_HZ + BAUD / 2u) / BAUD) /* at 16 samples a bit */

#else /* ST RM0432: RCC, PWR, GPIO and LPUART registers; stm32l4r5xx.h: RCC_BASE, PWR_BASE, GPIOA_BASE, LPUART1_BASE */

#define GPIO 0x48000000u
#define GPIO_CLOCKS REGISTER(0x4002104Cu) /* RCC_AHB2ENR */
#define UART_CLOCKS REGISTER(0x4002105Cu) /* RCC_APB1ENR2 */
#define UART_CLOCK_BIT 0
#if EDGETQS_UART_BASE != 0x40008000
#error "the stm32l4 UART driver knows LPUART1 only: its clock enable bit and its divider"
#endif
#if EDGETQS_UART_CLOCK_HZ > 16000000
#error "256 times the clock must fit 32 bits"
#endif

#define STATE UART(0x1Cu) /* ISR */
#define ICR UART(0x20u)
#define RECEIVED UART(0x24u)
#define TRANSMIT UART(0x28u)
#define BRR UART(0x0Cu)
#define CR1 UART(0x00u)
#define CR1_RE_TE_UE ((1u << 2) | (1u << 3) | (1u << 0))
#define STATE_ORE (1u << 3)
#define ICR_ORECF (1u << 3)
#define DIVIDER ((EDGETQS_UART_CLOCK_HZ * 256u + BAUD / 2u) / BAUD)

#define PORT_G 6u /* has a supply of its own, VDDIO2 */
#define RCC_APB1ENR1 REGISTER(0x40021058u)
#define RCC_APB1ENR1_PWREN (1u << 28)
#define PWR_CR2 REGISTER(0x40007004u)
#define PWR_CR2_IOSV (1u << 9)

#endif

#define STATE_RXNE (1u << 5)
#define STATE_TXE (1u << 7)
#define MODE_ALTERNATE 2u

static void connect(uint32_t pin)
{
    const uint32_t port = pin / 16u;
    const uint32_t line = pin % 16u;
    const uint32_t registers = GPIO + 0x400u * port;
    volatile uint32_t *const mode = &REGISTER(registers);
    volatile uint32_t *const function = &REGISTER(registers + 0x20u + 4u * (line / 8u));

    GPIO_CLOCKS |= 1u << port;
    (void)GPIO_CLOCKS; /* the clock takes two cycles to arrive */
    *function = (*function & ~(0xFu << (line % 8u * 4u))) | (EDGETQS_UART_FUNCTION << (line % 8u * 4u));
    *mode = (*mode & ~(3u << (line * 2u))) | (MODE_ALTERNATE << (line * 2u));
}

void board_uart_init(void)
{
#ifdef EDGETQS_UART_STM32L4
    if (EDGETQS_UART_TX / 16u == PORT_G) {
        RCC_APB1ENR1 |= RCC_APB1ENR1_PWREN;
        (void)RCC_APB1ENR1;
        PWR_CR2 |= PWR_CR2_IOSV;
    }
#endif
    UART_CLOCKS |= 1u << UART_CLOCK_BIT;
    (void)UART_CLOCKS;
    connect(EDGETQS_UART_TX);
    connect(EDGETQS_UART_RX);
    CR1 = 0u;
    BRR = DIVIDER;
    CR1 = CR1_RE_TE_UE;
}

void board_putc(char c)
{
    while ((STATE & STATE_TXE) == 0u) {
    }
    TRANSMIT = (uint8_t)c;
}

/* On the older kind, reading the state and then the byte also ends an overrun. */
int board_poll(void)
{
#ifdef EDGETQS_UART_STM32L4
    if ((STATE & STATE_ORE) != 0u) {
        ICR = ICR_ORECF;
    }
#endif
    return (STATE & STATE_RXNE) != 0u ? (int)(RECEIVED & 0xFFu) : -1;
}

#elif defined(EDGETQS_UART_NRF51)
/* Nordic nRF51 Series Reference Manual v3.0, 14 GPIO, 29 UART. The nRF52840 has the same (Product Specification, UART,
 * deprecated there but complete), and a second port. */

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
#define GPIO(pin, offset) REGISTER(0x50000000u + 0x300u * ((pin) / 32u) + (offset))
#define OUTSET 0x508u
#define PIN_CNF(pin) (0x700u + 4u * ((pin) % 32u))
#define CNF_OUTPUT 3u /* input buffer off */
#define CNF_INPUT 0u

void board_uart_init(void)
{
    GPIO(EDGETQS_UART_TX, OUTSET) = 1u << (EDGETQS_UART_TX % 32u);
    GPIO(EDGETQS_UART_TX, PIN_CNF(EDGETQS_UART_TX)) = CNF_OUTPUT;
    GPIO(EDGETQS_UART_RX, PIN_CNF(EDGETQS_UART_RX)) = CNF_INPUT;
    PSELTXD = EDGETQS_UART_TX;
    PSELRXD = EDGETQS_UART_RX;
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

#elif defined(EDGETQS_UART_RP2040)
/* RP2040 data sheet, 2.14 Resets, 2.15 Clocks, 2.19 GPIO, 4.2 UART (Arm PL011). */

#if EDGETQS_UART_BASE != 0x40034000
#error "the rp2040 UART driver knows UART0 only: its reset bit"
#endif

#define SET(address) REGISTER((address) + 0x2000u) /* ones written there set bits */
#define CLEAR(address) REGISTER((address) + 0x3000u)
#define RESETS 0x4000C000u
#define RESET_DONE REGISTER(RESETS + 8u)
#define CLK_PERI_CTRL REGISTER(0x40008048u)
#define GPIO_CTRL(pin) REGISTER(0x40014004u + 8u * (pin))
#define DR UART(0x00u)
#define FR UART(0x18u)
#define IBRD UART(0x24u)
#define FBRD UART(0x28u)
#define LCR_H UART(0x2Cu)
#define CR UART(0x30u)

#define RESET_IO_BANK0 (1u << 5)
#define RESET_PADS_BANK0 (1u << 8)
#define RESET_UART0 (1u << 22)
#define NEEDED (RESET_IO_BANK0 | RESET_PADS_BANK0 | RESET_UART0)
#define CLK_PERI_ENABLE_FROM_CLK_SYS (1u << 11)
#define FR_RXFE (1u << 4)
#define FR_TXFF (1u << 5)
#define LCR_H_8_BITS_FIFOS ((3u << 5) | (1u << 4))
#define CR_UARTEN_TXE_RXE ((1u << 0) | (1u << 8) | (1u << 9))
#define DIVIDER_64THS ((EDGETQS_UART_CLOCK_HZ * 4u + BAUD / 2u) / BAUD)

void board_uart_init(void)
{
    CLK_PERI_CTRL = CLK_PERI_ENABLE_FROM_CLK_SYS;
    SET(RESETS) = RESET_UART0; /* a restart of the core alone leaves it running */
    CLEAR(RESETS) = NEEDED;
    while ((RESET_DONE & NEEDED) != NEEDED) {
    }
    GPIO_CTRL(EDGETQS_UART_TX) = EDGETQS_UART_FUNCTION;
    GPIO_CTRL(EDGETQS_UART_RX) = EDGETQS_UART_FUNCTION;
    IBRD = DIVIDER_64THS / 64u;
    FBRD = DIVIDER_64THS % 64u;
    LCR_H = LCR_H_8_BITS_FIFOS;
    CR = CR_UARTEN_TXE_RXE;
}

void board_putc(char c)
{
    while ((FR & FR_TXFF) != 0u) {
    }
    DR = (uint8_t)c;
}

int board_poll(void)
{
    return (FR & FR_RXFE) == 0u ? (int)(DR & 0xFFu) : -1;
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
