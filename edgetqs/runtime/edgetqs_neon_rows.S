/*
 * Matrix rows for aarch64 (Advanced SIMD); the layout is told in edgetqs_neon.c,
 * which holds the same in C for everyone else.
 *
 * uint32_t edgetqs_rows8_neon(const edgetqs_rows *m, const int16_t *x, int16_t *y, bool add);
 * uint32_t edgetqs_rows4_neon(the same);
 *
 * Each lane of a sum is a row: a column's weights, widened, are multiplied with one
 * lane of x. Until a block's end the sum of the upper of two int4 rows is that of
 * both, 16 lower + upper.
 *
 *   x0 add   x1 x        x2 y        x3 weights   x4 x, on its way
 *   w5 rows left   w6 groups of eight columns   w7 groups left   w8 biased
 *   v0 x   v1 to v4, v20 to v23 weights   v16 to v19 sums   v24, v25 values
 *   v30 16 in each lane   v31 what clipping took off, collected
 */
#if defined(__aarch64__)

    .macro  function name
    .section .text.\name, "ax", %progbits
    .balign 16
    .global \name
    .type   \name, %function
\name:
    .endm

    .macro  enter
    ldrh    w5, [x0, #8]
    ldrh    w6, [x0, #10]
    ldrb    w8, [x0, #12]
    ldr     x4, [x0]
    and     w0, w3, #0xff
    mov     x3, x4
    add     w6, w6, #7
    lsr     w6, w6, #3
    movi    v30.4s, #16
    movi    v31.4s, #0
    .endm

    .macro  leave
    umaxv   s31, v31.4s
    fmov    w0, s31
    ret
    .endm

/* One column of int8 weights of sixteen rows. */
    .macro  column_of_16 weights, column
    sxtl    v20.8h, \weights\().8b
    sxtl2   v21.8h, \weights\().16b
    smlal   v16.4s, v20.4h, v0.h[\column]
    smlal2  v17.4s, v20.8h, v0.h[\column]
    smlal   v18.4s, v21.4h, v0.h[\column]
    smlal2  v19.4s, v21.8h, v0.h[\column]
    .endm

/* Two columns of int8 weights of eight rows. */
    .macro  columns_of_8 weights, column, next
    sxtl    v20.8h, \weights\().8b
    sxtl2   v21.8h, \weights\().16b
    smlal   v16.4s, v20.4h, v0.h[\column]
    smlal2  v17.4s, v20.8h, v0.h[\column]
    smlal   v16.4s, v21.4h, v0.h[\next]
    smlal2  v17.4s, v21.8h, v0.h[\next]
    .endm

/* One column of int4 weights of sixteen rows, widened by `widen`. */
    .macro  column_of_16_pairs widen, weights, column
    \widen  v20.8h, \weights
    srshr   v21.8h, v20.8h, #4
    smlal   v16.4s, v20.4h, v0.h[\column]
    smlal2  v17.4s, v20.8h, v0.h[\column]
    smlal   v18.4s, v21.4h, v0.h[\column]
    smlal2  v19.4s, v21.8h, v0.h[\column]
    .endm

/* Two columns of int4 weights of eight rows, widened by `widen`. */
    .macro  columns_of_8_pairs widen, weights, column, next
    \widen  v20.8h, \weights
    srshr   v21.8h, v20.8h, #4
    smlal   v16.4s, v20.4h, v0.h[\column]
    smlal   v17.4s, v21.4h, v0.h[\column]
    smlal2  v16.4s, v20.8h, v0.h[\next]
    smlal2  v17.4s, v21.8h, v0.h[\next]
    .endm

/* Eight columns of a block. */
    .macro  eight_columns rows, width
    ldr     q0, [x4], #16
    .if     \rows * \width == 128
    ldp     q1, q2, [x3], #32
    ldp     q3, q4, [x3], #32
    column_of_16 v1, 0
    column_of_16 v2, 1
    column_of_16 v3, 2
    column_of_16 v4, 3
    ldp     q1, q2, [x3], #32
    ldp     q3, q4, [x3], #32
    column_of_16 v1, 4
    column_of_16 v2, 5
    column_of_16 v3, 6
    column_of_16 v4, 7
    .elseif \rows == 16
    ldp     q1, q2, [x3], #32
    ldp     q3, q4, [x3], #32
    column_of_16_pairs sxtl, v1.8b, 0
    column_of_16_pairs sxtl2, v1.16b, 1
    column_of_16_pairs sxtl, v2.8b, 2
    column_of_16_pairs sxtl2, v2.16b, 3
    column_of_16_pairs sxtl, v3.8b, 4
    column_of_16_pairs sxtl2, v3.16b, 5
    column_of_16_pairs sxtl, v4.8b, 6
    column_of_16_pairs sxtl2, v4.16b, 7
    .elseif \width == 8
    ldp     q1, q2, [x3], #32
    ldp     q3, q4, [x3], #32
    columns_of_8 v1, 0, 1
    columns_of_8 v2, 2, 3
    columns_of_8 v3, 4, 5
    columns_of_8 v4, 6, 7
    .else
    ldp     q1, q2, [x3], #32
    columns_of_8_pairs sxtl, v1.8b, 0, 1
    columns_of_8_pairs sxtl2, v1.16b, 2, 3
    columns_of_8_pairs sxtl, v2.8b, 4, 5
    columns_of_8_pairs sxtl2, v2.16b, 6, 7
    .endif
    .endm

/* Four sums become values. Whoever is not negative has a product that is not, since no multiplier is. Changes v5. */
    .macro  requantize sum, multiplier
    smull   v5.2d, \sum\().2s, \multiplier\().2s
    smull2  \multiplier\().2d, \sum\().4s, \multiplier\().4s
    ssra    v5.2d, v5.2d, #63
    ssra    \multiplier\().2d, \multiplier\().2d, #63
    rshrn   \sum\().2s, v5.2d, #32
    rshrn2  \sum\().4s, \multiplier\().2d, #32
    .endm

/* Eight sums become eight values, clipped. Changes v1, v2. */
    .macro  values_of value, low, high
    ldp     q1, q2, [x3], #32
    requantize \low, v1
    requantize \high, v2
    sqxtn   \value\().4h, \low\().4s
    sqxtn2  \value\().8h, \high\().4s
    ssubw   \low\().4s, \low\().4s, \value\().4h
    ssubw2  \high\().4s, \high\().4s, \value\().8h
    orr     v31.16b, v31.16b, \low\().16b
    orr     v31.16b, v31.16b, \high\().16b
    .endm

/* All rows of m. */
    .macro  rows width
    enter
    subs    w5, w5, #16
    b.lo    4f
1:  mov     x4, x1
    mov     w7, w6
    cbz     w8, 6f
    ldp     q16, q17, [x3], #32
    ldp     q18, q19, [x3], #32
2:  eight_columns 16, \width
    subs    w7, w7, #1
    b.ne    2b
    .if     \width == 4
    mls     v16.4s, v18.4s, v30.4s
    mls     v17.4s, v19.4s, v30.4s
    .endif
    values_of v24, v16, v17
    values_of v25, v18, v19
    cbz     w0, 3f
    ldp     q0, q1, [x2]
    sqadd   v24.8h, v24.8h, v0.8h
    sqadd   v25.8h, v25.8h, v1.8h
3:  stp     q24, q25, [x2], #32
    subs    w5, w5, #16
    b.hs    1b
4:  adds    w5, w5, #16
    b.ne    7f
5:  leave

6:  movi    v16.4s, #0
    movi    v17.4s, #0
    movi    v18.4s, #0
    movi    v19.4s, #0
    b       2b

/* The rest, in blocks of eight. */
7:  mov     x4, x1
    mov     w7, w6
    movi    v16.4s, #0
    movi    v17.4s, #0
    cbz     w8, 8f
    ldp     q16, q17, [x3], #32
8:  eight_columns 8, \width
    subs    w7, w7, #1
    b.ne    8b
    .if     \width == 4
    mls     v16.4s, v17.4s, v30.4s
    .endif
    values_of v24, v16, v17
    subs    w5, w5, #8
    b.lo    10f
    cbz     w0, 9f
    ldr     q0, [x2]
    sqadd   v24.8h, v24.8h, v0.8h
9:  str     q24, [x2], #16
    b.ne    7b
    leave

/* Fewer than eight, one by one. */
10: add     w5, w5, #8
    cbz     w0, 12f
11: ldr     h0, [x2]
    sqadd   h0, h0, h24
    str     h0, [x2], #2
    ext     v24.16b, v24.16b, v24.16b, #2
    subs    w5, w5, #1
    b.ne    11b
    leave
12: str     h24, [x2], #2
    ext     v24.16b, v24.16b, v24.16b, #2
    subs    w5, w5, #1
    b.ne    12b
    leave
    .endm

    function edgetqs_rows8_neon
    rows    8
    .size   edgetqs_rows8_neon, . - edgetqs_rows8_neon

    function edgetqs_rows4_neon
    rows    4
    .size   edgetqs_rows4_neon, . - edgetqs_rows4_neon

    .section .note.GNU-stack, "", %progbits

#endif
