/*
 * The firmware that answers over the link: docs/protocol.md. Requests are carried
 * out in serve_requests.c.
 *
 * Samples come with STEP requests, or from a sensor: define board_sample_ready
 * of your own beside these files, and the link looks on and forecasts.
 */
#include "serve.h"

serve_state served;

/* ---- Errors ---- */

static void put_error(uint8_t *to, uint32_t code, uint32_t kind, uint32_t detail)
{
    to[0] = LINK_ERROR;
    to[LINK_HEAD] = (uint8_t)code;
    to[LINK_HEAD + 1u] = (uint8_t)kind;
    put32(to + LINK_HEAD + 2u, detail);
}

/* An error that is no reply to a request that was carried out: it is not kept. */
static void send_error(uint32_t code, uint32_t detail, int to_request)
{
    uint8_t frame[LINK_HEAD + LINK_ERROR_BODY + LINK_CRC] = {0};
    if (to_request != 0) {
        __builtin_memcpy(frame, served.request, LINK_HEAD);
    }
    put_error(frame, code, frame[0], detail);
    link_send(frame, LINK_HEAD + LINK_ERROR_BODY);
}

unsigned serve_fail(uint32_t code, uint32_t detail)
{
    put_error(served.reply, code, served.request[0], detail);
    return LINK_ERROR_BODY;
}

/* ---- Sessions ---- */

/* A frame that came whole. Each sequence number is carried out once: the last
 * reply is kept and sent again, frames that are older are refused. */
static void take_request(void)
{
    const uint8_t *request = served.request;
    const unsigned kind = request[0];
    const uint16_t session = get16(request + 1);
    const uint16_t number = get16(request + 3);
    if (session == 0u || (session != served.session && kind != LINK_HELLO)) {
        send_error(LINK_NO_SESSION, served.record->cause, 1);
        return;
    }
    if (session == served.previous) {
        send_error(LINK_STALE, 0, 1);
        return;
    }
    if (session != served.session) {
        served.previous = served.session;
        served.session = session;
    } else if (number == served.last) {
        ++served.repeated;
        link_send(served.reply, served.length);
        return;
    } else if ((uint16_t)(number - served.last) > 0x7FFFu) {
        send_error(LINK_STALE, 0, 1);
        return;
    }
    served.last = number;
    __builtin_memcpy(served.reply, request, LINK_HEAD);
    served.reply[0] = (uint8_t)(kind | LINK_REPLY);
    unsigned length = serve_request(served.reader.count - LINK_HEAD);
    if (!board_stack_intact() && serve_gives_numbers(kind)) {
        length = serve_fail(LINK_STACK_OVERFLOW, board_stack_size());
    }
    served.length = (uint16_t)(LINK_HEAD + length);
    link_send(served.reply, served.length);
    if (kind == LINK_RESTART && served.reply[0] != LINK_ERROR) {
        board_restart();
    }
}

/* 1: between two frames, where a step of the board's own does not lose bytes. */
static int take_byte(uint8_t byte)
{
    switch (link_take(&served.reader, byte)) {
    case LINK_FRAME:
        take_request();
        return 1;
    case LINK_DAMAGED:
        ++served.bad_frames;
        send_error(LINK_BAD_FRAME, served.bad_frames, 0);
        return 1;
    case LINK_TOO_LONG:
        ++served.bad_frames;
        send_error(LINK_OVERSIZED, MAX_BODY, 0);
        return 1;
    case LINK_MORE:
        break;
    }
    return 0;
}

int main(void)
{
    board_uart_init();
    served.record = board_started();
    board_watchdog_start();
    (void)board_clock_kind();
    served.image = board_check_image();
    link_reader_init(&served.reader, served.request, sizeof served.request);
    serve_reset();
    if (serve_damaged()) {
        send_error(LINK_IMAGE_DAMAGED, served.image.found, 0);
    }
    if (served.record->cause != BOARD_POWER_UP) {
        send_error(LINK_RESTARTED, served.record->cause, 0);
    }
    for (;;) {
        const int byte = board_poll();
        board_alive();
        if (byte < 0 || take_byte((uint8_t)byte) != 0) {
            serve_sample();
        }
    }
}
