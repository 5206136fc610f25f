/*
 * A QEMU plugin that counts the guest instructions executed between two marker
 * functions: from the return of the begin marker to the call of the end marker.
 * The instructions of the markers themselves are not counted.
 *
 * Arguments, all required:
 *   begin=ADDRESS  begin_size=BYTES  end=ADDRESS  end_size=BYTES
 *                  of the markers; bit 0, which says Thumb in a symbol, cleared
 *   out=PATH       one decimal number a line, one line a begin/end pair
 *
 * QEMU calls back once a translated block, which adds its number of
 * instructions; only blocks that hold a marker are watched instruction by
 * instruction. The count is exact as long as no exception interrupts a block
 * between the markers. A conditional instruction counts whether or not its
 * condition holds, as does each iteration of an x86 string instruction.
 *
 * Distributions ship QEMU without its plugin header, so what is used of it is
 * declared here; these declarations are the same in all versions of the API.
 * QEMU before 9.0 accepts plugins of version 1 and 9.0 refuses them, so the
 * build defines EDGETQS_PLUGIN_API.
 */
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

typedef uint64_t qemu_plugin_id_t;
typedef void (*exec_callback)(unsigned cpu, void *data);
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS };

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id,
                                           void (*translated)(qemu_plugin_id_t id, struct qemu_plugin_tb *block));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *block, exec_callback callback,
                                          enum qemu_plugin_cb_flags flags, void *data);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *insn, exec_callback callback,
                                            enum qemu_plugin_cb_flags flags, void *data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *block, size_t index);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *insn);

EXPORT extern int qemu_plugin_version;
EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv);

int qemu_plugin_version = EDGETQS_PLUGIN_API;

static uint64_t begin;
static uint64_t begin_size;
static uint64_t end;
static uint64_t end_size;
static FILE *out;

static int counting;
static uint64_t count;

static int at_begin(uint64_t address)
{
    return address - begin < begin_size;
}

static int at_end(uint64_t address)
{
    return address - end < end_size;
}

static void add(unsigned cpu, void *data)
{
    (void)cpu;
    count += (uintptr_t)data;
}

static void enter_begin(unsigned cpu, void *data)
{
    (void)cpu;
    (void)data;
    counting = 1;
    count = 0;
}

static void enter_end(unsigned cpu, void *data)
{
    (void)cpu;
    (void)data;
    if (counting) {
        fprintf(out, "%" PRIu64 "\n", count);
    }
    counting = 0;
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *block)
{
    const size_t length = qemu_plugin_tb_n_insns(block);
    size_t markers = 0;
    size_t i;

    (void)id;
    for (i = 0; i < length; i++) {
        const uint64_t address = qemu_plugin_insn_vaddr(qemu_plugin_tb_get_insn(block, i));
        markers += at_begin(address) || at_end(address);
    }
    if (markers == 0) {
        qemu_plugin_register_vcpu_tb_exec_cb(block, add, QEMU_PLUGIN_CB_NO_REGS, (void *)(uintptr_t)length);
        return;
    }
    for (i = 0; i < length; i++) {
        struct qemu_plugin_insn *const insn = qemu_plugin_tb_get_insn(block, i);
        const uint64_t address = qemu_plugin_insn_vaddr(insn);
        const exec_callback callback = at_begin(address) ? enter_begin : at_end(address) ? enter_end : add;
        qemu_plugin_register_vcpu_insn_exec_cb(insn, callback, QEMU_PLUGIN_CB_NO_REGS, (void *)(uintptr_t)1);
    }
}

static int is_argument(const char *text, const char *name, const char **value)
{
    const size_t length = strlen(name);

    if (strncmp(text, name, length) != 0 || text[length] != '=') {
        return 0;
    }
    *value = text + length + 1;
    return 1;
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv)
{
    const char *path = NULL;
    const char *value = NULL;
    int i;

    (void)info;
    for (i = 0; i < argc; i++) {
        if (is_argument(argv[i], "begin", &value)) {
            begin = strtoull(value, NULL, 0);
        } else if (is_argument(argv[i], "begin_size", &value)) {
            begin_size = strtoull(value, NULL, 0);
        } else if (is_argument(argv[i], "end", &value)) {
            end = strtoull(value, NULL, 0);
        } else if (is_argument(argv[i], "end_size", &value)) {
            end_size = strtoull(value, NULL, 0);
        } else if (is_argument(argv[i], "out", &value)) {
            path = value;
        } else {
            fprintf(stderr, "count: unknown argument %s\n", argv[i]);
            return -1;
        }
    }
    if (begin_size == 0 || end_size == 0 || path == NULL) {
        fprintf(stderr, "count: begin, begin_size, end, end_size and out are required\n");
        return -1;
    }
    if (begin == end) {
        fprintf(stderr, "count: the two markers are one function; the compiler merged them\n");
        return -1;
    }
    out = fopen(path, "w");
    if (out == NULL) {
        fprintf(stderr, "count: cannot write %s\n", path);
        return -1;
    }
    setvbuf(out, NULL, _IOLBF, 0); /* an emulator that is killed leaves whole lines */
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    return 0;
}
