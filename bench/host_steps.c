/*
 * Times model_step_q. Arguments: a file of inputs, how often a round runs through
 * them. First writes the last outputs; then, for each line that comes in, the
 * processor time of a round in nanoseconds a step.
 */
#define _POSIX_C_SOURCE 199309L
#include "model_glue.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define MOST_STEPS 4096u

static int16_t window[MOST_STEPS][MODEL_INPUTS];
static int16_t out[MODEL_OUTPUTS];
static model_state state;

static void run(size_t steps)
{
    model_reset(&state);
    for (size_t t = 0; t < steps; ++t) {
        (void)model_step_q(&state, window[t], out);
    }
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

int main(int argc, char **argv)
{
    FILE *file = argc == 3 ? fopen(argv[1], "rb") : NULL;
    long repeats = argc == 3 ? strtol(argv[2], NULL, 10) : 0;
    if (file == NULL || repeats <= 0) {
        return 2;
    }
    size_t steps = fread(window, sizeof window[0], MOST_STEPS, file);
    fclose(file);
    run(steps);
    for (unsigned k = 0; k < MODEL_OUTPUTS; ++k) {
        printf("%d%c", out[k], k + 1u < MODEL_OUTPUTS ? ' ' : '\n');
    }
    fflush(stdout);
    while (getchar() != EOF) {
        double start = now();
        for (long k = 0; k < repeats; ++k) {
            run(steps);
        }
        printf("%.3f\n", (now() - start) / (double)repeats / (double)steps);
        fflush(stdout);
    }
    return 0;
}
