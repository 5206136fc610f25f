/*
 * The test harness: carries out commands from harness.in, writes to harness.out.
 *
 * A command is one byte and its arguments, little-endian:
 *   R                      reset
 *   S in[INPUTS]           step on integers        -> record
 *   A known[KNOWN]         closed-loop step        -> record
 *   P in[INPUTS] float     step on physical values -> status, out[OUTPUTS] float
 *   F n future[n][KNOWN]   forecast of n steps, n at most 64, floats
 *                                                  -> status, out[n][OUTPUTS] float, states
 *   C in[INPUTS]           step between the counting marks -> ticks
 *   K                      -> bytes of stack used since the last K
 *   M                      -> inputs, outputs, known, state bytes: four uint32
 * A record is y[OUTPUTS] and the states, which are followed by the count of steps with
 * clipped values. A status is a uint32. In a trace build (EDGETQS_TRACE_BUILD) steps write, before their
 * record, what they compute on their way: layer, what, count, values, all
 * uint16, and 0xFFFF when the step ends.
 */
#include "model_glue.h"
#include "port.h"

#define MAX_HORIZON 64u

static model_state state;
static int16_t last[MODEL_OUTPUTS];

/* The instructions between the two are counted. */
__attribute__((noinline, used)) void edgetqs_count_begin(void)
{
    __asm__ volatile("" ::: "memory");
}

__attribute__((noinline, used)) void edgetqs_count_end(void)
{
    __asm__ volatile("" ::: "memory");
}

#ifdef EDGETQS_TRACE_BUILD
void edgetqs_trace(uint16_t layer, uint16_t what, const int16_t *values, uint16_t count)
{
    uint16_t head[3] = {layer, what, count};
    port_write(head, sizeof head);
    port_write(values, count * sizeof values[0]);
}
#endif

static void need(void *to, size_t size)
{
    if (port_read(to, size) != size) {
        port_log("harness: a command is cut short\n");
        port_exit(2);
    }
}

static void put_states(void)
{
#define PUT_STATE(values, count) port_write(values, (count) * sizeof(int16_t));
    MODEL_FOR_EACH_STATE(PUT_STATE, &state)
    port_write(&state.clipped, sizeof state.clipped);
}

static void record(void)
{
#ifdef EDGETQS_TRACE_BUILD
    uint16_t end = 0xFFFFu;
    port_write(&end, sizeof end);
#endif
    port_write(last, sizeof last);
    put_states();
}

static void step(void)
{
    int16_t in[MODEL_INPUTS];
    need(in, sizeof in);
    (void)model_step_q(&state, in, last);
    record();
}

static void physical(void)
{
    float in[MODEL_INPUTS];
    float out[MODEL_OUTPUTS] = {0};
    need(in, sizeof in);
    uint32_t status = (uint32_t)model_step(&state, in, out);
    port_write(&status, sizeof status);
    port_write(out, sizeof out);
}

static void counted(void)
{
    int16_t in[MODEL_INPUTS];
    need(in, sizeof in);
    uint32_t before = port_ticks();
    edgetqs_count_begin();
    (void)model_step_q(&state, in, last);
    edgetqs_count_end();
    uint32_t ticks = (port_ticks() - before) & PORT_TICKS_MASK;
    port_write(&ticks, sizeof ticks);
}

static void stack_use(void)
{
    uint32_t bytes = port_stack_peak();
    port_write(&bytes, sizeof bytes);
    port_stack_repaint();
}

static void sizes(void)
{
    uint32_t values[4] = {MODEL_INPUTS, MODEL_OUTPUTS, MODEL_KNOWN, sizeof state};
    port_write(values, sizeof values);
}

#if MODEL_CLOSED_LOOP
static void advance(void)
{
    int16_t known[MODEL_KNOWN + 1] = {0};
    need(known, MODEL_KNOWN * sizeof known[0]);
    (void)model_advance_q(&state, known, last);
    record();
}

static void forecast(void)
{
    static float future[MAX_HORIZON * (MODEL_KNOWN + 1)];
    static float out[MAX_HORIZON * MODEL_OUTPUTS];
    uint32_t horizon = 0;
    need(&horizon, sizeof horizon);
    if (horizon > MAX_HORIZON) {
        port_log("harness: the horizon is too long\n");
        port_exit(2);
    }
    need(future, horizon * MODEL_KNOWN * sizeof future[0]);
    uint32_t status = (uint32_t)model_forecast(&state, horizon, future, out);
    port_write(&status, sizeof status);
    port_write(out, horizon * MODEL_OUTPUTS * sizeof out[0]);
    put_states();
}
#endif

int main(int argc, char **argv)
{
    (void)argc;
    (void)argv;
    char command = 0;
    if (port_open() != 0) {
        port_log("harness: cannot open harness.in and harness.out\n");
        port_exit(2);
    }
    model_reset(&state);
    while (port_read(&command, 1) == 1) {
        switch (command) {
        case 'R':
            model_reset(&state);
            break;
        case 'S':
            step();
            break;
        case 'P':
            physical();
            break;
        case 'C':
            counted();
            break;
        case 'K':
            stack_use();
            break;
        case 'M':
            sizes();
            break;
#if MODEL_CLOSED_LOOP
        case 'A':
            advance();
            break;
        case 'F':
            forecast();
            break;
#endif
        default:
            port_log("harness: unknown command\n");
            port_exit(2);
        }
    }
    port_exit(0);
}
