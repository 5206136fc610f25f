/* Restart, image check and clock of a Cortex-M that answers over the link. See board.h. */
#include "board.h"

#define REGISTER(address) (*(volatile uint32_t *)(address))

/* Armv7-M Architecture Reference Manual (DDI 0403), B3.2.6, C1.6.5, C1.8.7. */
#define SCB_AIRCR REGISTER(0xE000ED0Cu)
#define AIRCR_KEY_SYSRESETREQ 0x05FA0004u
#define DEMCR REGISTER(0xE000EDFCu)
#define DEMCR_TRCENA (1u << 24)
#define DWT_CTRL REGISTER(0xE0001000u)
#define DWT_CTRL_CYCCNTENA 1u
#define DWT_CYCCNT REGISTER(0xE0001004u)

/* From the linker script. */
extern const uint8_t board_image_start[];
extern const uint8_t board_image_end[];
extern const uint8_t board_data_load[];
extern uint8_t board_data_start[];
extern uint8_t board_data_end[];

/* ---- Restarts ---- */

/* Start-up leaves this RAM as it is: after a power-up it holds anything. */
#define EXCEPTION_NMI 2u /* nothing but a watchdog raises it here */
#define KEPT_MARK 0x5AFE0B0Au
static struct {
    uint32_t mark;
    uint32_t sum; /* of the record, so that chance does not make one */
    board_record record;
} kept __attribute__((section(".noinit")));

static board_record started;

static uint32_t sum_of(const board_record *record)
{
    return ~(record->cause + record->exception + record->pc + record->lr + record->cfsr);
}

static void keep(board_record record)
{
    kept.record = record;
    kept.sum = sum_of(&record);
    kept.mark = KEPT_MARK;
}

const board_record *board_started(void)
{
    if (kept.mark == KEPT_MARK && kept.sum == sum_of(&kept.record)) {
        started = kept.record;
    }
    if (board_watchdog_was_it() && started.cause != BOARD_FAULTED) {
        started.cause = BOARD_WATCHDOG;
    }
    /* What the next start finds if this one ends without a word. */
    keep((board_record){.cause = BOARD_UNEXPECTED});
    return &started;
}

static __attribute__((noreturn)) void reset(void)
{
    __asm__ volatile("dsb" : : : "memory");
    SCB_AIRCR = AIRCR_KEY_SYSRESETREQ;
    for (;;) {
        __asm__ volatile("nop");
    }
}

void board_restart(void)
{
    keep((board_record){.cause = BOARD_REQUESTED});
    reset();
}

__attribute__((noreturn)) void board_fault_restart(uint32_t exception, uint32_t pc, uint32_t lr, uint32_t cfsr);

void board_fault_restart(uint32_t exception, uint32_t pc, uint32_t lr, uint32_t cfsr)
{
    const uint32_t cause = exception == EXCEPTION_NMI ? BOARD_WATCHDOG : BOARD_FAULTED;
    keep((board_record){cause, exception, pc, lr, cfsr});
    reset();
}

/* ---- Time ---- */

static uint32_t kind;

uint32_t board_clock_kind(void)
{
    if (kind != 0u) {
        return kind;
    }
    kind = BOARD_CLOCK_SYSTICK;
#if __ARM_ARCH_ISA_THUMB == 2
    DEMCR |= DEMCR_TRCENA;
    DWT_CYCCNT = 0;
    DWT_CTRL |= DWT_CTRL_CYCCNTENA;
    for (unsigned turn = 0; turn < 16u; ++turn) {
        if (DWT_CYCCNT != 0u) { /* it counts: emulators have none */
            kind = BOARD_CLOCK_DWT;
        }
    }
#endif
    return kind;
}

uint32_t board_clock(void)
{
#if __ARM_ARCH_ISA_THUMB == 2
    if (kind == BOARD_CLOCK_DWT) {
        return DWT_CYCCNT;
    }
#endif
    return board_ticks();
}

uint32_t board_clock_since(uint32_t reading)
{
    const uint32_t ticks = board_clock() - reading;
    return kind == BOARD_CLOCK_SYSTICK ? ticks & BOARD_TICKS_MASK : ticks;
}

/* ---- The image ---- */

/* Written into the linked image by edgetqs/seal.py: a CRC-32 as of zlib, over
 * code and constants, then the initial values of .data. An image that was linked
 * without it has nothing to check; erased flash is not that. */
#define UNSEALED 0x0DD5EA10u
__attribute__((section(".seal"), used)) static const volatile uint32_t seal = UNSEALED;

static uint32_t crc32(uint32_t crc, const uint8_t *bytes, uint32_t count)
{
    static const uint32_t nibble[16] = {
        0x00000000u, 0x1DB71064u, 0x3B6E20C8u, 0x26D930ACu, 0x76DC4190u, 0x6B6B51F4u, 0x4DB26158u, 0x5005713Cu,
        0xEDB88320u, 0xF00F9344u, 0xD6D6A3E8u, 0xCB61B38Cu, 0x9B64C2B0u, 0x86D3D2D4u, 0xA00AE278u, 0xBDBDF21Cu,
    };
    const volatile uint8_t *byte = bytes; /* flash may have changed */

    for (; count > 0u; --count) {
        crc ^= *byte;
        ++byte;
        crc = (crc >> 4) ^ nibble[crc & 15u];
        crc = (crc >> 4) ^ nibble[crc & 15u];
    }
    return crc;
}

board_image board_check_image(void)
{
    uint32_t crc = crc32(0xFFFFFFFFu, board_image_start, (uint32_t)(board_image_end - board_image_start));
    crc = ~crc32(crc, board_data_load, (uint32_t)(board_data_end - board_data_start));
    return (board_image){seal == UNSEALED ? crc : seal, crc};
}
