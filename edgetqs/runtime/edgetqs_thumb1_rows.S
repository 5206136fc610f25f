/*
 * Matrix rows for ARMv6-M; the layout is told in edgetqs_thumb1.c, which holds
 * the same in C for everyone else.
 *
 * uint32_t edgetqs_rowsN_thumb1(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add);
 */
#if defined(__ARM_ARCH_6M__)

#include "edgetqs_thumb.h"

/* The frame. What the eight sums of a block start from lies around what else a block starts with. */
#define START 0                     /* of rows 0 to 3 */
#define X 16
#define BYTES 20                    /* of a block's weights */
#define START_4 24                  /* of rows 4 to 7 */
#define ROW_6 32
#define END 40                      /* of the weights */
#define Y 44
#define Y_END 48                    /* of this kind of blocks */
#define Y_LAST 52                   /* of all rows */
#define KIND 56                     /* bits: */
#define BIASED 1
#define ADD 2
#define CLIPPED 60                  /* other than 0 once a row was */
#define FRAME 64

/* Saves what a function may not change and fills the frame, except for the start. Then r0 is the stored words, r6
 * the number of columns in fours, r7 the sum of x. */
    .macro  enter
    push    {r4-r7, lr}
    mov     r4, r8
    mov     r5, r9
    mov     r6, r10
    mov     r7, r11
    push    {r4-r7}
    sub     sp, #FRAME
    ldrb    r4, [r0, #8]            @ biased
    ldrh    r5, [r0, #4]            @ rows
    ldrh    r6, [r0, #6]            @ columns
    ldr     r0, [r0]
    movs    r7, #0
    str     r7, [sp, #CLIPPED]
    str     r1, [sp, #X]
    str     r2, [sp, #Y]
    lsls    r3, #1
    orrs    r3, r4
    str     r3, [sp, #KIND]
    lsls    r5, #1
    adds    r3, r2, r5
    str     r3, [sp, #Y_LAST]
    lsrs    r5, #4
    lsls    r5, #4
    adds    r2, r5
    str     r2, [sp, #Y_END]
    adds    r6, #3
    lsrs    r6, #2
    lsls    r5, r6, #3
    adds    r5, r1
1:  ldmia   r1!, {r2, r3}
    sxth    r4, r2
    adds    r7, r4
    asrs    r2, #16
    adds    r7, r2
    sxth    r4, r3
    adds    r7, r4
    asrs    r3, #16
    adds    r7, r3
    cmp     r1, r5
    bne     1b
    .endm

/* Z is set if there is no block of eight rows. */
    .macro  any_blocks
    ldr     r1, [sp, #Y]
    ldr     r2, [sp, #Y_END]
    cmp     r1, r2
    .endm

/* Z is set if there are no rows left over. */
    .macro  any_left_over
    ldr     r1, [sp, #Y]
    ldr     r2, [sp, #Y_LAST]
    str     r2, [sp, #Y_END]
    cmp     r1, r2
    .endm

    .macro  leave
    ldr     r0, [sp, #CLIPPED]
    add     sp, #FRAME
    pop     {r4-r7}
    mov     r8, r4
    mov     r9, r5
    mov     r10, r6
    mov     r11, r7
    pop     {r4-r7, pc}
    .endm

/* The sums of a block: r8, r9, r10, r11, r12, lr, r6, r7. r1 becomes x, r3 the bytes of the weights. */
    .macro  start_block
    mov     r2, sp
    ldmia   r2!, {r4-r7}
    mov     r8, r4
    mov     r9, r5
    mov     r10, r6
    mov     r11, r7
    ldmia   r2!, {r1, r3-r7}
    mov     r12, r4
    mov     lr, r5
    .endm

/* Adds the biases, if there are any, as they are held in the sums. Changes r2, r3, r4, r5. */
    .macro  add_biases
    ldr     r5, [sp, #KIND]
    lsls    r5, #31
    bpl     3f
    ldmia   r0!, {r2-r5}
    add     r8, r2
    add     r9, r3
    add     r10, r4
    add     r11, r5
    ldmia   r0!, {r2-r5}
    add     r12, r2
    add     lr, r3
    adds    r6, r4
    adds    r7, r5
3:
    .endm

/* Adds the bias of one row, if it has one, to r6. Changes r5. */
    .macro  add_bias
    ldr     r5, [sp, #KIND]
    lsls    r5, #31
    bpl     3f
    ldmia   r0!, {r5}
    adds    r6, r5
3:
    .endm

/* One row of one column: t = w >> shift, t times x is added to the sum. */
    .macro  product sum, w, shift, x
    asrs    r5, \w, #\shift
    muls    r5, \x
    .ifc    \sum, r6
    adds    r6, r5
    .else
    .ifc    \sum, r7
    adds    r7, r5
    .else
    add     \sum, r5
    .endif
    .endif
    .endm

/* ---- From sums to values ----
 *
 * The sum is cut in halves of 16 bits, each is multiplied with the multiplier, of
 * at most 15 bits. Together, shifted right, they give the value; the last bit
 * shifted out rounds it. 1 is subtracted before if the sum is negative: a tie goes
 * away from zero. A value is held with 32768 added, so that one shift tells
 * whether it fits an int16.
 */

/* r6 holds 32768. The sum lies on the stack. Gives the value in r4. Changes r2, r5. */
    .macro  requantize factor
    pop     {r2}
    lsrs    r4, \factor, #16
    uxth    r5, r2
    muls    r5, r4
    asrs    r2, #16
    muls    r4, r2
    asrs    r2, #16
    adds    r5, r2
    asrs    r5, #15
    adds    r4, r4
    adds    r4, r5
    asrs    r4, \factor             @ by the lowest byte
    adcs    r4, r6
    .endm

    .macro  store_row row, factor
    requantize \factor
    lsrs    r5, r4, #16
    beq     1f
    bl      clip
1:  adds    r4, r6
    strh    r4, [r1, #2 * (\row)]
    .endm

    .macro  add_row row, factor
    requantize \factor
    ldrh    r5, [r1, #2 * (\row)]
    sxth    r5, r5
    adds    r2, r4, r5
    orrs    r4, r2
    lsrs    r4, #16
    beq     1f
    bl      clip_both
1:  adds    r2, r6
    strh    r2, [r1, #2 * (\row)]
    .endm

/* r1 becomes y, r6 32768, r8 where to return to, r9 eight sums below the frame; N: the values are added to y. */
    .macro  start_values sums
    mov     r8, lr
    mov     r2, sp
    .if     \sums < 8
    subs    r2, #32 - 4 * \sums
    .endif
    mov     r9, r2
    ldr     r1, [sp, #4 * \sums + Y]
    ldr     r2, [sp, #4 * \sums + KIND]
    movs    r6, #1
    lsls    r6, #15
    .if     \sums < 8
    subs    r1, #16 - 2 * \sums
    ldmia   r0!, {r7}
    .endif
    lsls    r2, #30
    .endm

/* One sum lies on the stack, the frame above it. Takes the sum off the stack, moves r0 behind the multiplier and
 * gives Z set if it was the last row. Changes all low registers, r8 and r9. */
    function edgetqs_value_thumb1
    start_values 1
    bpl     1f
    b       add_last
1:  b       store_last
    end_function edgetqs_value_thumb1

/* What is to be done with a row, for eight; last is where it begins for the last of them. */
    .macro  eight_rows what, last
    .irp    row, 0, 2, 4
    ldmia   r0!, {r3, r7}
    \what   \row, r3
    \what   (\row+1), r7
    .endr
    ldmia   r0!, {r3, r7}
    \what   6, r3
\last:
    \what   7, r7
    .endm

/* The same with eight sums, the first the lowest. */
    .global edgetqs_values_thumb1
    .type   edgetqs_values_thumb1, %function
    .thumb_func
edgetqs_values_thumb1:
    start_values 8
    bpl     1f
    b       2f
1:  eight_rows store_row, store_last
    b       3f
2:  eight_rows add_row, add_last
3:  adds    r1, #16
    str     r1, [sp, #Y]
    ldr     r2, [sp, #Y_END]
    cmp     r1, r2
    mov     pc, r8

/* Puts the value in r4 into its range. Changes r5. */
clip:
    asrs    r4, #31
    mvns    r4, r4
    uxth    r4, r4
    mov     r5, r9
    str     r5, [r5, #CLIPPED + 32]
    bx      lr

/* r2 holds a value with r5 added: the value is put into its range first, then the sum. Changes r4. */
clip_both:
    subs    r4, r2, r5
    lsrs    r2, r4, #16
    beq     1f
    asrs    r4, #31
    mvns    r4, r4
    uxth    r4, r4
    mov     r2, r9
    str     r2, [r2, #CLIPPED + 32]
1:  adds    r2, r4, r5
    lsrs    r4, r2, #16
    beq     2f
    asrs    r2, #31
    mvns    r2, r2
    uxth    r2, r2
2:  bx      lr
    end_function edgetqs_values_thumb1

/* ---- int8 ---- */

/* One column of eight rows. r1 is as far from r0 as x from the weights. */
    .macro  column8
    ldrsh   r2, [r1, r0]
    subs    r1, #6
    ldmia   r0!, {r3, r4}
    product r9, r3, 8, r2
    product r10, r3, 16, r2
    product r11, r3, 24, r2
    muls    r3, r2
    add     r8, r3
    product lr, r4, 8, r2
    product r6, r4, 16, r2
    product r7, r4, 24, r2
    muls    r4, r2
    add     r12, r4
    .endm

    function edgetqs_rows8_thumb1
    enter
    lsls    r1, r6, #5
    str     r1, [sp, #BYTES]
    movs    r5, #0
    lsls    r7, #7
    rsbs    r4, r7, #0              @ takes off the 128s
    lsls    r3, r4, #8
    subs    r3, r7
    lsls    r2, r3, #8
    subs    r2, r7
    mov     r1, sp
    stmia   r1!, {r2-r5}
    adds    r1, #START_4 - 16
    stmia   r1!, {r2-r5}
    any_blocks
    bne     1f
    b       5f
1:  start_block
    adds    r3, r0
    str     r3, [sp, #END]
    subs    r1, r0
2:  .rept   4
    column8
    .endr
    ldr     r5, [sp, #END]
    cmp     r0, r5
    bne     2b
    add_biases
    mov     r5, lr
    mov     r4, r12
    lsls    r1, r7, #8
    lsls    r2, r6, #8
    lsls    r3, r5, #8
    subs    r6, r1
    subs    r5, r2
    subs    r4, r3
    push    {r4-r7}
    mov     r4, r8
    mov     r5, r9
    mov     r6, r10
    mov     r7, r11
    lsls    r1, r7, #8
    lsls    r2, r6, #8
    lsls    r3, r5, #8
    subs    r6, r1
    subs    r5, r2
    subs    r4, r3
    push    {r4-r7}
    bl      edgetqs_values_thumb1
    beq     5f
    b       1b
5:  any_left_over
    beq     9f
6:  ldr     r1, [sp, #X]
    ldr     r2, [sp, #BYTES]
    lsrs    r2, #3
    adds    r2, r0
    str     r2, [sp, #END]
    movs    r6, #0
7:  ldmia   r0!, {r3}
    ldmia   r1!, {r4, r5}
    sxtb    r7, r3
    sxth    r2, r4
    muls    r2, r7
    adds    r6, r2
    sxth    r7, r3
    asrs    r7, #8
    asrs    r4, #16
    muls    r4, r7
    adds    r6, r4
    lsls    r7, r3, #8
    asrs    r7, #24
    sxth    r2, r5
    muls    r2, r7
    adds    r6, r2
    asrs    r3, #24
    asrs    r5, #16
    muls    r5, r3
    adds    r6, r5
    ldr     r2, [sp, #END]
    cmp     r0, r2
    bne     7b
    add_bias
    push    {r6}
    bl      edgetqs_value_thumb1
    bne     6b
9:  leave
    end_function edgetqs_rows8_thumb1

/* ---- int4 ---- */

/* One column of eight rows, the word w times x. */
    .macro  column4 w, x
    product r9, \w, 4, \x
    product r10, \w, 8, \x
    product r11, \w, 12, \x
    product r12, \w, 16, \x
    product lr, \w, 20, \x
    product r6, \w, 24, \x
    product r7, \w, 28, \x
    muls    \w, \x
    add     r8, \w
    .endm

/* Two, and the word after them into r4, from where the first is taken. */
    .macro  two_columns4
    ldmia   r1!, {r2}
    sxth    r3, r2
    column4 r4, r3
    asrs    r2, #16
    ldmia   r0!, {r3, r4}
    column4 r3, r2
    .endm

/* Two weights of a row, in the highest bits of r3, times those of x in \x. */
    .macro  two_products4 x
    lsrs    r7, r3, #28
    sxth    r2, \x
    muls    r7, r2
    adds    r6, r7
    lsls    r3, #4
    lsrs    r7, r3, #28
    asrs    \x, #16
    muls    r7, \x
    adds    r6, r7
    .endm

    function edgetqs_rows4_thumb1
    enter
    any_blocks
    bne     2f
    lsls    r7, #3
    rsbs    r6, r7, #0
    str     r6, [sp, #ROW_6]
    b       5f
2:  adr     r1, offsets4
    ldmia   r1!, {r2-r5}
    muls    r2, r7
    muls    r3, r7
    muls    r4, r7
    muls    r5, r7
    mov     r6, sp
    stmia   r6!, {r2-r5}
    adds    r6, #START_4 - 16
    ldmia   r1!, {r2-r5}
    muls    r2, r7
    muls    r3, r7
    muls    r4, r7
    stmia   r6!, {r2-r5}
1:  start_block
    ldmia   r0!, {r4}
2:  two_columns4
    two_columns4
    lsls    r5, r4, #28
    bne     2b
    add_biases
    mov     r5, lr
    mov     r4, r12
    lsls    r1, r7, #4
    lsls    r2, r6, #4
    lsls    r3, r5, #4
    subs    r6, r1
    lsls    r1, r4, #4
    subs    r5, r2
    subs    r4, r3
    push    {r4-r7}
    mov     r4, r8
    mov     r5, r9
    mov     r6, r10
    mov     r7, r11
    lsls    r2, r7, #4
    lsls    r3, r6, #4
    subs    r7, r1
    lsls    r1, r5, #4
    subs    r6, r2
    subs    r5, r3
    subs    r4, r1
    push    {r4-r7}
    bl      edgetqs_values_thumb1
    beq     5f
    b       1b
5:  any_left_over
    beq     9f
6:  ldr     r1, [sp, #X]
    ldr     r6, [sp, #ROW_6]        @ minus 8 times the sum of x
    ldmia   r0!, {r3}
7:  ldmia   r1!, {r4, r5}
    two_products4 r4
    lsls    r3, #4
    two_products4 r5
    lsls    r3, #4
    beq     8f
    ldmia   r1!, {r4, r5}
    two_products4 r4
    lsls    r3, #4
    two_products4 r5
    ldmia   r0!, {r3}
    cmp     r3, #0
    bne     7b
    b       4f
8:  adds    r0, #4
4:  add_bias
    push    {r6}
    bl      edgetqs_value_thumb1
    bne     6b
9:  leave
    .balign 4
offsets4:                           @ by row, those of the rows above included
    .word   -8 * 0x1111111, -8 * 0x111111, -8 * 0x11111, -8 * 0x1111, -8 * 0x111, -8 * 0x11, -8, 0
    end_function edgetqs_rows4_thumb1

#endif

#if defined(__linux__) && defined(__ELF__)
    .section .note.GNU-stack, "", %progbits
#endif
