/* What each request does: docs/protocol.md. */
#include "serve.h"

#ifndef EDGETQS_TARGET
#define EDGETQS_TARGET "unknown"
#endif
#ifndef EDGETQS_CLOCK_HZ
#define EDGETQS_CLOCK_HZ 0u
#endif

/* ---- Hooks ---- */

/* Stores the sample that has become due; 0 when none is. Must not wait. */
int board_sample_ready(float in[MODEL_INPUTS]);

__attribute__((weak)) int board_sample_ready(float in[MODEL_INPUTS])
{
    (void)in;
    return 0;
}

/* ---- The model ---- */

static model_state state;
#if MODEL_CLOSED_LOOP
static model_state ahead; /* a forecast under way; no steps: none is */
#endif

static uint8_t *body(void)
{
    return served.reply + LINK_HEAD;
}

/* ---- Requests ---- */

static unsigned put_text(unsigned at, const char *text)
{
    while (*text != '\0' && at < HELLO_BODY - 1u) {
        body()[at] = (uint8_t)*text;
        ++at;
        ++text;
    }
    body()[at] = 0;
    return at < HELLO_BODY - 1u ? at + 1u : at;
}

int serve_damaged(void)
{
    return served.image.found != served.image.expected;
}

static unsigned hello(void)
{
    uint8_t *to = body();
    to[0] = LINK_VERSION;
    to[1] = (uint8_t)(MODEL_CLOSED_LOOP + (serve_damaged() ? 2 : 0) + (board_stack_intact() ? 0 : 4));
    to[2] = (uint8_t)board_clock_kind();
    to[3] = (uint8_t)served.record->cause;
    put16(to + 4, MODEL_INPUTS);
    put16(to + 6, MODEL_OUTPUTS);
    put16(to + 8, MODEL_KNOWN);
    put16(to + 10, MODEL_HORIZON);
    put16(to + 12, MAX_BODY);
    put32(to + 14, sizeof state);
    put32(to + 18, EDGETQS_CLOCK_HZ);
    unsigned at = put_text(22, MODEL_TOOL);
    at = put_text(at, MODEL_HASH);
    at = put_text(at, MODEL_PLAN_HASH);
    at = put_text(at, EDGETQS_TARGET);
    return put_text(at, MODEL_NAME);
}

static void timed(uint32_t reading)
{
    served.ticks = board_clock_since(reading);
    served.least = served.ticks < served.least ? served.ticks : served.least;
    served.most = served.ticks > served.most ? served.ticks : served.most;
}

void serve_reset(void)
{
    model_reset(&state);
    served.ticks = 0;
    served.least = 0xFFFFFFFFu;
    served.most = 0;
}

static unsigned step(const uint8_t *from)
{
    int16_t in[MODEL_INPUTS];
    int16_t out[MODEL_OUTPUTS] = {0};
    __builtin_memcpy(in, from, sizeof in);
    const uint32_t reading = board_clock();
    (void)model_step_q(&state, in, out);
    timed(reading);
    __builtin_memcpy(body(), out, sizeof out);
    return sizeof out;
}

static unsigned step_float(const uint8_t *from)
{
    float in[MODEL_INPUTS];
    float out[MODEL_OUTPUTS] = {0};
    __builtin_memcpy(in, from, sizeof in);
    const uint32_t reading = board_clock();
    if (model_step(&state, in, out) != 0) {
        return serve_fail(LINK_BAD_INPUT, 0);
    }
    timed(reading);
    __builtin_memcpy(body(), out, sizeof out);
    return sizeof out;
}

#if MODEL_CLOSED_LOOP
static unsigned advance_into(model_state *stream, const uint8_t *from, uint8_t *to)
{
    int16_t known[MODEL_KNOWN + 1] = {0};
    int16_t out[MODEL_OUTPUTS] = {0};
    __builtin_memcpy(known, from, MODEL_KNOWN * sizeof known[0]);
    if (model_advance_q(stream, known, out) != 0) {
        return 0;
    }
    __builtin_memcpy(to, out, sizeof out);
    return sizeof out;
}

static unsigned advance(const uint8_t *from)
{
    const uint32_t reading = board_clock();
    const unsigned size = advance_into(&state, from, body());
    if (size == 0u) {
        return serve_fail(LINK_NOT_READY, 0);
    }
    timed(reading);
    return size;
}

/* first, rows, known inputs: the first call gives the stream's own last output as
 * well, from which the forecast starts; the calls after it go on. */
static unsigned forecast(const uint8_t *from, unsigned length)
{
    const unsigned rows = from[1];
    unsigned size = 0;
    if (length != 2u + 2u * rows * MODEL_KNOWN) {
        return serve_fail(LINK_BAD_LENGTH, length);
    }
    if ((rows + 1u) * 2u * MODEL_OUTPUTS > MAX_BODY) {
        return serve_fail(LINK_OVERSIZED, MAX_BODY);
    }
    if (from[0] != 0u) {
        ahead = state;
    }
    if (ahead.steps == 0u) {
        return serve_fail(LINK_NOT_READY, 0);
    }
    if (from[0] != 0u) {
        __builtin_memcpy(body(), state.y, 2u * MODEL_OUTPUTS);
        size = 2u * MODEL_OUTPUTS;
    }
    for (unsigned row = 0; row < rows; ++row) {
        size += advance_into(&ahead, from + 2u + 2u * row * MODEL_KNOWN, body() + size);
    }
    return size;
}
#endif

static unsigned get_state(const uint8_t *from)
{
    const unsigned offset = get16(from);
    const unsigned count = get16(from + 2);
    if (count > MAX_BODY || offset + count > sizeof state) {
        return serve_fail(LINK_OUT_OF_RANGE, sizeof state);
    }
    __builtin_memcpy(body(), (const uint8_t *)&state + offset, count);
    return count;
}

static unsigned set_state(const uint8_t *from, unsigned length)
{
    if (length < 2u) {
        return serve_fail(LINK_BAD_LENGTH, length);
    }
    const unsigned offset = get16(from);
    if (offset + length - 2u > sizeof state) {
        return serve_fail(LINK_OUT_OF_RANGE, sizeof state);
    }
    __builtin_memcpy((uint8_t *)&state + offset, from + 2, length - 2u);
    return 0;
}

static unsigned stats(void)
{
    const uint32_t values[] = {
        state.steps,        state.clipped,     served.ticks,      served.least,  served.most,     board_stack_peak(),
        board_stack_size(), served.bad_frames, served.repeated,   served.record->cause, served.record->exception, served.record->pc,
        served.record->lr,         served.record->cfsr,
    };
    for (unsigned k = 0; k < sizeof values / sizeof values[0]; ++k) {
        put32(body() + 4u * k, values[k]);
    }
    return sizeof values;
}

static unsigned check(void)
{
    served.image = board_check_image();
    put32(body(), served.image.expected);
    put32(body() + 4, served.image.found);
    return serve_damaged() ? serve_fail(LINK_IMAGE_DAMAGED, served.image.found) : 8u;
}

/* Length of the body of each request; ANY: its handler looks. */
#define ANY 0xFFFFu
static const uint16_t lengths[] = {
    [LINK_HELLO] = 1,
    [LINK_STEP] = 2u * MODEL_INPUTS,
    [LINK_STEP_FLOAT] = 4u * MODEL_INPUTS,
    [LINK_ADVANCE] = 2u * MODEL_KNOWN,
    [LINK_FORECAST] = ANY,
    [LINK_GET_STATE] = 4,
    [LINK_SET_STATE] = ANY,
    [LINK_RESTART] = 0,
};

int serve_gives_numbers(unsigned kind)
{
    return kind != LINK_HELLO && kind != LINK_STATS && kind != LINK_CHECK && kind != LINK_RESTART;
}

unsigned serve_request(unsigned length)
{
    const unsigned kind = served.request[0];
    const uint8_t *from = served.request + LINK_HEAD;
    if (kind == 0u || kind >= sizeof lengths / sizeof lengths[0]) {
        return serve_fail(LINK_UNKNOWN_KIND, 0);
    }
    if (lengths[kind] != ANY ? length != lengths[kind] : length < 2u) {
        return serve_fail(LINK_BAD_LENGTH, length);
    }
    if (serve_damaged() && serve_gives_numbers(kind)) {
        return serve_fail(LINK_IMAGE_DAMAGED, served.image.found);
    }
    switch (kind) {
    case LINK_HELLO:
        return from[0] == LINK_VERSION ? hello() : serve_fail(LINK_BAD_VERSION, LINK_VERSION);
    case LINK_STATS:
        return stats();
    case LINK_CHECK:
        return check();
    case LINK_RESTART:
        return 0; /* when the reply has gone */
    case LINK_RESET:
        serve_reset();
        return 0;
    case LINK_STEP:
        return step(from);
    case LINK_STEP_FLOAT:
        return step_float(from);
    case LINK_GET_STATE:
        return get_state(from);
    case LINK_SET_STATE:
        return set_state(from, length);
#if MODEL_CLOSED_LOOP
    case LINK_ADVANCE:
        return advance(from);
    case LINK_FORECAST:
        return forecast(from, length);
#endif
    default:
        return serve_fail(LINK_UNKNOWN_KIND, 0);
    }
}

void serve_sample(void)
{
    float in[MODEL_INPUTS];
    float out[MODEL_OUTPUTS];
    if (!serve_damaged() && board_sample_ready(in) != 0) {
        const uint32_t reading = board_clock();
        if (model_step(&state, in, out) == 0) {
            timed(reading);
        }
    }
}
