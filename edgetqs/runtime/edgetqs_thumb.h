/* Assembler macros that all assembly of the runtime shares. */
#ifndef EDGETQS_THUMB_H
#define EDGETQS_THUMB_H

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
    .balign 4
    .ltorg
    .size   \name, . - \name
    .endm

#endif
