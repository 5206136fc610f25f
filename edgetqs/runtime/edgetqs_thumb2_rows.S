/*
 * Matrix rows for ARMv7-M without the DSP extension; the layout is told in
 * edgetqs_thumb2.c, which holds the same in C for everyone else.
 */
#if defined(__ARM_ARCH_7M__)

#include "edgetqs_thumb2.h"

/* From four sums to four values of y; C is clear once it was the last block. Changes r1, r3, r4, r7, r10, r11, r12. */
    .macro  finish s0, s1, s2, s3, frame=0
    lsls    r1, lr, #31             @ N: biased, C: add to y
    bpl     3f
    ldmia   r0!, {r3, r10, r11, r12}
    add     \s0, r3
    add     \s1, r10
    add     \s2, r11
    add     \s3, r12
3:  requantize_four \s0, \s1, \s2, \s3, \frame
    bcc     4f
    mrs     r1, apsr                @ Q tells of clipped rows, not of clipped sums
    ldrsh   r4, [r3]
    ldrsh   r7, [r3, #2]
    ldrsh   r10, [r3, #4]
    ldrsh   r11, [r3, #6]
    add     \s0, r4
    add     \s1, r7
    add     \s2, r10
    add     \s3, r11
    ssat    \s0, #16, \s0
    ssat    \s1, #16, \s1
    ssat    \s2, #16, \s2
    ssat    \s3, #16, \s3
    msr     apsr_nzcvq, r1
4:  strh    \s0, [r3], #2
    strh    \s1, [r3], #2
    strh    \s2, [r3], #2
    strh    \s3, [r3], #2
    next_block \frame
    .endm

/* From the sum in r6 to a value of y. Changes r1, r4, r7, r10. */
    .macro  finish_one
    lsls    r1, lr, #31
    itt     mi
    ldrmi   r1, [r0], #4
    addmi   r6, r1
    mov     r1, #0x80000000
    ldr     r10, [r0], #4
    requantize r6, r10
    bcc     4f
    mrs     r1, apsr
    ldrsh   r4, [r3]
    add     r6, r4
    ssat    r6, #16, r6
    msr     apsr_nzcvq, r1
4:  strh    r6, [r3], #2
    subs    r5, #1
    .endm

/* One column of four rows, a byte each. Changes r4, r12. */
    .macro  column8 w
    ldrsh   r4, [r1], #2
    sxtb    r12, \w
    mla     r5, r12, r4, r5
    sxtb    r12, \w, ror #8
    mla     r6, r12, r4, r6
    sxtb    r12, \w, ror #16
    mla     r8, r12, r4, r8
    asr     r12, \w, #24
    mla     r9, r12, r4, r9
    .endm

/* The rows that are left over, one by one; the end of the function. */
    .macro  rows_left_over
5:  left_over
6:  ldr     r1, [sp]
    mov     r6, #0
7:  ldr     r10, [r0], #4
    .irp    rotation, 0, 8, 16, 24
    ldrsh   r4, [r1], #2
    sxtb    r12, r10, ror #\rotation
    mla     r6, r12, r4, r6
    .endr
    cmp     r1, r2
    bne     7b
    finish_one
    bne     6b
    leave
    .endm

    function edgetqs_rows8_thumb2
    enter
    bcc     5f
1:  ldr     r1, [sp]
    mov     r5, #0
    mov     r6, #0
    mov     r8, #0
    mov     r9, #0
2:  ldmia   r0!, {r3, r7, r10, r11}
    column8 r3
    column8 r7
    column8 r10
    column8 r11
    cmp     r1, r2
    bne     2b
    finish  r5, r6, r8, r9
    bcs     1b
    rows_left_over
    end_function edgetqs_rows8_thumb2

/* Two columns of four rows: rows 0 and 1 in r5:r4, rows 2 and 3 in r7:r6. r8 holds 0xF000000F. Changes lr. */
    .macro  columns4 w
    ldrsh   r3, [r1], #2
    ldrsh   r12, [r1], #2
    and     lr, r8, \w
    smlal   r4, r5, lr, r3
    and     lr, r8, \w, ror #8
    smlal   r6, r7, lr, r3
    and     lr, r8, \w, ror #16
    smlal   r4, r5, lr, r12
    and     lr, r8, \w, ror #24
    smlal   r6, r7, lr, r12
    .endm

/* high:low is first + 2^28 second: both into their registers, the second's may be low or high. */
    .macro  apart low, high, first, second
    sbfx    \first, \low, #0, #28
    subs    \low, \low, \first
    sbc     \high, \high, \first, asr #31
    lsr     \low, #28
    orr     \second, \low, \high, lsl #4
    .endm

    function edgetqs_rows4_thumb2
    enter
    bcc     5f
3:  ldrd    r10, r11, [r1], #8      @ minus 8 times the sum of x
    sub     r7, r7, r10, asr #16
    sxth    r10, r10
    sub     r7, r10
    sub     r7, r7, r11, asr #16
    sxth    r11, r11
    sub     r7, r11
    cmp     r1, r2
    bne     3b
    lsl     r4, r7, #3
    asr     r5, r4, #31
    mov     r6, r4
    mov     r7, r5
    ldr     r8, =0xF000000F
    push    {r4-r8}
0:  ldr     r1, [sp, #20]
    ldmia   sp, {r4-r8}
1:  ldrd    r10, r11, [r0], #8
    columns4 r10
    columns4 r11
    cmp     r1, r2
    bne     1b
    apart   r4, r5, r9, r5
    apart   r6, r7, r8, r6
    ldr     lr, [sp, #28]
    finish  r9, r5, r8, r6, 20
    bcs     0b
    add     sp, #20
    rows_left_over
    end_function edgetqs_rows4_thumb2

#endif

#if defined(__linux__) && defined(__ELF__)
    .section .note.GNU-stack, "", %progbits
#endif
