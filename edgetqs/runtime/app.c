/*
 * The application: reads samples, steps the model, forecasts, prints.
 *
 * The samples come from two hooks. Those given here replay recorded ones; a
 * board's own replace them by defining functions of the same names.
 */
#define MODEL_WANTS_SAMPLES
#include "board.h"
#include "model_glue.h"

/* ---- Hooks ---- */

/* Waits for the next sample and stores it; 0 when there are no more. */
int board_sample(float in[MODEL_INPUTS]);
/* Stores the known inputs of the next MODEL_HORIZON steps, row by row. */
void board_future(float *future);

__attribute__((weak)) int board_sample(float in[MODEL_INPUTS])
{
    static unsigned next;
    if (next >= MODEL_SAMPLES) {
        return 0;
    }
    for (unsigned k = 0; k < MODEL_INPUTS; ++k) {
        in[k] = model_samples[next][k];
    }
    ++next;
    return 1;
}

#if MODEL_CLOSED_LOOP
__attribute__((weak)) void board_future(float *future)
{
#if MODEL_KNOWN
    for (unsigned k = 0; k < MODEL_HORIZON * MODEL_KNOWN; ++k) {
        future[k] = model_future[k / MODEL_KNOWN][k % MODEL_KNOWN];
    }
#else
    (void)future;
#endif
}
#endif

/* ---- Printing ---- */

static void put_unsigned(uint32_t value, unsigned least_digits)
{
    char digits[10];
    unsigned count = 0;
    do {
        digits[count] = (char)('0' + value % 10u);
        value /= 10u;
        ++count;
    } while (value != 0u || count < least_digits);
    while (count > 0u) {
        --count;
        board_putc(digits[count]);
    }
}

/* Three decimals; below a hundredth and from a million on with an exponent. */
static void put_float(float value)
{
    unsigned up = 0;
    unsigned down = 0;
    if (value < 0.0f) {
        board_putc('-');
        value = -value;
    }
    if (value >= 1000000.0f) {
        for (; value >= 10.0f && up < 40u; ++up) {
            value *= 0.1f;
        }
    } else if (value > 0.0f && value < 0.01f) {
        for (; value < 1.0f && down < 46u; ++down) {
            value *= 10.0f;
        }
    }
    uint32_t thousandths = (uint32_t)(value * 1000.0f + 0.5f);
    put_unsigned(thousandths / 1000u, 1);
    board_putc('.');
    put_unsigned(thousandths % 1000u, 3);
    if (up + down > 0u) {
        board_puts(down > 0u ? "e-" : "e");
        put_unsigned(up + down, 1);
    }
}

static void put_row(uint32_t number, const float *values)
{
    put_unsigned(number, 1);
    for (unsigned k = 0; k < MODEL_OUTPUTS; ++k) {
        board_putc('\t');
        put_float(values[k]);
    }
    board_putc('\n');
}

static void put_heading(void)
{
    board_puts("step");
#define PUT_NAME(name) board_puts("\t" name);
    MODEL_FOR_EACH_OUTPUT(PUT_NAME)
    board_putc('\n');
}

/* ---- The program ---- */

static model_state state;

#if MODEL_CLOSED_LOOP
static void forecast(void)
{
    static float future[MODEL_HORIZON * (MODEL_KNOWN + 1)]; /* never empty */
    static float out[MODEL_HORIZON * MODEL_OUTPUTS];
    board_future(future);
    if (model_forecast(&state, MODEL_HORIZON, future, out) != 0) {
        board_puts("forecast refused: a known input is not a number\n");
        return;
    }
    for (unsigned k = 0; k < MODEL_HORIZON; ++k) {
        put_row(k + 1u, &out[k * MODEL_OUTPUTS]);
    }
}
#endif

int main(void)
{
    float in[MODEL_INPUTS];
    float out[MODEL_OUTPUTS] = {0};
    board_uart_init();
    board_puts(MODEL_TOOL "\nmodel " MODEL_NAME " " MODEL_HASH ", plan " MODEL_PLAN_HASH "\n");
    model_reset(&state);
    while (board_sample(in)) {
        if (model_step(&state, in, out) != 0) {
            board_puts("sample skipped: an input is not a number\n");
        }
    }
    put_unsigned(state.steps, 1);
    board_puts(" samples read\n");
    put_heading();
#if MODEL_CLOSED_LOOP
    forecast();
#else
    put_row(state.steps, out);
#endif
    put_unsigned(state.clipped, 1);
    board_puts(" steps with clipped values, ");
    put_unsigned(board_stack_peak(), 1);
    board_puts(" bytes of stack used\n");
    return 0;
}
