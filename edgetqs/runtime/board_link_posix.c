/* board.h's side of the link on Linux: standard input and output carry the frames. */
#define _POSIX_C_SOURCE 200809L

#include "board.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SELF "/proc/self/exe"
#define EXIT_RESTART 77
#define IDLE_MS 10
#define PAUSE_MS 100 /* before a program that crashed is started again */

/* ---- The link ---- */

int board_poll(void)
{
    static unsigned char bytes[256];
    static size_t next;
    static size_t end;
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};

    if (next < end) {
        return bytes[next++];
    }
    (void)fflush(stdout);
    if (poll(&input, 1, IDLE_MS) <= 0) {
        return -1;
    }
    const ssize_t count = read(STDIN_FILENO, bytes, sizeof bytes);
    if (count <= 0) { /* the other side went away */
        exit(0);
    }
    next = 1;
    end = (size_t)count;
    return bytes[0];
}

/* ---- The stack: Linux guards it itself ---- */

uint32_t board_stack_size(void)
{
    return 0;
}

int board_stack_intact(void)
{
    return 1;
}

/* ---- Restarts ---- */

/* The program runs in a child: its parent sees how it ends, and starts it again. */
const board_record *board_started(void)
{
    static board_record record;
    for (;;) {
        int status = 0;
        const pid_t child = fork();
        if (child <= 0) { /* the child, or a system that gives none */
            return &record;
        }
        while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
        }
        record = (board_record){.cause = BOARD_REQUESTED};
        if (WIFSIGNALED(status)) {
            record = (board_record){.cause = BOARD_FAULTED, .exception = (uint32_t)WTERMSIG(status)};
            (void)poll(NULL, 0, PAUSE_MS);
        } else if (WEXITSTATUS(status) != EXIT_RESTART) {
            exit(WEXITSTATUS(status));
        }
    }
}

void board_restart(void)
{
    (void)fflush(stdout);
    _exit(EXIT_RESTART);
}

void board_watchdog_start(void)
{
}

void board_alive(void)
{
}

/* ---- Time ---- */

uint32_t board_clock_kind(void)
{
    return BOARD_CLOCK_NS;
}

uint32_t board_clock(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint32_t)((uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec);
}

uint32_t board_clock_since(uint32_t reading)
{
    return board_clock() - reading;
}

/* ---- The image: the program's own file, which edgetqs/seal.py ends with a mark and its CRC-32 ---- */

#define SEAL_MARK "edgetqs-crc:"
#define SEAL_BYTES (sizeof SEAL_MARK - 1u + 4u)

static uint32_t crc32(uint32_t crc, uint32_t byte)
{
    crc ^= byte;
    for (unsigned bit = 0; bit < 8u; ++bit) {
        crc = (crc & 1u) != 0u ? (crc >> 1) ^ 0xEDB88320u : crc >> 1;
    }
    return crc;
}

/* The last bytes of a file are the seal, so the CRC runs SEAL_BYTES behind. */
board_image board_check_image(void)
{
    unsigned char tail[SEAL_BYTES] = {0};
    size_t count = 0;
    uint32_t crc = 0xFFFFFFFFu;
    int byte;
    FILE *const file = fopen(SELF, "rb");

    if (file == NULL) {
        return (board_image){1, 0};
    }
    while ((byte = getc(file)) != EOF) {
        unsigned char *const slot = &tail[count % SEAL_BYTES];
        if (count >= SEAL_BYTES) {
            crc = crc32(crc, *slot);
        }
        *slot = (unsigned char)byte;
        ++count;
    }
    (void)fclose(file);
    unsigned char seal[SEAL_BYTES];
    for (size_t k = 0; k < SEAL_BYTES; ++k) {
        seal[k] = tail[(count + k) % SEAL_BYTES];
    }
    const size_t mark = sizeof SEAL_MARK - 1u;
    if (memcmp(seal, SEAL_MARK, mark) != 0) {
        return (board_image){1, 0}; /* cut short, or never sealed */
    }
    const uint32_t expected = seal[mark] | (uint32_t)seal[mark + 1u] << 8 | (uint32_t)seal[mark + 2u] << 16 |
                              (uint32_t)seal[mark + 3u] << 24;
    return (board_image){expected, ~crc};
}
