/*
 * Functions by table and cells for ARMv6-M: the functions of edgetqs_cells.c that
 * take the most time, the same integers.
 *
 * Vectors are walked through by an offset from their ends, which grows to 0. A
 * place in the table is held as q, 4 times as fine as the function reads it: 15, 30
 * or 60 times z plus 2. For negative values q is of ~z's multiple, which is one
 * less than that of -z, as the reference rounds up on that side.
 */
#if defined(__ARM_ARCH_6M__)

#include "edgetqs_thumb.h"

/* Saves what a function may not change. Changes r4 to r7. */
    .macro  enter
    push    {r4-r7, lr}
    mov     r4, r8
    mov     r5, r9
    mov     r6, r10
    mov     r7, r11
    push    {r4-r7}
    .endm

    .macro  leave
    pop     {r4-r7}
    mov     r8, r4
    mov     r9, r5
    mov     r10, r6
    mov     r11, r7
    pop     {r4-r7, pc}
    .endm

/* r5 becomes (entry << bits) + between * (next entry - entry): r6 is the entry's number, r5 holds, below it, what is
 * between, with some more bits below that. r4 holds the table. Changes r7. */
    .macro  interpolate bits, more
    lsls    r6, #1
    ldrsh   r7, [r4, r6]
    adds    r6, #2
    ldrsh   r6, [r4, r6]
    lsls    r5, #32 - \bits - \more
    lsrs    r5, #32 - \bits
    subs    r6, r7
    muls    r5, r6
    lsls    r7, #\bits
    adds    r5, r7
    .endm

/* ---- void edgetqs_sigmoid(int16_t *values, unsigned count) ---- */

/* A value that came from the table in r5, one half and the function's value at 0 in r3. */
    .macro  store_sigmoid
    adds    r5, r3
    lsrs    r5, #10
    strh    r5, [r0, r1]
    adds    r1, #2
    .endm

    .macro  sigmoid_loop last
1:  ldrsh   r5, [r0, r1]
    muls    r5, r2
    bmi     2f
    adds    r5, #2
    lsrs    r6, r5, #11
    .if     \last
    cmp     r6, #254
    bhi     3f
    .endif
    interpolate 9, 2
    store_sigmoid
    bne     1b
    pop     {r4-r7, pc}
2:  mvns    r5, r5
    adds    r5, #2
    lsrs    r6, r5, #11
    .if     \last
    cmp     r6, #254
    bhi     4f
    .endif
    interpolate 9, 2
    mvns    r5, r5
    store_sigmoid
    bne     1b
    pop     {r4-r7, pc}
    .if     \last
3:  ldr     r5, =0x7FFF
    b       5f
4:  movs    r5, #1
5:  strh    r5, [r0, r1]
    adds    r1, #2
    bne     1b
    pop     {r4-r7, pc}
    .endif
    .endm

    .macro  start_sigmoid
    lsls    r1, #1
    adds    r0, r1
    rsbs    r1, r1, #0
    ldr     r3, =(1 << 24) + 512
    ldr     r4, =edgetqs_thumb1_table
    .endm

    function edgetqs_sigmoid
    push    {r4-r7, lr}
    start_sigmoid
    movs    r2, #15
    sigmoid_loop 0
    end_function edgetqs_sigmoid

/* ---- void edgetqs_sigmoid_wide(int16_t *values, unsigned count, unsigned table_shift) ---- */

/* The function is flat from entry 255 on. */
    function edgetqs_sigmoid_wide
    push    {r4-r7, lr}
    start_sigmoid
    movs    r5, #13
    subs    r5, r2
    movs    r2, #15
    lsls    r2, r5
    sigmoid_loop 1
    end_function edgetqs_sigmoid_wide

/* ---- void edgetqs_tanh(int16_t *values, unsigned count, unsigned table_shift) ---- */

/* r5, with more bits below, to the function's value but for the sign. It is flat from entry 255 on. */
    .macro  tanh_magnitude more
    lsrs    r6, r5, #8 + \more
    cmp     r6, #255
    bhi     7f
    interpolate 8, \more
6:
    .endm

/* The same for values beyond the table, out of the way. */
    .macro  tanh_beyond
7:  ldr     r5, =0x7FFF00
    b       6b
    .endm

    function edgetqs_tanh
    push    {r4-r7, lr}
    lsls    r1, #1
    adds    r0, r1
    rsbs    r1, r1, #0
    movs    r5, #13
    subs    r5, r2
    movs    r2, #15
    lsls    r2, r5
    ldr     r4, =edgetqs_thumb1_table
1:  ldrsh   r5, [r0, r1]
    muls    r5, r2
    bmi     2f
    adds    r5, #2
    tanh_magnitude 2
    adds    r5, #128
    asrs    r5, #8
    strh    r5, [r0, r1]
    adds    r1, #2
    bne     1b
    pop     {r4-r7, pc}
    tanh_beyond
2:  mvns    r5, r5
    adds    r5, #2
    tanh_magnitude 2
    mvns    r5, r5
    adds    r5, #128
    asrs    r5, #8
    strh    r5, [r0, r1]
    adds    r1, #2
    bne     1b
    pop     {r4-r7, pc}
    tanh_beyond
    end_function edgetqs_tanh

/* ---- uint32_t edgetqs_lstm_update(const int16_t *gates, int16_t *h, int16_t *c, unsigned units,
 *                                   unsigned cell_bits) ---- */

/* product, of a gate and value, becomes the product / 2^shift but for the shift itself: half is 2^(shift - 1) + 1.
 * Changes value. */
    .macro  round product, value, half
    muls    \product, \value
    asrs    \value, #31
    lsls    \value, #1
    adds    \product, \value
    add     \product, \half
    .endm

    function edgetqs_lstm_update
    enter
    movs    r7, #0
    mov     r12, r7                 @ clipped
    lsls    r3, #1
    mov     r11, r3
    ldr     r5, =0x4001
    mov     r8, r5
    ldr     r5, [sp, #36]           @ cell_bits
    movs    r6, #30
    subs    r6, r5
    mov     r10, r6
    subs    r6, #1
    movs    r7, #1
    lsls    r7, r6
    adds    r7, #1
    mov     r9, r7
    adds    r4, r2, r3              @ c
    adds    r0, r3                  @ i
    adds    r2, r0, r3              @ f
    adds    r3, r2, r3              @ fresh
    mov     lr, r1                  @ h
    mov     r1, r11
    rsbs    r1, r1, #0
1:  ldrsh   r5, [r2, r1]
    ldrsh   r6, [r4, r1]
    round   r5, r6, r8
    asrs    r5, #15
    ldrsh   r6, [r0, r1]
    ldrsh   r7, [r3, r1]
    round   r6, r7, r9
    mov     r7, r10
    asrs    r6, r7
    adds    r5, r6
    sxth    r6, r5
    cmp     r5, r6
    bne     3f
2:  strh    r6, [r4, r1]
    adds    r1, #2
    bne     1b
    b       4f
3:  mov     r12, sp                 @ not 0
    asrs    r6, r5, #31
    ldr     r7, =0x7FFF
    eors    r6, r7
    b       2b
/* As tanh reads it, at 5*2^-13, the state is 0.8 * 2^(11 - cell_bits) times itself; see edgetqs_cells.c. */
4:  mov     r0, r11
    adds    r3, r0                  @ o
    mov     r2, lr
    adds    r2, r0                  @ h
    rsbs    r1, r0, #0
    mov     r0, r4                  @ c
    ldr     r4, =edgetqs_thumb1_table
    ldr     r5, [sp, #36]
    adds    r5, #4
    movs    r6, #1
    lsls    r6, r5
    mov     r9, r6
    adds    r5, #1
    mov     r10, r5
    ldr     r5, =52429
    mov     r11, r5
5:  ldrsh   r5, [r0, r1]
    mov     r6, r11
    muls    r5, r6
    add     r5, r9
    mov     r6, r10
    asrs    r5, r6
    lsls    r6, r5, #4
    subs    r5, r6, r5
    bmi     8f
    adds    r5, #1
    tanh_magnitude 1
    adds    r5, #128
    asrs    r5, #8
    ldrsh   r6, [r3, r1]
    muls    r5, r6
    add     r5, r8
    asrs    r5, #15
    strh    r5, [r2, r1]
    adds    r1, #2
    bne     5b
    b       9f
    tanh_beyond
8:  mvns    r5, r5
    adds    r5, #1
    tanh_magnitude 1
    mvns    r5, r5
    adds    r5, #128
    asrs    r5, #8
    ldrsh   r6, [r3, r1]
    muls    r5, r6
    subs    r5, #2
    add     r5, r8
    asrs    r5, #15
    strh    r5, [r2, r1]
    adds    r1, #2
    bne     5b
9:  mov     r0, r12
    leave
    tanh_beyond
    end_function edgetqs_lstm_update

/* ---- void edgetqs_gru_reset_add(int16_t *a, const int16_t *r, const int16_t *b, unsigned units)
 *      void edgetqs_gru_reset(int16_t *a, const int16_t *r, const int16_t *b, unsigned units) ---- */

    .macro  start_reset
    push    {r4-r7, lr}
    lsls    r3, #1
    adds    r0, r3
    adds    r1, r3
    adds    r2, r3
    rsbs    r3, r3, #0
    ldr     r4, =0x4001
    mov     r12, r4
1:  ldrsh   r5, [r1, r3]
    ldrsh   r6, [r2, r3]
    round   r5, r6, r12
    asrs    r5, #15
    .endm

    function edgetqs_gru_reset_add
    start_reset
    ldrsh   r6, [r0, r3]
    adds    r6, r5
    sxth    r5, r6
    cmp     r5, r6
    bne     3f
2:  strh    r5, [r0, r3]
    adds    r3, #2
    bne     1b
    pop     {r4-r7, pc}
3:  asrs    r5, r6, #31
    ldr     r7, =0x7FFF
    eors    r5, r7
    b       2b
    end_function edgetqs_gru_reset_add

    function edgetqs_gru_reset
    start_reset
    strh    r5, [r0, r3]
    adds    r3, #2
    bne     1b
    pop     {r4-r7, pc}
    end_function edgetqs_gru_reset

/* ---- void edgetqs_gru_update(const int16_t *z, int16_t *fresh, int16_t *h, unsigned units,
 *                              unsigned table_shift) ---- */

/* From the candidate in r5, at minus_two 2 of a negative one, to the state. As a gate lies between 0 and 1, so does
 * the state between its old value and the candidate: nothing is clipped. */
    .macro  mix minus_two
    ldrsh   r6, [r0, r1]
    movs    r7, r5
    muls    r7, r6
    .if     \minus_two
    subs    r7, #\minus_two
    .endif
    add     r7, r9
    asrs    r7, #15
    subs    r5, r7
    ldrsh   r7, [r2, r1]
    round   r6, r7, r9
    asrs    r6, #15
    adds    r5, r6
    strh    r5, [r2, r1]
    adds    r1, #2
    bne     1b
    .endm

    function edgetqs_gru_update
    enter
    lsls    r3, #1
    adds    r0, r3
    adds    r2, r3
    ldr     r4, [sp, #36]           @ table_shift
    movs    r5, #13
    subs    r5, r4
    movs    r4, #15
    lsls    r4, r5
    mov     r8, r4
    ldr     r4, =0x4001
    mov     r9, r4
    ldr     r4, =edgetqs_thumb1_table
    adds    r5, r1, r3
    rsbs    r1, r3, #0
    mov     r3, r5
1:  ldrsh   r5, [r3, r1]
    mov     r6, r8
    muls    r5, r6
    bmi     2f
    adds    r5, #2
    tanh_magnitude 2
    adds    r5, #128
    asrs    r5, #8
    mix     0
    b       9f
    tanh_beyond
2:  mvns    r5, r5
    adds    r5, #2
    tanh_magnitude 2
    mvns    r5, r5
    adds    r5, #128
    asrs    r5, #8
    mix     2
9:  leave
    tanh_beyond
    end_function edgetqs_gru_update

#endif

#if defined(__linux__) && defined(__ELF__)
    .section .note.GNU-stack, "", %progbits
#endif
