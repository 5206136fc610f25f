/*
 * RP2040's second boot stage. The boot ROM copies these 256 bytes to SRAM, checks
 * the CRC at their end (edgetqs/boot2.py writes it) and calls them. They set the
 * flash interface to plain reads (command 03h, 24 address bits, one data line),
 * which every serial flash answers, and start the program behind them.
 *
 * RP2040 data sheet: 2.8.1 Bootrom, 4.10.13 SSI registers.
 */
    .syntax unified
    .cpu cortex-m0plus
    .thumb

    .equ XIP_SSI, 0x18000000
    .equ SSI_CTRLR0, 0x00
    .equ SSI_CTRLR1, 0x04
    .equ SSI_SSIENR, 0x08
    .equ SSI_BAUDR, 0x14
    .equ SSI_SPI_CTRLR0, 0xF4
    .equ CTRLR0_READ_32, (31 << 16) | (3 << 8) /* 32 bits a frame, command and address before it */
    .equ SPI_CTRLR0_03H, (0x03 << 24) | (2 << 8) | (6 << 2) /* command, 8 bits of it, 24 bits of address */
    .equ CLOCK_DIVIDER, 2 /* the least; any flash reads at half of the 12 MHz */
    .equ VECTORS, 0x10000100
    .equ SCB_VTOR, 0xE000ED08

    .section .boot2, "ax", %progbits
    .global board_boot2
    .type board_boot2, %function
    .thumb_func
board_boot2:
    ldr  r3, =XIP_SSI
    movs r0, #0
    str  r0, [r3, #SSI_SSIENR]
    movs r1, #CLOCK_DIVIDER
    str  r1, [r3, #SSI_BAUDR]
    ldr  r1, =CTRLR0_READ_32
    str  r1, [r3, #SSI_CTRLR0]
    str  r0, [r3, #SSI_CTRLR1]
    ldr  r1, =SPI_CTRLR0_03H
    ldr  r2, =(XIP_SSI + SSI_SPI_CTRLR0)
    str  r1, [r2]
    movs r0, #1
    str  r0, [r3, #SSI_SSIENR]
    ldr  r0, =VECTORS
    ldr  r1, =SCB_VTOR
    str  r0, [r1]
    ldmia r0!, {r1, r2}
    msr  msp, r1
    bx   r2
    .size board_boot2, . - board_boot2
    .ltorg
    .org 252
    .word 0
