/*
 * What a chip wants before main: a clock that is exact enough for a UART. The target file chooses one:
 * EDGETQS_CHIP_STM32L4, EDGETQS_CHIP_NRF5 or EDGETQS_CHIP_RP2040. Runs once; variables are ready, the UART is not.
 */
#include "board.h"

#define REGISTER(address) (*(volatile uint32_t *)(address))

void board_chip_start(void);

#if defined(EDGETQS_CHIP_STM32L4)
/* ST RM0432, 6.4 RCC registers. Reset leaves the core at 4 MHz from the MSI oscillator, which drifts by more than a
 * UART bears; HSI16 is four times as fast, trimmed to 1 %, and needs no wait states in the voltage range of reset. */

#define RCC_CR REGISTER(0x40021000u)
#define RCC_CFGR REGISTER(0x40021008u)
#define CR_HSION (1u << 8)
#define CR_HSIRDY (1u << 10)
#define CFGR_SW_MASK 3u
#define CFGR_SW_HSI16 1u
#define CFGR_SWS_SHIFT 2

void board_chip_start(void)
{
    RCC_CR |= CR_HSION;
    while ((RCC_CR & CR_HSIRDY) == 0u) {
    }
    RCC_CFGR = (RCC_CFGR & ~CFGR_SW_MASK) | CFGR_SW_HSI16;
    while (((RCC_CFGR >> CFGR_SWS_SHIFT) & CFGR_SW_MASK) != CFGR_SW_HSI16) {
    }
}

#elif defined(EDGETQS_CHIP_NRF5)
/* Nordic nRF51 Series Reference Manual v3.0, 13 CLOCK; nRF52840 Product Specification, CLOCK: the same registers. The
 * core's speed stays; the crystal makes it, and the UART's, exact. */

#define TASKS_HFCLKSTART REGISTER(0x40000000u)
#define EVENTS_HFCLKSTARTED REGISTER(0x40000100u)

void board_chip_start(void)
{
    EVENTS_HFCLKSTARTED = 0u;
    TASKS_HFCLKSTART = 1u;
    while (EVENTS_HFCLKSTARTED == 0u) {
    }
}

#elif defined(EDGETQS_CHIP_RP2040)
/* RP2040 data sheet, 2.15 Clocks, 2.16 XOSC. Reset leaves the cores on a ring oscillator of 4 to 8 MHz; the crystal has
 * 12 MHz. clk_sys follows clk_ref. */

#define XOSC_CTRL REGISTER(0x40024000u)
#define XOSC_STATUS REGISTER(0x40024004u)
#define XOSC_STARTUP REGISTER(0x4002400Cu)
#define CLK_REF_CTRL REGISTER(0x40008030u)
#define CLK_REF_SELECTED REGISTER(0x40008038u)

#define XOSC_CTRL_ENABLE_1_15MHZ ((0xFABu << 12) | 0xAA0u)
#define XOSC_STATUS_STABLE (1u << 31)
#define XOSC_STARTUP_1_MS 47u /* of 256 cycles each */
#define CLK_REF_XOSC 2u

void board_chip_start(void)
{
    XOSC_STARTUP = XOSC_STARTUP_1_MS;
    XOSC_CTRL = XOSC_CTRL_ENABLE_1_15MHZ;
    while ((XOSC_STATUS & XOSC_STATUS_STABLE) == 0u) {
    }
    CLK_REF_CTRL = CLK_REF_XOSC;
    while ((CLK_REF_SELECTED & (1u << CLK_REF_XOSC)) == 0u) {
    }
}

#else
#error "no chip chosen: see the top of this file"
#endif
