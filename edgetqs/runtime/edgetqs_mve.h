/* Assembler macros that the files for Helium share. */
#ifndef EDGETQS_MVE_H
#define EDGETQS_MVE_H

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

#endif
