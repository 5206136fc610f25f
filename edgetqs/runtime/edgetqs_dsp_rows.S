/*
 * Matrix rows for cores with the DSP extension; the layout is told in
 * edgetqs_dsp.c, which holds the same in C for everyone else.
 *
 * uint32_t edgetqs_rows8_dsp(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add);
 * uint32_t edgetqs_rows4_dsp(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add);
 *
 * Throughout: r0 the stored words, r2 the end of x, lr the rows still to come in
 * whole blocks, less 4, and below them bits for their kind, BIASED and ADD. On
 * the stack x, y, the number of rows.
 */
#define BIASED 1
#define ADD 2
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

/* Saves what a function may not change, takes its arguments in; C is clear if there is no whole block. SSAT keeps
 * in the Q flag that it clipped; nothing else sets it, as layout.py proves that no sum overflows. */
    .macro  enter
    push    {r4-r11, lr}
    ldrb    r4, [r0, #8]            @ biased
    ldrh    r5, [r0, #4]            @ rows
    ldrh    r6, [r0, #6]            @ columns
    ldr     r0, [r0]
    push    {r1, r2, r5}
    mov     r7, #0
    msr     apsr_nzcvq, r7
    add     r6, #3
    bic     r6, #3
    add     r2, r1, r6, lsl #1
    orr     r4, r4, r3, lsl #1
    bic     lr, r5, #3
    subs    lr, #4
    orr     lr, r4
    .endm

/* For the rows that are left over: their number into r5, end of the function if there are none. */
    .macro  left_over
    ldrd    r3, r5, [sp, #4]
    ands    r5, #3
    beq     9f
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

/* From four sums, those of rows 1 and 3 shifted up, to four values of y; N once it was the last block. Changes r1,
 * r3, r4, r7, r10, r11, r12. */
    .macro  finish s0, s1, s2, s3, shift=0, frame=0
    lsls    r1, lr, #31             @ N: biased, C: add to y
    bpl     3f
    ldmia   r0!, {r3, r10, r11, r12}
    add     \s0, r3
    add     \s2, r11
    .if     \shift
    add     \s1, r10, \s1, asr #\shift
    add     \s3, r12, \s3, asr #\shift
    b       4f
3:  asr     \s1, #\shift
    asr     \s3, #\shift
    .else
    add     \s1, r10
    add     \s3, r12
3:
    .endif
4:  ldmia   r0!, {r3, r10, r11, r12}
    mov     r1, #0x80000000
    requantize \s0, r3
    requantize \s1, r10
    requantize \s2, r11
    requantize \s3, r12
    ldr     r3, [sp, #\frame + 4]
    pkhbt   \s0, \s0, \s1, lsl #16
    pkhbt   \s2, \s2, \s3, lsl #16
    bcc     4f
    ldr     r10, [r3]               @ y may lie on a halfword, so no LDRD
    ldr     r11, [r3, #4]
    qadd16  \s0, \s0, r10
    qadd16  \s2, \s2, r11
4:  str     \s0, [r3], #4
    str     \s2, [r3], #4
    str     r3, [sp, #\frame + 4]
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
    bpl     1b
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
    end_function edgetqs_rows8_dsp

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

    function edgetqs_rows4_dsp
    enter
    mov     r8, r1                  @ 8 times the sum of x
    mov     r6, #0
    mov     r9, #0x00080008
    sub     r12, r2, r1
3:  ldmia   r8!, {r4, r5, r10, r11} @ the padding up to 8 values is zero
    smlad   r6, r4, r9, r6
    smlad   r6, r5, r9, r6
    smlad   r6, r10, r9, r6
    smlad   r6, r11, r9, r6
    cmp     r8, r2
    blo     3b
    rsb     r6, r6, #0              @ the sums start at what takes off the 8s:
    movw    r11, #273               @ (2048 + 128 + 8) / 8
    smull   r4, r5, r6, r11
    add     r7, r6, r6, lsl #4      @ (128 + 8) / 8
    mov     r8, r6
    tst     r12, #8                 @ and the loop is entered in its middle if the groups of columns are odd
    ite     eq
    adreq   r9, 1f
    adrne   r9, 2f
    orr     r9, #1                  @ Thumb
    push    {r4-r9, lr}
    cmp     lr, #0
    mov     r9, #0x000F000F
    blt     5f
0:  ldr     r1, [sp, #28]
    ldmia   sp, {r4-r8, pc}
    .balign 4
1:  four_columns4
2:  four_columns4
    cmp     r1, r2
    bne     1b
    upper   r4, r5, r7              @ 16 row 3 + row 2
    sub     r9, r7, r6
    sub     r5, r8
    ldr     lr, [sp, #24]
    finish  r6, r9, r8, r5, 4, 28
    mov     r9, #0x000F000F
    str     lr, [sp, #24]
    bpl     0b
5:  ldr     r8, [sp, #8]            @ takes off the 8s of one row
    ldr     lr, [sp, #24]
    add     sp, #28
    left_over
6:  ldr     r1, [sp]
    mov     r6, r8
7:  ldr     r12, [r0], #4
    ldrd    r10, r11, [r1], #8
    and     r4, r9, r12
    smlad   r6, r4, r10, r6
    and     r4, r9, r12, lsr #4
    smlad   r6, r4, r11, r6
    ldrd    r10, r11, [r1], #8
    and     r4, r9, r12, lsr #8
    smlad   r6, r4, r10, r6
    and     r4, r9, r12, lsr #12
    smlad   r6, r4, r11, r6
    cmp     r1, r2
    blo     7b
    finish_one
    bne     6b
    leave
    end_function edgetqs_rows4_dsp

#endif

#if defined(__linux__) && defined(__ELF__)
    .section .note.GNU-stack, "", %progbits
#endif
