/*
 * Matrix rows for cores with Helium; the layout is told in edgetqs_mve.c, which
 * holds the same in C for everyone else.
 *
 * uint32_t edgetqs_rows8_mve(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add);
 * uint32_t edgetqs_rows4_mve(the same);
 *
 * A VMLADAVA adds eight products to a sum, and eight rows are summed in one pass,
 * so that x is loaded once for all of them.
 */
#if defined(__ARM_FEATURE_MVE)

#include "edgetqs_thumb.h"

/* On the stack, besides the registers that are saved. */
#define TAIL 0                  /* columns behind the groups of eight */
#define ADD 4                   /* whether to add to y */
#define SIXTEENTH 8             /* -16 */
#define X 12
#define BIASED 16
#define LEFT 20                 /* rows that are left over */
#define SUMS 24                 /* of these rows */
#define FRAME 56

/* The sums of a block's rows, from its first row on. */
#define ACCUMULATORS {r0, r2, r4, r6, r8, r10, r12, lr}

/* Where a block begins: by its groups of eight columns, and then the same with biases. */
#define NO_GROUP 0
#define ONE_GROUP 1
#define EVEN 2
#define ODD 3                   /* three or more */
#define WITH_BIASES 4

/* Then: r1 w, r5 the end of x in groups of eight, r7 where a block begins, r9 y, r11 the rows less 8, and N if there
 * is no block. QC, where saturation is kept, is clear. Up to 8 - round columns behind the groups are a tail; more are
 * padded to a group. */
    .macro  enter round
    push    {r4-r11, lr}
    vpush   {d8, d9}
    sub     sp, #FRAME
    ldrh    r4, [r0, #6]            @ columns
    ldrh    r11, [r0, #4]           @ rows
    adds    r5, r4, #\round
    lsrs    r5, #3
    subs    r4, r4, r5, lsl #3
    it      mi
    movmi   r4, #0
    mvn     r6, #15
    strd    r4, r3, [sp, #TAIL]
    strd    r6, r1, [sp, #SIXTEENTH]
    ldrb    r3, [r0, #8]            @ biased
    str     r3, [sp, #BIASED]
    mov     r9, r2
    movs    r2, #0
    vmsr    fpscr_nzcvqc, r2
    lsrs    r7, r5, #1
    it      ne
    movne   r7, #EVEN
    bfi     r7, r5, #0, #1
    bfi     r7, r3, #2, #1
    add     r5, r1, r5, lsl #4
    ldr     r1, [r0]
    subs    r11, #8
    .endm

/* To one of eight places behind the table. */
    .macro  begin none, one, even, odd, none_biased, one_biased, even_biased, odd_biased
    ldr     r3, [sp, #X]
    clrm    ACCUMULATORS
    tbb     [pc, r7]
8:  .irp    place, \none, \one, \even, \odd, \none_biased, \one_biased, \even_biased, \odd_biased
    .byte   (\place - 8b) / 2
    .endr
    .endm

    .macro  leave
    vmrs    r0, fpscr_nzcvqc
    and     r0, #1 << 27
    add     sp, #FRAME
    vpop    {d8, d9}
    pop     {r4-r11, pc}
    .endm

/* value = sum * multiplier / 2^32, ties away from zero. Changes q4. */
    .macro  requantize value, sum, multiplier
    vabs.s32 q4, \sum
    vrmulh.s32 \value, \multiplier, q4
    vpt.s32 lt, \sum, zr
    vnegt.s32 \value, \value
    .endm

/* value += y, without a trace in QC. Changes r0. */
    .macro  add_to value, y
    vmrs    r0, fpscr_nzcvqc
    vqadd.s16 \value, \value, \y
    vmsr    fpscr_nzcvqc, r0
    .endm

/* The accumulators of even rows to q0, of odd rows to q1. */
    .macro  to_vectors
    vmov    q0[2], q0[0], r0, r8
    vmov    q0[3], q0[1], r4, r12
    vmov    q1[2], q1[0], r2, r10
    vmov    q1[3], q1[1], r6, lr
    .endm

/* From the sums in q0 and q1 to eight values of y; N once it was the last block. */
    .macro  finish
    vld20.32 {q2, q3}, [r1]
    vld21.32 {q2, q3}, [r1]!
    requantize q2, q0, q2
    requantize q3, q1, q3
    vqmovnb.s32 q0, q2
    vqmovnt.s32 q0, q3
    cbz     r2, 9f
    vldrh.u16 q1, [r9]
    add_to  q0, q1
9:  vstrh.16 q0, [r9], #16
    subs    r11, #8
    .endm

/* For the rows that are left over, r8: r4 their groups of columns, r5 x, r6 where their sums go, r7 their biases. */
    .macro  left_over
    ldrd    r3, r2, [sp, #X]        @ and whether there are biases
    subs    r4, r5, r3
    mov     r5, r3
    ldr     r0, [sp, #TAIL]
    cbz     r0, 8f
    adds    r4, #16
8:  lsrs    r4, #4
    str     r8, [sp, #LEFT]
    mov     r7, r1
    cbz     r2, 8f
    add     r1, r1, r8, lsl #2
8:  add     r6, sp, #SUMS
    .endm

/* One row of int8 weights, its sum to where r6 points. */
    .macro  one_row
    mov     r3, r5
    movs    r0, #0
    dls     lr, r4
8:  vldrh.u16 q0, [r3], #16
    vldrb.s16 q1, [r1], #8
    vmladava.s16 r0, q1, q0
    le      lr, 8b
    str     r0, [r6], #4
    .endm

/* From sums to values of y, four at a time. */
    .macro  finish_left_over
    ldrd    r3, r8, [sp, #BIASED]
    ldr     r2, [sp, #ADD]
    add     r6, sp, #SUMS
    mov     r5, r9                  @ these loads take low registers
7:  vctp.32 r8
    vldrw.u32 q0, [r6], #16
    cbz     r3, 8f
    vpst
    vldrwt.u32 q1, [r7], #16
    vadd.i32 q0, q0, q1
8:  vpstt
    vldrwt.u32 q2, [r1], #16
    vldrht.s32 q3, [r5]
    requantize q2, q0, q2
    vctp.32 r8
    vpst
    vqmovnbt.s32 q0, q2
    cbz     r2, 8f
    add_to  q0, q3
8:  vpst
    vstrht.32 q0, [r5], #8
    subs    r8, #4
    bhi     7b
    .endm

    function edgetqs_rows8_mve
    enter   3
    bmi     6f
0:  begin   7f, 2f, 2f, 2f, 4f, 5f, 5f, 5f
4:  vld20.32 {q0, q1}, [r1]
    vld21.32 {q0, q1}, [r1]!
    b       3f
5:  ldm     r1!, ACCUMULATORS
2:  vldrh.u16 q0, [r3], #16
    .irp    sum, r0, r2, r4, r6, r8, r10, r12, lr
    vldrb.s16 q1, [r1], #8
    vmladava.s16 \sum, q1, q0
    .endr
    cmp     r3, r5
    bne     2b
7:  to_vectors
3:  ldrd    r0, r2, [sp, #TAIL]
    cbz     r0, 2f
    dls     lr, r0
1:  ldrsh   r0, [r3], #2
    vldrb.s32 q2, [r1], #4
    vmla.s32 q0, q2, r0
    vldrb.s32 q2, [r1], #4
    vmla.s32 q1, q2, r0
    le      lr, 1b
2:  finish
    bpl     0b
6:  adds    r8, r11, #8
    beq     2f
    left_over
1:  one_row
    subs    r8, #1
    bne     1b
    finish_left_over
2:  leave
    end_function edgetqs_rows8_mve

/* Eight columns, whose x is in q0: to one sum 16 times the odd row and the even one, to the other the odd row. */
    .macro  pair both, odd
    vldrb.s16 q1, [r1], #8
    vmladava.s16 \both, q1, q0
    vrshr.s16 q1, q1, #4
    vmladava.s16 \odd, q1, q0
    .endm

    .macro  four_pairs
    vldrh.u16 q0, [r3], #16
    pair    r0, r2
    pair    r4, r6
    pair    r8, r10
    pair    r12, lr
    .endm

    function edgetqs_rows4_mve
    enter   4
    bmi     10f
0:  begin   11f, 7f, 2f, 3f, 9f, 1f, 4f, 5f
11: vmov.i32 q0, #0
    vmov.i32 q1, #0
    b       12f
9:  vld20.32 {q0, q1}, [r1]
    vld21.32 {q0, q1}, [r1]!
12: ldm     sp, {r0, r2, r4}        @ TAIL, ADD, SIXTEENTH
    b       6f
1:  ldm     r1!, ACCUMULATORS
7:  four_pairs
    b       8f
5:  ldm     r1!, ACCUMULATORS
    b       3f
4:  ldm     r1!, ACCUMULATORS
2:  four_pairs
3:  four_pairs
    cmp     r3, r5
    bne     2b
8:  to_vectors
    ldm     sp, {r0, r2, r4}
    cbz     r0, 2f
6:  dls     lr, r0
1:  ldrsh   r0, [r3], #2
    vldrb.s32 q2, [r1], #4
    vmla.s32 q0, q2, r0
    vrshr.s32 q2, q2, #4
    vmla.s32 q1, q2, r0
    le      lr, 1b
2:  vmla.s32 q0, q1, r4
    finish
    bpl     0b
10: adds    r8, r11, #8
    beq     2f
    left_over
    subs    r8, #2
    bmi     3f
1:  mov     r3, r5
    movs    r0, #0
    movs    r2, #0
    dls     lr, r4
4:  vldrh.u16 q0, [r3], #16
    pair    r0, r2
    le      lr, 4b
    sub     r0, r0, r2, lsl #4
    strd    r0, r2, [r6], #8
    subs    r8, #2
    bpl     1b
    cmn     r8, #2
    beq     4f
3:  one_row
4:  finish_left_over
2:  leave
    end_function edgetqs_rows4_mve

#endif

#if defined(__linux__) && defined(__ELF__)
    .section .note.GNU-stack, "", %progbits
#endif
