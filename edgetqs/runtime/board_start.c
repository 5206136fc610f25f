/* Reset, faults, stack and time of a Cortex-M. See board.h. */
#include "board.h"

#include <stddef.h>

#ifdef EDGETQS_SEMIHOST
#include "semihost.h"
#endif

#define REGISTER(address) (*(volatile uint32_t *)(address))

/* Armv7-M Architecture Reference Manual (DDI 0403), B3.2.2. */
#define SYST_CSR REGISTER(0xE000E010u)
#define SYST_RVR REGISTER(0xE000E014u)
#define SYST_CVR REGISTER(0xE000E018u)
#define SCB_ICSR REGISTER(0xE000ED04u)
#define SCB_CFSR REGISTER(0xE000ED28u)
#define SCB_CPACR REGISTER(0xE000ED88u)

#define SYST_CSR_CORE_CLOCK_ENABLED 5u
#define SCB_CPACR_FPU_FULL_ACCESS (0xFu << 20)

#define STACK_PAINT 0x57AC57AC
#define STACK_GUARD_WORDS 8u
#define AS_TEXT(macro) AS_TEXT_EXPANDED(macro)
#define AS_TEXT_EXPANDED(text) #text

/* From the linker script. */
extern uint32_t board_data_start[];
extern uint32_t board_data_end[];
extern const uint32_t board_data_load[];
extern uint32_t board_bss_start[];
extern uint32_t board_bss_end[];
extern uint32_t board_stack_limit[];
extern uint32_t board_stack_top[];

int main(void);

void Reset_Handler(void);
void board_fault(void);
void board_start(void);
void board_fault_report(uint32_t sp, uint32_t pc, uint32_t lr);
#ifdef EDGETQS_CHIP
void board_chip_start(void); /* in board_chip.c */
#endif
#ifdef EDGETQS_LINK
/* In board_link.c: keeps the record, restarts, reports over the link. */
__attribute__((noreturn)) void board_fault_restart(uint32_t exception, uint32_t pc, uint32_t lr, uint32_t cfsr);
#endif

typedef union {
    void (*handler)(void);
    const void *stack_top;
} vector;

__attribute__((section(".vectors"), used)) static const vector vectors[16] = {
    {.stack_top = board_stack_top},
    {Reset_Handler},
    {board_fault}, /* NMI */
    {board_fault}, /* HardFault */
    {board_fault}, /* MemManage */
    {board_fault}, /* BusFault */
    {board_fault}, /* UsageFault */
    {board_fault}, /* SecureFault */
    {NULL},
    {NULL},
    {NULL},
    {board_fault}, /* SVCall */
    {board_fault}, /* DebugMonitor */
    {NULL},
    {board_fault}, /* PendSV */
    {board_fault}, /* SysTick */
};

/* A boot loader may come here with any stack pointer. */
__attribute__((naked)) void Reset_Handler(void)
{
    __asm__ volatile(
        "ldr r0, =board_stack_top\n"
        "mov sp, r0\n"
        "bl board_start\n");
}

__attribute__((noreturn, used)) void board_start(void)
{
    const uint32_t *from = board_data_load;
    uint32_t *word;

#if __ARM_ARCH >= 8 && __ARM_ARCH_ISA_THUMB == 2
    /* From here on the core itself notices a stack overflow. */
    __asm__ volatile("msr msplim, %0" : : "r"(board_stack_limit));
#endif
#if defined(__ARM_FP) || defined(__ARM_FEATURE_MVE)
    SCB_CPACR |= SCB_CPACR_FPU_FULL_ACCESS;
    __asm__ volatile("dsb\n isb" : : : "memory");
#endif
    for (word = board_data_start; word < board_data_end; word++) {
        *word = *from++;
    }
    for (word = board_bss_start; word < board_bss_end; word++) {
        *word = 0;
    }
    board_stack_repaint();
    SYST_RVR = BOARD_TICKS_MASK;
    SYST_CVR = 0;
    SYST_CSR = SYST_CSR_CORE_CLOCK_ENABLED;
#ifdef EDGETQS_CHIP
    board_chip_start();
#endif
    board_exit(main());
}

/* The stack may be what is broken: take what the core pushed from it, if it lies
 * where a stack can be, and start a new one. */
__attribute__((naked)) void board_fault(void)
{
    __asm__ volatile(
        "mov r0, sp\n"
        "movs r1, #0\n"
        "movs r2, #0\n"
        "ldr r3, =board_stack_limit\n"
        "cmp r0, r3\n"
        "blo 1f\n"
        "ldr r3, =board_stack_top - 32\n"
        "cmp r0, r3\n"
        "bhi 1f\n"
        "ldr r1, [r0, #24]\n"
        "ldr r2, [r0, #20]\n"
        "1: ldr r3, =board_stack_top\n"
        "mov sp, r3\n"
        "bl board_fault_report\n");
}

#if __ARM_ARCH_ISA_THUMB == 2
#define FAULT_STATUS SCB_CFSR
#else
#define FAULT_STATUS 0u
#endif

#ifdef EDGETQS_LINK
__attribute__((noreturn, used)) void board_fault_report(uint32_t sp, uint32_t pc, uint32_t lr)
{
    (void)sp;
    board_fault_restart(SCB_ICSR & 0x1FFu, pc, lr, FAULT_STATUS);
}
#else
static void put_field(const char *name, uint32_t value)
{
    board_puts(name);
    board_put_hex(value);
}

__attribute__((noreturn, used)) void board_fault_report(uint32_t sp, uint32_t pc, uint32_t lr)
{
    board_uart_init();
    put_field("fault: exception ", SCB_ICSR & 0x1FFu);
    put_field(" pc ", pc);
    put_field(" lr ", lr);
    put_field(" sp ", sp);
#if __ARM_ARCH_ISA_THUMB == 2
    put_field(" cfsr ", SCB_CFSR);
#endif
    board_putc('\n');
    board_exit(BOARD_EXIT_FAULT);
}
#endif

/* In assembly, so that no frame of its own lies where it paints. */
__attribute__((naked)) void board_stack_repaint(void)
{
    __asm__ volatile(
        "ldr r0, =board_stack_limit\n"
        "ldr r1, =" AS_TEXT(STACK_PAINT) "\n"
        "mov r2, sp\n"
        "b 2f\n"
        "1: stmia r0!, {r1}\n"
        "2: cmp r0, r2\n"
        "blo 1b\n"
        "bx lr\n");
}

uint32_t board_stack_peak(void)
{
    const volatile uint32_t *word = board_stack_limit;

    while (word < board_stack_top && *word == STACK_PAINT) {
        word++;
    }
    return (uint32_t)board_stack_top - (uint32_t)word;
}

uint32_t board_stack_size(void)
{
    return (uint32_t)board_stack_top - (uint32_t)board_stack_limit;
}

/* Several words: a frame may leave some of its own as they were. */
int board_stack_intact(void)
{
    const volatile uint32_t *word = board_stack_limit;
    unsigned count;

    for (count = 0; count < STACK_GUARD_WORDS; count++) {
        if (word[count] != STACK_PAINT) {
            return 0;
        }
    }
    return 1;
}

uint32_t board_ticks(void)
{
    return BOARD_TICKS_MASK - SYST_CVR;
}

__attribute__((noreturn)) void board_exit(int code)
{
#ifdef EDGETQS_SEMIHOST
    const uint32_t block[2] = {SEMIHOST_APPLICATION_EXIT, (uint32_t)code};
    semihost_call(SEMIHOST_EXIT_EXTENDED, block);
#else
    (void)code;
#endif
    for (;;) {
        __asm__ volatile("wfi");
    }
}
