/*
 * Matrix rows for cores with the DSP extension; the layout is told in
 * edgetqs_dsp.c, which holds the same in C for everyone else.
 */
#if defined(__ARM_FEATURE_DSP)

#include "edgetqs_thumb2.h"

/* The upper of two rows that were summed together: (high:low - sum) >> 8, into high. */
    .macro  upper low, high, sum
    subs    \low, \low, \sum
    sbc     \high, \high, \sum, asr #31
    lsr     \low, #8
    orr     \high, \low, \high, lsl #24
    .endm

/* From the sum in r6 to a value of y. Changes r1, r4, r7. */
    .macro  finish_one
    tst     lr, #BIASED
    itt     ne
    ldrne   r1, [r0], #4
    addne   r6, r1
    mov     r1, #0x80000000
    ldr     r10, [r0], #4
    requantize r6, r10
    tst     lr, #ADD
    itt     ne
    ldrshne r4, [r3]
    qadd16ne r6, r6, r4
    strh    r6, [r3], #2
    subs    r5, #1
    .endm

/* From four sums, that of row 3 shifted up, to four values of y; C is clear once it was the last block. Changes r1, r3,
 * r4, r7, r10, r11, r12. */
    .macro  finish s0, s1, s2, s3, shift=0, frame=0
    lsls    r1, lr, #31             @ N: biased, C: add to y
    bpl     3f
    ldmia   r0!, {r3, r10, r11, r12}
    add     \s0, r3
    add     \s1, r10
    add     \s2, r11
    .if     \shift
    add     \s3, r12, \s3, asr #\shift
    b       4f
3:  asr     \s3, #\shift
    .else
    add     \s3, r12
3:
    .endif
4:  requantize_four \s0, \s1, \s2, \s3, \frame
    pkhbt   \s0, \s0, \s1, lsl #16
    pkhbt   \s2, \s2, \s3, lsl #16
    bcc     4f
    ldr     r10, [r3]               @ y may lie on a halfword, so no LDRD
    ldr     r11, [r3, #4]
    qadd16  \s0, \s0, r10
    qadd16  \s2, \s2, r11
4:  str     \s0, [r3], #4
    str     \s2, [r3], #4
    next_block \frame
    .endm

/* Two columns. Rows 0 and 1: whole sum in r5:r4, low bytes' sum in r6; rows 2 and 3: r8:r7, r9. */
    .macro  columns8 x
    ldrd    r10, r11, [r0], #8
    smlald  r4, r5, r10, \x
    sxtb16  r10, r10
    smlad   r6, r10, \x, r6
    smlald  r7, r8, r11, \x
    sxtb16  r11, r11
    smlad   r9, r11, \x, r9
    .endm

/* The rows that are left over, one by one; the end of the function. */
    .macro  rows_left_over
5:  left_over
6:  ldr     r1, [sp]
    mov     r6, #0
7:  ldrd    r10, r11, [r1], #8
    ldr     r12, [r0], #4
    sxtb16  r4, r12
    smlad   r6, r4, r10, r6
    sxtb16  r4, r12, ror #8
    smlad   r6, r4, r11, r6
    cmp     r1, r2
    bne     7b
    finish_one
    bne     6b
    leave
    .endm

    function edgetqs_rows8_dsp
    enter
    bcc     5f
1:  ldr     r1, [sp]
    mov     r4, #0
    mov     r5, #0
    mov     r6, #0
    mov     r7, #0
    mov     r8, #0
    mov     r9, #0
2:  ldrd    r3, r12, [r1], #8
    columns8 r3
    columns8 r12
    cmp     r1, r2
    bne     2b
    upper   r4, r5, r6
    upper   r7, r8, r9
    finish  r6, r5, r9, r8
    bcs     1b
    rows_left_over
    end_function edgetqs_rows8_dsp

/* Two columns of four rows: whole sum in r5:r4, those of rows 0, 1 and 2 in r6, r9, r8. r7 holds 0x000F000F.
 * Changes lr. */
    .macro  columns4 w, x
    smlald  r4, r5, \w, \x
    and     lr, r7, \w, lsr #8
    smlad   r8, lr, \x, r8
    and     lr, r7, \w, lsr #4
    smlad   r9, lr, \x, r9
    and     \w, \w, r7
    smlad   r6, \w, \x, r6
    .endm

    .macro  four_columns4
    ldrd    r3, r12, [r1], #8
    ldrd    r10, r11, [r0], #8
    columns4 r10, r3
    columns4 r11, r12
    .endm

    function edgetqs_rows4_dsp
    enter
    bcc     5f
    sub     r12, r1, r2
    mov     r3, r1
    mvn     r9, #0x00070007         @ -8 times the sum of x takes off the 8s
3:  ldmia   r3!, {r4, r5, r10, r11} @ the padding up to 8 values is zero
    smlad   r7, r4, r9, r7
    smlad   r7, r5, r9, r7
    smlad   r7, r10, r9, r7
    smlad   r7, r11, r9, r7
    cmp     r3, r2
    blo     3b
    movw    r11, #273               @ (2048 + 128 + 8) / 8: the sums start at that
    smull   r4, r5, r7, r11
    mov     r6, r7
    mov     r8, r7
    mov     r9, r7
    mov     r7, #0x000F000F
    and     r12, #24                @ and the loop of four groups of columns is entered where it comes out even:
    adr     r10, 1f + 1             @ Thumb
    add     r10, r10, r12, lsl #3   @ a group takes 8 bytes of x and 64 of code
    push    {r1, r4-r10}
0:  ldmia   sp, {r1, r4-r9, pc}
    .balign 4
1:  four_columns4
    .if     . - 1b - 64
    .error  "the groups' size is built in above"
    .endif
    four_columns4
    four_columns4
    four_columns4
    cmp     r1, r2
    bne     1b
    add     r3, r6, r9, lsl #4
    upper   r4, r5, r3              @ 16 row 3 + row 2
    sub     r5, r8
    ldr     lr, [sp, #40]
    finish  r6, r9, r8, r5, 4, 32
    bcs     0b
    add     sp, #32
    rows_left_over
    end_function edgetqs_rows4_dsp

#endif

#if defined(__linux__) && defined(__ELF__)
    .section .note.GNU-stack, "", %progbits
#endif
