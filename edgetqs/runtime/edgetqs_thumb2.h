/*
 * Assembler macros of the matrix rows for ARMv7-M and ARMv8-M Mainline.
 *
 * uint32_t edgetqs_rowsN_LAYOUT(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add);
 *
 * Throughout: r0 the stored words, r2 the end of x, lr in its upper half the rows
 * still to come in whole blocks of four, less 4, and below them how many are left
 * over and bits for their kind, BIASED and ADD. On the stack x, y, room for lr.
 */
#ifndef EDGETQS_THUMB2_H
#define EDGETQS_THUMB2_H

#include "edgetqs_thumb.h"

#define BIASED 1
#define ADD 2
#define LEFT_OVER 2                     /* the first of two bits */
#define BLOCK (4 << 16)

/* Saves what a function may not change, takes its arguments in; C is clear if there is no whole block. SSAT keeps
 * in the Q flag that it clipped; nothing else sets it, as layout.py proves that no sum overflows. */
    .macro  enter
    push    {r4-r11, lr}
    ldrb    r4, [r0, #8]            @ biased
    ldrh    r5, [r0, #4]            @ rows
    ldrh    r6, [r0, #6]            @ columns
    ldr     r0, [r0]
    orr     r3, r4, r3, lsl #1
    and     r4, r5, #3
    orr     r3, r3, r4, lsl #LEFT_OVER
    mov     r7, #0
    msr     apsr_nzcvq, r7
    bic     r5, #3
    subs    r5, #4
    orr     lr, r3, r5, lsl #16
    push    {r1, r2, lr}
    add     r6, #3
    bic     r6, #3
    add     r2, r1, r6, lsl #1
    .endm

/* For the rows that are left over: their number into r5, end of the function if there are none. */
    .macro  left_over
    ubfx    r5, lr, #LEFT_OVER, #2
    ldr     r3, [sp, #4]
    cbz     r5, 9f
    .endm

    .macro  leave
9:  mrs     r0, apsr
    and     r0, #(1 << 27)
    add     sp, #12
    pop     {r4-r11, pc}
    .endm

/* sum * multiplier / 2^32, ties away from zero, clipped; r1 holds 2^31. Changes r4, r7. */
    .macro  requantize sum, multiplier
    add     r4, r1, \sum, asr #31
    mov     r7, #0
    smlal   r4, r7, \sum, \multiplier
    ssat    \sum, #16, r7
    .endm

/* Four sums become values; r3 is y then. Changes r1, r4, r7, r10, r11, r12. */
    .macro  requantize_four s0, s1, s2, s3, frame
    ldmia   r0!, {r3, r10, r11, r12}
    mov     r1, #0x80000000
    requantize \s0, r3
    requantize \s1, r10
    requantize \s2, r11
    requantize \s3, r12
    ldr     r3, [sp, #\frame + 4]
    .endm

/* From y in r3 to the next block: C is clear once there is none. lr is kept on the stack where the block's loop takes
 * it. */
    .macro  next_block frame
    subs    lr, #BLOCK
    .if     \frame
    strd    r3, lr, [sp, #\frame + 4]
    .else
    str     r3, [sp, #4]
    .endif
    .endm

#endif
