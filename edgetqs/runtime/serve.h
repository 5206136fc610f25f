/*
 * The two halves of the firmware that answers over the link.
 *
 * serve.c           frames, sessions, the program
 * serve_requests.c  what each request does
 */
#ifndef EDGETQS_SERVE_H
#define EDGETQS_SERVE_H

#include "board.h"
#include "edgetqs_link.h"
#include "model_glue.h"

#define LARGER(a, b) ((a) > (b) ? (a) : (b))
#define HELLO_BODY 128u
/* Bytes of the longest body, either way. */
#define MAX_BODY LARGER(HELLO_BODY, 4u * LARGER(MODEL_INPUTS, MODEL_OUTPUTS) + 4u)

typedef struct {
    link_reader reader;
    uint16_t session;  /* 0: none yet */
    uint16_t previous; /* the session before it */
    uint16_t last;     /* sequence number that reply answers */
    uint16_t length;   /* of reply */
    uint32_t bad_frames;
    uint32_t repeated;
    uint32_t ticks; /* of the last step, and the extremes since the reset */
    uint32_t least;
    uint32_t most;
    board_image image;
    const board_record *record; /* why the firmware started */
    uint8_t request[LINK_HEAD + MAX_BODY + LINK_CRC];
    uint8_t reply[LINK_HEAD + MAX_BODY + LINK_CRC];
} serve_state;

extern serve_state served;

/* Carries out served.request, whose body has this length. Gives the length of the
 * body in served.reply, which it turns into an ERROR where it must. */
unsigned serve_request(unsigned length);

/* Whether a request of this kind must not be answered by a device that is not sound. */
int serve_gives_numbers(unsigned kind);

void serve_reset(void);

/* Steps the stream with a sample of the board's own, where one is due. */
void serve_sample(void);

/* Turns served.reply into an ERROR; gives the length of its body. */
unsigned serve_fail(uint32_t code, uint32_t detail);

/* Whether flash holds other bytes than were linked. */
int serve_damaged(void);

/* ---- Little-endian numbers ---- */

static inline void put16(uint8_t *to, uint32_t value)
{
    to[0] = (uint8_t)(value & 0xFFu);
    to[1] = (uint8_t)(value >> 8 & 0xFFu);
}

static inline void put32(uint8_t *to, uint32_t value)
{
    put16(to, value & 0xFFFFu);
    put16(to + 2, value >> 16);
}

static inline uint16_t get16(const uint8_t *from)
{
    return (uint16_t)(from[0] | (uint32_t)from[1] << 8);
}

#endif
