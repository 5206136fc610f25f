/*
 * Arm semihosting: requests to the emulator or debugger.
 * Arm, "Semihosting for AArch32 and AArch64", release 2.0.
 *
 * Without either of them the breakpoint is a fault, so only builds that define
 * EDGETQS_SEMIHOST may call this.
 */
#ifndef EDGETQS_SEMIHOST_H
#define EDGETQS_SEMIHOST_H

#include <stdint.h>

#define SEMIHOST_OPEN 0x01u
#define SEMIHOST_CLOSE 0x02u
#define SEMIHOST_WRITE0 0x04u
#define SEMIHOST_WRITE 0x05u
#define SEMIHOST_READ 0x06u
#define SEMIHOST_EXIT_EXTENDED 0x20u

#define SEMIHOST_MODE_RB 1u
#define SEMIHOST_MODE_WB 5u
#define SEMIHOST_APPLICATION_EXIT 0x20026u /* ADP_Stopped_ApplicationExit */

static inline uint32_t semihost_call(uint32_t request, const void *argument)
{
    register uint32_t r0 __asm__("r0") = request;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

#endif
