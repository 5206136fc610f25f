/*
 * Watchdogs, which the serving firmware starts and feeds. The target file chooses one, or none:
 *   EDGETQS_WATCHDOG_CMSDK, _STM32, _STM32L4 or _NRF51
 *   EDGETQS_WATCHDOG_BASE      address of its registers
 *   EDGETQS_WATCHDOG_CLOCK_HZ  clock that it counts
 * Each driver is three functions: start, alive, and whether the last reset was its.
 */
#include "board.h"

#define SECONDS 8u /* more than the check of a whole flash takes */
#define REGISTER(address) (*(volatile uint32_t *)(address))
#define WATCHDOG(offset) REGISTER(EDGETQS_WATCHDOG_BASE + (offset))

#if defined(EDGETQS_WATCHDOG_CMSDK)
/* Arm DDI 0479, Cortex-M System Design Kit TRM, 4.6 APB watchdog. The first time it
 * runs out it is an NMI, which board_fault takes; the second time it is a reset. */

#define LOAD WATCHDOG(0x000u)
#define CONTROL WATCHDOG(0x008u)
#define INTCLR WATCHDOG(0x00Cu)
#define LOCK WATCHDOG(0xC00u)

#define CONTROL_INTEN_RESEN 3u
#define LOCK_OPEN 0x1ACCE551u

void board_watchdog_start(void)
{
    LOCK = LOCK_OPEN;
    LOAD = EDGETQS_WATCHDOG_CLOCK_HZ * SECONDS;
    CONTROL = CONTROL_INTEN_RESEN;
}

void board_alive(void)
{
    INTCLR = 1u;
}

int board_watchdog_was_it(void)
{
    return 0;
}

#elif defined(EDGETQS_WATCHDOG_STM32) || defined(EDGETQS_WATCHDOG_STM32L4)
/* ST RM0090, 21.4 IWDG registers, 7.3.21 RCC_CSR, 38.16.4 DBGMCU_APB1_FZ; on the STM32L4+ RM0432 has the same
 * registers, RCC_CSR elsewhere. */

#define KR WATCHDOG(0x00u)
#define PR WATCHDOG(0x04u)
#define RLR WATCHDOG(0x08u)
#ifdef EDGETQS_WATCHDOG_STM32
#define RCC_CSR REGISTER(0x40023874u)
#define RCC_CSR_RMVF (1u << 24)
#else
#define RCC_CSR REGISTER(0x40021094u)
#define RCC_CSR_RMVF (1u << 23)
#endif
#define DBGMCU_APB1_FZ REGISTER(0xE0042008u)

#define KR_UNLOCK 0x5555u
#define KR_RELOAD 0xAAAAu
#define KR_START 0xCCCCu
#define PR_256 6u
#define RCC_CSR_IWDGRSTF (1u << 29)
#define DBGMCU_IWDG_STOP (1u << 12) /* while a debugger halts the core */

void board_watchdog_start(void)
{
    DBGMCU_APB1_FZ |= DBGMCU_IWDG_STOP;
    KR = KR_START;
    KR = KR_UNLOCK;
    PR = PR_256;
    RLR = EDGETQS_WATCHDOG_CLOCK_HZ / 256u * SECONDS;
    KR = KR_RELOAD;
}

void board_alive(void)
{
    KR = KR_RELOAD;
}

int board_watchdog_was_it(void)
{
    const uint32_t flags = RCC_CSR;
    RCC_CSR = flags | RCC_CSR_RMVF;
    return (flags & RCC_CSR_IWDGRSTF) != 0u;
}

#elif defined(EDGETQS_WATCHDOG_NRF51)
/* Nordic nRF51 Series Reference Manual v3.0, 24 WDT and 12.2 RESETREAS; the nRF52840 has the same. */

#define TASKS_START WATCHDOG(0x000u)
#define CRV WATCHDOG(0x504u)
#define RREN WATCHDOG(0x508u)
#define RR0 WATCHDOG(0x600u)
#define RESETREAS REGISTER(0x40000400u)

#define RR_RELOAD 0x6E524635u
#define RESETREAS_DOG (1u << 1)

void board_watchdog_start(void)
{
    CRV = EDGETQS_WATCHDOG_CLOCK_HZ * SECONDS - 1u;
    RREN = 1u;
    TASKS_START = 1u;
}

void board_alive(void)
{
    RR0 = RR_RELOAD;
}

int board_watchdog_was_it(void)
{
    const uint32_t reason = RESETREAS;
    RESETREAS = reason; /* ones clear */
    return (reason & RESETREAS_DOG) != 0u;
}

#else

void board_watchdog_start(void)
{
}

void board_alive(void)
{
}

int board_watchdog_was_it(void)
{
    return 0;
}

#endif
