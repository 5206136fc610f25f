/*
 * Blocks of four rows for cores with the DSP extension; the layout is told in
 * edgetqs_dsp.c, which holds the same in C for everyone else.
 *
 * const uint32_t *edgetqs_blocks8_dsp(const uint32_t *w, const uint32_t *x, const uint32_t *end, int16_t *y,
 *                                     uint32_t count_and_kind);
 * const uint32_t *edgetqs_blocks4_dsp(the same ..., int32_t eights);
 */
#if defined(__ARM_FEATURE_DSP)

    .syntax unified
    .thumb

    .macro  function name
    .section .text.\name, "ax", %progbits
    .balign 4
    .global \name
    .type   \name, %function
    .thumb_func
\name:
    .endm

    .macro  end_function name
    .size   \name, . - \name
    .endm

/* The upper of two rows that were summed together: (high:low - sum) >> 8, into high. */
    .macro  upper low, high, sum
    subs    \low, \low, \sum
    sbc     \high, \high, \sum, asr #31
    lsr     \low, #8
    orr     \high, \low, \high, lsl #24
    .endm

/* sum * multiplier / 2^32, ties away from zero, clipped; r1 holds 2^31. Changes r4, r7. */
    .macro  requantize sum, multiplier
    add     r4, r1, \sum, asr #31
    mov     r7, #0
    smlal   r4, r7, \sum, \multiplier
    ssat    \sum, #16, r7
    .endm

/* From four sums to four values of y. r0 w, lr count and kind, which is counted down: N once it was the last
 * block. Stack: x, y. Changes r1, r3, r4, r7, r10, r11, r12. */
    .macro  finish s0, s1, s2, s3
    lsls    r1, lr, #31             @ N: biased, C: add to y
    bpl     3f
    ldmia   r0!, {r3, r10, r11, r12}
    add     \s0, r3
    add     \s1, r10
    add     \s2, r11
    add     \s3, r12
3:  ldmia   r0!, {r3, r10, r11, r12}
    mov     r1, #0x80000000
    requantize \s0, r3
    requantize \s1, r10
    requantize \s2, r11
    requantize \s3, r12
    ldr     r3, [sp, #4]
    pkhbt   \s0, \s0, \s1, lsl #16
    pkhbt   \s2, \s2, \s3, lsl #16
    bcc     4f
    ldr     r10, [r3]               @ y may lie on a halfword, so no LDRD
    ldr     r11, [r3, #4]
    qadd16  \s0, \s0, r10
    qadd16  \s2, \s2, r11
4:  str     \s0, [r3], #4
    str     \s2, [r3], #4
    str     r3, [sp, #4]
    subs    lr, #4
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

    function edgetqs_blocks8_dsp
    push    {r4-r11, lr}
    ldr     lr, [sp, #36]           @ count and kind
    push    {r1, r3}
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
    bpl     1b
    add     sp, #8
    pop     {r4-r11, pc}
    end_function edgetqs_blocks8_dsp

/* Two columns of four rows: whole sum in r5:r4, that of row 0 in r6, of 16 row 1 + row 0 in r7, of row 2 in r8.
 * r9 holds 0x000F000F. Changes lr. */
    .macro  columns4 w, x
    smlald  r4, r5, \w, \x
    and     lr, r9, \w, lsr #8
    smlad   r8, lr, \x, r8
    uxtb16  lr, \w
    smlad   r7, lr, \x, r7
    and     \w, \w, r9
    smlad   r6, \w, \x, r6
    .endm

    .macro  four_columns4
    ldrd    r3, r12, [r1], #8
    ldrd    r10, r11, [r0], #8
    columns4 r10, r3
    columns4 r11, r12
    .endm

    function edgetqs_blocks4_dsp
    push    {r4-r11, lr}
    ldr     r10, [sp, #40]          @ the sums start at what takes off the 8s:
    mvn     r11, #272               @ -273 = -(2048 + 128 + 8) / 8
    smull   r4, r5, r10, r11
    rsb     r6, r10, #0
    add     r7, r6, r6, lsl #4      @ (128 + 8) / 8
    mov     r8, r6
    sub     r11, r2, r1             @ and the loop is entered in its middle if the groups of columns are odd
    tst     r11, #8
    ite     eq
    adreq   r9, 1f
    adrne   r9, 2f
    orr     r9, #1                  @ Thumb
    push    {r1, r3-r9}
    mov     r9, #0x000F000F
0:  ldr     r1, [sp]
    add     r3, sp, #8
    ldmia   r3, {r4-r8, pc}
    .balign 4
1:  four_columns4
2:  four_columns4
    cmp     r1, r2
    bne     1b
    upper   r4, r5, r7              @ 16 row 3 + row 2
    sub     r7, r6
    sub     r5, r8
    asr     r9, r7, #4
    asr     r5, r5, #4
    ldr     lr, [sp, #68]           @ count and kind
    finish  r6, r9, r8, r5
    mov     r9, #0x000F000F
    str     lr, [sp, #68]
    bpl     0b
    add     sp, #32
    pop     {r4-r11, pc}
    end_function edgetqs_blocks4_dsp

#endif

#if defined(__linux__) && defined(__ELF__)
    .section .note.GNU-stack, "", %progbits
#endif
