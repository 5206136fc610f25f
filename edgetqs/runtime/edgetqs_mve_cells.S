/*
 * Functions by table and cells for cores with Helium, eight values at a time: the
 * same integers as edgetqs_cells.c, in 16 bits throughout, since a loop that ends
 * within a vector must not have lanes that are half within.
 *
 * Table: with u = |z|, 15 u / 2^k (k = table_shift - 11) is an entry e and, below
 * it, a fraction of 8 bits (tanh) or 9 (sigmoid), to which up to 2 / 2^k are added
 * for rounding: c+ or c-, as z is signed. 15 u 2^(8 - k) has e in its upper half
 * and the fraction in the lower one, which is halved as c is added, so that a
 * carry is not lost: it makes a fraction of 1, where the line to the next entry
 * ends. Where the functions are flat they keep the value that they have at a u
 * that is still within the table. cell_bits is 3 to 11.
 */
#if defined(__ARM_FEATURE_MVE)

#include "edgetqs_thumb.h"

/* Of the table: the entries and the ones after them. */
    .macro  tables entries, next
    ldr     \entries, =edgetqs_mve_table
    adds    \next, \entries, #2
    .endm

/* From k: q4 the factor 15 * 2^(bits - k), q5 the most that u counts, c+ and c-. Changes t. */
    .macro  parameters bits, k, plus, minus, t
    movw    \t, #15 << \bits
    lsrs    \t, \k
    vdup.16 q4, \t
    movw    \t, #(255 << (16 - \bits)) / 15
    lsls    \t, \k
    subs    \t, #1
    vdup.16 q5, \t
    adds    \plus, \k, #1
    lsrs    \plus, #1
    lsls    \plus, #\bits - 1
    lsrs    \minus, \k, #1
    lsls    \minus, #\bits - 2
    .endm

/* u in q1, z in q0: the entry's value to q1, twice the step to the next one to q0, the fraction, at 2^-15 or 2^-7 of
 * its last bit, to q2; the lanes where z is negative to P0. Changes q3. */
    .macro  look_up bits, entries, next, plus, minus
    vmul.i16 q2, q1, q4
    vmulh.u16 q3, q1, q4
    vpte.s16 ge, q0, zr
    vhaddt.u16 q2, q2, \plus
    vhadde.u16 q2, q2, \minus
    vldrh.u16 q1, [\entries, q3, uxtw #1]
    vldrh.u16 q0, [\next, q3, uxtw #1]
    vbic.i16 q2, #(1 << (\bits - 1)) - 1
    vsub.i16 q0, q0, q1
    vadd.i16 q0, q0, q0
    .endm

/* z in q0 (and u in q1) -> tanh in q1. Changes q0, q2, q3. */
    .macro  tanh_of_magnitude entries, next, plus, minus
    vmin.u16 q1, q1, q5
    look_up 8, \entries, \next, \plus, \minus
    vrmulh.u16 q2, q2, q0
    vadd.i16 q1, q1, q2
    vpst
    vnegt.s16 q1, q1
    .endm

/* u in q1, z in q0 -> sigmoid in q1; half holds 2^14. */
    .macro  sigmoid_of_magnitude entries, next, plus, minus, half
    look_up 7, \entries, \next, \plus, \minus
    vmulh.u16 q2, q2, q0
    vrhadd.u16 q1, q1, q2
    vpst
    vnegt.s16 q1, q1
    vadd.i16 q1, q1, \half
    .endm

/* result = gate * value / 2^15: a halving with ties up, then ties away from zero; odd holds 0x7FFE. VQRDMULH's ties
 * are up; what it lacks are products of 2^14 - 1, or the same for ~product, in their lower 15 bits. Changes gate. */
    .macro  gated result, gate, value, low, odd
    vqrdmulh.s16 \result, \gate, \value
    vmul.i16 \low, \gate, \value
    vshr.s16 \gate, \value, #15
    veor    \low, \low, \gate
    vshl.i16 \low, \low, #1
    vorr.i16 \gate, #1
    vpt.i16 eq, \low, \odd
    vaddt.i16 \result, \result, \gate
    .endm

    function edgetqs_sigmoid
    push    {r4, lr}
    vpush   {d8, d9}
    mov     r2, #480
    vdup.16 q4, r2
    tables  r2, r3
    movs    r4, #64
    mov     r12, #32
    dlstp.16 lr, r1
    mov     r1, #1 << 14
1:  vldrh.u16 q0, [r0]
    vabs.s16 q1, q0
    sigmoid_of_magnitude r2, r3, r4, r12, r1
    vstrh.16 q1, [r0], #16
    letp    lr, 1b
    vpop    {d8, d9}
    pop     {r4, pc}
    end_function edgetqs_sigmoid

    function edgetqs_sigmoid_wide
    push    {r4, r5, r6, lr}
    vpush   {d8-d11}
    subs    r2, #11
    parameters 7, r2, r4, r5, r3
    tables  r2, r3
    mov     r6, #1 << 14
    dlstp.16 lr, r1
1:  vldrh.u16 q0, [r0]
    vabs.s16 q1, q0
    vmin.u16 q1, q1, q5
    sigmoid_of_magnitude r2, r3, r4, r5, r6
    vstrh.16 q1, [r0], #16
    letp    lr, 1b
    vpop    {d8-d11}
    pop     {r4, r5, r6, pc}
    end_function edgetqs_sigmoid_wide

    function edgetqs_tanh
    push    {r4, r5, r6, lr}
    vpush   {d8-d11}
    subs    r2, #11
    parameters 8, r2, r4, r5, r3
    tables  r2, r3
    dlstp.16 lr, r1
1:  vldrh.u16 q0, [r0]
    vabs.s16 q1, q0
    tanh_of_magnitude r2, r3, r4, r5
    vstrh.16 q1, [r0], #16
    letp    lr, 1b
    vpop    {d8-d11}
    pop     {r4, r5, r6, pc}
    end_function edgetqs_tanh

    function edgetqs_lstm_update
    push    {r4-r10, lr}
    vpush   {d8-d13}
    ldr     r9, [sp, #80]           @ cell_bits
    mov     r10, r2
    movs    r4, #0
    vmsr    fpscr_nzcvqc, r4
    add     r4, r0, r3, lsl #1      @ f, then the candidate, then o
    add     r5, r4, r3, lsl #1
    add     r6, r5, r3, lsl #1
    movw    r7, #0x7FFE
    sub     r8, r9, #14
    dlstp.16 lr, r3
1:  vldrh.u16 q0, [r4], #16
    vldrh.u16 q1, [r10]
    gated   q2, q0, q1, q3, r7
    vldrh.u16 q0, [r0], #16
    vldrh.u16 q1, [r5], #16
    vmulh.s16 q3, q0, q1            @ the same over 2^(30 - cell_bits), in two steps: what the first lacks
    vmul.i16 q4, q0, q1             @ are products, or ~products, of 2^16 - 1 in their lower half
    vshr.s16 q0, q1, #15
    vmvn    q1, q0
    vorr.i16 q0, #1
    vpt.i16 eq, q4, q1
    vaddt.i16 q3, q3, q0
    vrshl.s16 q3, r8
    vqadd.s16 q2, q2, q3
    vstrh.16 q2, [r10], #16
    letp    lr, 1b
    vmrs    r10, fpscr_nzcvqc
    mov     r5, #1920               @ tanh's parameters for k = 1
    vdup.16 q4, r5
    movw    r5, #8703
    vdup.16 q5, r5
    movw    r5, #13107
    vdup.16 q6, r5
    rsb     r8, r9, #11
    tables  r4, r5
    mov     r9, #128
    movs    r0, #0
    dlstp.16 lr, r3
1:  vldrh.u16 q0, [r2], #16
    vabs.s16 q1, q0
    vqshl.u16 q1, r8
    vrmulh.u16 q2, q1, q6           @ a fifth; no multiple of it lies so near a tie that this would tell
    vsub.i16 q1, q1, q2
    tanh_of_magnitude r4, r5, r9, r0
    vldrh.u16 q0, [r6], #16
    gated   q2, q0, q1, q3, r7
    vstrh.16 q2, [r1], #16
    letp    lr, 1b
    and     r0, r10, #1 << 27
    vpop    {d8-d13}
    pop     {r4-r10, pc}
    end_function edgetqs_lstm_update

    function edgetqs_gru_reset_add
    push    {r4, lr}
    movw    r4, #0x7FFE
    dlstp.16 lr, r3
1:  vldrh.u16 q0, [r1], #16
    vldrh.u16 q1, [r2], #16
    gated   q2, q0, q1, q3, r4
    vldrh.u16 q0, [r0]
    vqadd.s16 q0, q0, q2
    vstrh.16 q0, [r0], #16
    letp    lr, 1b
    pop     {r4, pc}
    end_function edgetqs_gru_reset_add

    function edgetqs_gru_reset
    push    {r4, lr}
    movw    r4, #0x7FFE
    dlstp.16 lr, r3
1:  vldrh.u16 q0, [r1], #16
    vldrh.u16 q1, [r2], #16
    gated   q2, q0, q1, q3, r4
    vstrh.16 q2, [r0], #16
    letp    lr, 1b
    pop     {r4, pc}
    end_function edgetqs_gru_reset

    function edgetqs_gru_update
    push    {r4-r7, lr}
    vpush   {d8-d13}
    ldr     r4, [sp, #68]           @ table_shift
    subs    r4, #11
    parameters 8, r4, r5, r6, r7
    dlstp.16 lr, r3
    tables  r3, r4
    movw    r7, #0x7FFE
1:  vldrh.u16 q0, [r1], #16
    vabs.s16 q1, q0
    tanh_of_magnitude r3, r4, r5, r6
    vldrh.u16 q0, [r0]
    gated   q2, q0, q1, q3, r7
    vqsub.s16 q2, q1, q2
    vldrh.u16 q0, [r0], #16
    vldrh.u16 q1, [r2]
    gated   q3, q0, q1, q6, r7
    vqadd.s16 q2, q2, q3
    vstrh.16 q2, [r2], #16
    letp    lr, 1b
    vpop    {d8-d13}
    pop     {r4-r7, pc}
    end_function edgetqs_gru_update

#endif

#if defined(__linux__) && defined(__ELF__)
    .section .note.GNU-stack, "", %progbits
#endif
