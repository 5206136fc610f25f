/*
 * A QEMU plugin that tells how often each instruction ran between two marker
 * functions, as edgetqs/runtime/count.c counts them, and what costs more than
 * one cycle: branches taken, and data read from flash.
 *
 * Arguments, all required:
 *   begin=ADDRESS  begin_size=BYTES  end=ADDRESS  end_size=BYTES   of the markers
 *   flash=ADDRESS  flash_size=BYTES
 *   out=PATH       a line an instruction: address, times executed, times it was
 *                  followed by another than its neighbour, reads from flash
 */
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

typedef uint64_t qemu_plugin_id_t;
typedef uint32_t qemu_plugin_meminfo_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS };
enum qemu_plugin_mem_rw { QEMU_PLUGIN_MEM_RW = 3 };

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id,
                                           void (*translated)(qemu_plugin_id_t id, struct qemu_plugin_tb *block));
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *insn, void (*callback)(unsigned cpu, void *data),
                                            enum qemu_plugin_cb_flags flags, void *data);
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *insn,
                                      void (*callback)(unsigned cpu, qemu_plugin_meminfo_t info, uint64_t address,
                                                       void *data),
                                      enum qemu_plugin_cb_flags flags, enum qemu_plugin_mem_rw rw, void *data);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t id, void (*ended)(qemu_plugin_id_t id, void *data), void *data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *block, size_t index);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *insn);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *insn);

EXPORT extern int qemu_plugin_version;
EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv);

int qemu_plugin_version = EDGETQS_PLUGIN_API;

struct place {
    uint64_t address;
    uint64_t next;
    uint64_t executed;
    uint64_t taken;
    uint64_t flash_reads;
    struct place *later;
};

enum { BEGIN, BEGIN_SIZE, END, END_SIZE, FLASH, FLASH_SIZE, VALUES };
static const char *const names[VALUES] = {"begin", "begin_size", "end", "end_size", "flash", "flash_size"};
static uint64_t values[VALUES];
static FILE *out;

#define BUCKETS 4096u
static struct place *places[BUCKETS];
static struct place *last;
static int counting;

/* A place is made once, however often its block is translated. */
static struct place *place_of(uint64_t address, size_t size)
{
    struct place **bucket = &places[address / 2u % BUCKETS];
    struct place *found;

    for (found = *bucket; found != NULL; found = found->later) {
        if (found->address == address) {
            return found;
        }
    }
    found = calloc(1, sizeof *found);
    if (found == NULL) {
        abort();
    }
    found->address = address;
    found->next = address + size;
    found->later = *bucket;
    *bucket = found;
    return found;
}

static void executed(unsigned cpu, void *data)
{
    struct place *const here = data;

    (void)cpu;
    if (here->address - values[BEGIN] < values[BEGIN_SIZE]) {
        counting = 1;
        last = NULL;
        return;
    }
    if (here->address - values[END] < values[END_SIZE]) {
        counting = 0;
    }
    if (!counting) {
        return;
    }
    if (last != NULL && last->next != here->address) {
        ++last->taken;
    }
    ++here->executed;
    last = here;
}

/* Called for stores too, as QEMU 7.2 mixes up the two; none goes to flash. */
static void read_data(unsigned cpu, qemu_plugin_meminfo_t info, uint64_t address, void *data)
{
    (void)cpu;
    (void)info;
    if (counting && address - values[FLASH] < values[FLASH_SIZE]) {
        ++((struct place *)data)->flash_reads;
    }
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *block)
{
    size_t i;

    (void)id;
    for (i = 0; i < qemu_plugin_tb_n_insns(block); i++) {
        struct qemu_plugin_insn *const insn = qemu_plugin_tb_get_insn(block, i);
        struct place *const here = place_of(qemu_plugin_insn_vaddr(insn), qemu_plugin_insn_size(insn));

        qemu_plugin_register_vcpu_insn_exec_cb(insn, executed, QEMU_PLUGIN_CB_NO_REGS, here);
        qemu_plugin_register_vcpu_mem_cb(insn, read_data, QEMU_PLUGIN_CB_NO_REGS, QEMU_PLUGIN_MEM_RW, here);
    }
}

static void ended(qemu_plugin_id_t id, void *data)
{
    size_t i;
    const struct place *here;

    (void)id;
    (void)data;
    for (i = 0; i < BUCKETS; i++) {
        for (here = places[i]; here != NULL; here = here->later) {
            if (here->executed > 0) {
                fprintf(out, "%" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", here->address, here->executed,
                        here->taken, here->flash_reads);
            }
        }
    }
    fclose(out);
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv)
{
    int i;

    (void)info;
    for (i = 0; i < argc; i++) {
        const char *const value = strchr(argv[i], '=');
        size_t k;

        if (value == NULL) {
            continue;
        }
        if (strncmp(argv[i], "out=", 4) == 0) {
            out = fopen(value + 1, "w");
        }
        for (k = 0; k < VALUES; k++) {
            if (strlen(names[k]) == (size_t)(value - argv[i]) && strncmp(argv[i], names[k], strlen(names[k])) == 0) {
                values[k] = strtoull(value + 1, NULL, 0);
            }
        }
    }
    if (out == NULL || values[BEGIN_SIZE] == 0 || values[END_SIZE] == 0 || values[FLASH_SIZE] == 0) {
        fprintf(stderr, "mix: the markers, flash and out are required\n");
        return -1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, ended, NULL);
    return 0;
}
