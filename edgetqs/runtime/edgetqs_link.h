/*
 * The link: frames between a computer and the firmware. docs/protocol.md.
 *
 * edgetqs_link.c  framing: COBS, CRC-16, nothing of the model
 * serve.c, serve_requests.c  sessions and requests
 *
 * On the wire a frame is 0x00, COBS(payload, CRC-16 of it, little-endian), 0x00.
 * A payload is kind, session (2), sequence number (2), body. Numbers are
 * little-endian. edgetqs/protocol.py is the other side.
 */
#ifndef EDGETQS_LINK_H
#define EDGETQS_LINK_H

#include <stddef.h>
#include <stdint.h>

#define LINK_VERSION 1u
#define LINK_HEAD 5u /* bytes of a payload before its body */
#define LINK_CRC 2u
#define LINK_ERROR_BODY 6u /* code, kind of the request, detail (4) */

/* Requests. A reply has the same number with LINK_REPLY set. */
#define LINK_HELLO 1u
#define LINK_RESET 2u
#define LINK_STEP 3u
#define LINK_STEP_FLOAT 4u
#define LINK_ADVANCE 5u
#define LINK_FORECAST 6u
#define LINK_GET_STATE 7u
#define LINK_SET_STATE 8u
#define LINK_STATS 9u
#define LINK_CHECK 10u
#define LINK_RESTART 11u
#define LINK_REPLY 0x80u
#define LINK_ERROR 0xFFu

/* Codes of an ERROR. Those of frames that could not be read carry session 0. */
#define LINK_BAD_FRAME 1u       /* COBS or CRC; detail: frames that were bad so far */
#define LINK_OVERSIZED 2u       /* detail: the longest body */
#define LINK_UNKNOWN_KIND 3u
#define LINK_BAD_LENGTH 4u      /* detail: length of the body */
#define LINK_NO_SESSION 5u      /* HELLO must come first: the firmware has started anew */
#define LINK_STALE 6u           /* an old frame: not carried out */
#define LINK_BAD_INPUT 7u       /* a value is not finite: nothing was changed */
#define LINK_NOT_READY 8u       /* the closed loop needs a step before it */
#define LINK_OUT_OF_RANGE 9u    /* beyond the end of the state */
#define LINK_IMAGE_DAMAGED 10u  /* detail: the CRC-32 that flash has */
#define LINK_STACK_OVERFLOW 11u /* detail: bytes of stack */
#define LINK_RESTARTED 12u      /* sent once after a restart that was not a power-up; detail: why */
#define LINK_BAD_VERSION 13u    /* detail: LINK_VERSION */

/* ---- Receiving: one byte at a time ---- */

typedef struct {
    uint8_t *payload; /* room for size bytes, the CRC included */
    uint16_t size;
    uint16_t count;   /* bytes decoded so far; of a whole frame, without its CRC */
    uint8_t left;     /* bytes of the COBS block still to come */
    uint8_t zero;     /* the block ends in a zero if another follows */
    uint8_t seen;     /* bytes since the delimiter: none, or some */
    uint8_t over;     /* more than size bytes */
} link_reader;

typedef enum {
    LINK_MORE,
    LINK_FRAME, /* payload and count hold it until the next byte is taken */
    LINK_DAMAGED,
    LINK_TOO_LONG
} link_event;

void link_reader_init(link_reader *reader, uint8_t *payload, uint16_t size);
link_event link_take(link_reader *reader, uint8_t byte);

/* ---- Sending ---- */

/* Puts the CRC behind the count bytes of payload, which must have room for it, and
 * hands the frame to board_putc. */
void link_send(uint8_t *payload, uint16_t count);

/* CRC-16/CCITT-FALSE: polynomial 0x1021, from 0xFFFF on. */
uint16_t link_crc(const uint8_t *bytes, size_t count);

#endif
