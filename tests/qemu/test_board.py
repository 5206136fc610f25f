"""The board side on every target: start-up, UART, stack, port, counting, and how runs end."""

import struct
from pathlib import Path

import pytest
from installed import ready

from edgetqs import emulate, firmware
from edgetqs.elf import flash_bytes, symbol
from edgetqs.errors import CheckFailed, ToolMissing
from edgetqs.stack import stack_bound
from edgetqs.target import Target, list_targets

pytestmark = pytest.mark.qemu

ALL = [target.name for target in list_targets() if target.qemu]
BARE = [target.name for target in list_targets() if target.kind == "bare" and target.qemu]
V8M = ["cortex-m33", "cortex-m55"]


class Bench:
    """Builds a program for one target and runs it in a folder of its own."""

    def __init__(self, target: Target, folder: Path) -> None:
        self.target, self.folder = target, folder

    def build(self, text: str, **changed_defines: str) -> Path:
        target, folder = self.target, self.folder
        program = folder / "program.c"
        program.write_text(text)
        sources = [*firmware.board_sources(target), *firmware.port_sources(target), program]
        defines = firmware.board_defines(target, emulated=True) | changed_defines
        objects = firmware.compile_sources(target, sources, folder, defines=defines)
        script = firmware.write_linker_script(target, folder / "link.ld") if target.kind == "bare" else None
        return firmware.link(target, objects, folder / "program.elf", script)

    def run(self, text: str, sent: bytes = b"", **options) -> emulate.Run:
        (self.folder / "harness.in").write_bytes(sent)
        return emulate.run(self.target, self.build(text), self.folder, timeout_s=60, **options)

    @property
    def received(self) -> bytes:
        return (self.folder / "harness.out").read_bytes()


@pytest.fixture
def bench(request, tmp_path) -> Bench:
    target = ready(request.param)
    return Bench(target, tmp_path)


def on(names):
    return pytest.mark.parametrize("bench", names, indirect=True)


HELLO = """
#include "board.h"
static volatile uint32_t initialised = 0x12345678u;
static volatile float a = 1.5f;
static volatile float b = 2.25f;
int main(void)
{
    board_uart_init();
    board_puts("hello ");
    board_put_hex(initialised);
    board_putc('\\n');
    return a * b == 3.375f ? 7 : 1;
}
"""


@on(BARE)
def test_hello_over_the_uart(bench):
    ran = bench.run(HELLO)
    assert (ran.exit_code, ran.uart) == (7, "hello 0x12345678\n")
    assert flash_bytes(bench.folder / "program.elf") < 2200


@on([name for name in ALL if name not in BARE])
def test_hello_on_linux(bench):
    ran = bench.run('#include <stdio.h>\nint main(void) { puts("hello"); return 7; }')
    assert (ran.exit_code, ran.log, ran.uart) == (7, "hello\n", "")


@on(ALL)
@pytest.mark.parametrize("code", [0, 1, 77, 255])
def test_exit_codes(bench, code):
    text = f'#include "port.h"\nint main(void) {{ port_log("bye\\n"); port_exit({code}); }}'
    ran = bench.run(text)
    assert (ran.exit_code, ran.log) == (code, "bye\n")


# An emulator starts with zeroed RAM, so the program fills it and starts again. What
# lies between .bss and the stack is touched by nobody: a good place to remember.
RESTART = """
#include "board.h"
extern uint32_t board_data_start[];
extern uint32_t board_bss_end[];
extern uint32_t board_stack_limit[];
void Reset_Handler(void);
static volatile uint32_t zeroed[37];
static volatile uint32_t set[3] = {1, 2, 3};
static volatile uint8_t odd;
int main(void)
{
    volatile uint32_t *const visits = (volatile uint32_t *)((uint32_t)board_stack_limit - 4u);
    volatile uint32_t *word;
    uint32_t i;
    if (*visits != 0x600Du) {
        *visits = 0x600Du;
        for (word = board_data_start; word < board_bss_end; word++) {
            *word = 0xFFFFFFFFu;
        }
        Reset_Handler();
    }
    for (i = 0; i < 37u; i++) {
        if (zeroed[i] != 0u) {
            return 1;
        }
    }
    return set[0] == 1u && set[1] == 2u && set[2] == 3u && odd == 0u ? 42 : 2;
}
"""


@on(BARE)
def test_bss_is_zeroed_and_data_restored(bench):
    assert bench.run(RESTART).exit_code == 42


STACK = """
#include "port.h"
static __attribute__((noinline)) uint32_t deep(uint32_t n)
{
    volatile uint8_t space[600];
    uint32_t i;
    uint32_t sum = 0;
    for (i = 0; i < sizeof space; i++) {
        space[i] = (uint8_t)(n + i);
    }
    for (i = 0; i < sizeof space; i++) {
        sum += space[i];
    }
    return sum;
}
int main(void)
{
    uint32_t peaks[4];
    if (port_open() != 0) {
        return 1;
    }
    peaks[0] = port_stack_peak();
    peaks[3] = deep(port_stack_peak());
    peaks[1] = port_stack_peak();
    port_stack_repaint();
    peaks[2] = port_stack_peak();
    port_write(peaks, 3u * sizeof peaks[0]);
    port_exit(0);
}
"""


@on(BARE)
def test_stack_peak(bench):
    assert bench.run(STACK).exit_code == 0
    before, deep, repainted = struct.unpack("<3I", bench.received)
    assert 0 < before < 200
    assert 600 < deep < 800
    assert 0 < repainted < 200
    objdump = firmware.toolchain(bench.target).objdump
    bound = stack_bound(bench.folder, bench.folder / "program.elf", "Reset_Handler", objdump)
    assert bound.unknown == ()
    assert bound.path[:3] == ("Reset_Handler", "board_start", "main")
    assert deep <= bound.bytes < deep + 64


@on(BARE)
def test_a_full_stack_reads_as_its_size(bench):
    # Leaves no word of the painted region as it was, and so cannot tell how much more it took.
    text = """
    #include "port.h"
    extern uint32_t board_stack_limit[];
    int main(void)
    {
        *(volatile uint32_t *)board_stack_limit = 0;
        return port_stack_peak() == STACK_BYTES ? 5 : 6;
    }
    """.replace("STACK_BYTES", str(bench.target.memory.stack_bytes))
    assert bench.run(text).exit_code == 5


@on(V8M)
def test_armv8m_faults_on_stack_overflow(bench):
    text = """
    static int grow(volatile int *above)
    {
        volatile int here[64];
        here[0] = *above + 1;
        return here[0] > 0 ? grow(here) + here[0] : 0;
    }
    int main(void) { int start = 0; return grow(&start); }
    """
    ran = bench.run(text)
    assert ran.exit_code == emulate.FAULT_EXIT_CODE
    assert "cfsr 0x00100000" in ran.uart  # STKOF


ECHO = """
#include "port.h"
int main(void)
{
    uint8_t block[100];
    size_t count;
    if (port_open() != 0) {
        return 1;
    }
    do {
        count = port_read(block, sizeof block);
        port_write(block, count);
    } while (count == sizeof block);
    port_exit(0);
}
"""


@on(ALL)
@pytest.mark.parametrize("size", [0, 1, 99, 100, 70_001])
def test_port_round_trip(bench, size):
    sent = bytes((i * i + i // 256) % 256 for i in range(size))
    assert bench.run(ECHO, sent).exit_code == 0
    assert bench.received == sent


@on(ALL)
def test_port_without_input(bench):
    elf = bench.build(ECHO)
    assert emulate.run(bench.target, elf, bench.folder).exit_code == 1


@on(ALL)
def test_port_on_a_full_disk(bench):
    (bench.folder / "harness.out").symlink_to("/dev/full")
    ran = bench.run(ECHO, b"a")
    assert (ran.exit_code, ran.log) == (98, "port: cannot write harness.out\n")


LOOP = """
#include "port.h"
__attribute__((noinline)) void edgetqs_count_begin(void);
__attribute__((noinline)) void edgetqs_count_end(void);
void edgetqs_count_begin(void) { __asm__ volatile("" ::: "memory"); }
void edgetqs_count_end(void) { __asm__ volatile("" ::: "memory"); }
static __attribute__((noinline)) void loop(unsigned long n)
{
#if defined(__x86_64__)
    __asm__ volatile("1: sub $1, %0\\n jnz 1b" : "+r"(n) : : "cc");
#elif defined(__aarch64__)
    __asm__ volatile("1: subs %0, %0, #1\\n bne 1b" : "+r"(n) : : "cc");
#else
    __asm__ volatile(".syntax unified\\n1: subs %0, %0, #1\\n bne 1b" : "+l"(n) : : "cc");
#endif
}
int main(void)
{
    static const unsigned long sizes[] = {1, 10, 1000, 100000, 1};
    uint32_t ticks;
    uint32_t i;
    if (port_open() != 0) {
        return 1;
    }
    edgetqs_count_end();
    for (i = 0; i < 5u; i++) {
        ticks = port_ticks();
        edgetqs_count_begin();
        loop(sizes[i]);
        edgetqs_count_end();
        ticks = (port_ticks() - ticks) & PORT_TICKS_MASK;
        port_write(&ticks, sizeof ticks);
    }
    port_exit(0);
}
"""


@on(ALL)
def test_instruction_count_is_exact_and_repeatable(bench):
    first = bench.run(LOOP, count=True)
    again = bench.run(LOOP, count=True)
    assert first.how == again.how == "tcg plugin"
    assert first.counts == again.counts
    around = first.counts[0] - 2  # the calls of loop and of the end marker
    assert 3 <= around <= 6
    assert first.counts == tuple(2 * n + around for n in (1, 10, 1000, 100_000, 1))


@on(BARE)
def test_icount_where_the_counter_cannot_be_built(bench, monkeypatch):
    def no_compiler(qemu):
        raise ToolMissing("no compiler")

    exact = bench.run(LOOP, count=True).counts
    monkeypatch.setattr(emulate, "_build_plugin", no_compiler)
    ran = bench.run(LOOP, count=True)
    assert (ran.how, ran.counts) == ("icount", ())
    ticks = struct.unpack("<5I", bench.received)
    estimates = [emulate.instructions_of_ticks(bench.target, value) for value in ticks]
    around = estimates[0] - exact[0]  # the begin marker, reading the ticks
    assert 0 < around < 20
    assert all(abs(got - want - around) <= 2 for got, want in zip(estimates, exact, strict=True))


@on(["x86", "raspberry-pi-4"])
def test_count_says_why_it_was_not_done(bench, monkeypatch):
    def no_compiler(qemu):
        raise ToolMissing("no compiler")

    monkeypatch.setattr(emulate, "_build_plugin", no_compiler)
    assert bench.run(LOOP, count=True).how == "not run: no compiler"


@on(["cortex-m4", "x86"])
def test_a_qemu_that_refuses_the_plugin(bench, monkeypatch):
    monkeypatch.setattr(emulate, "_build_plugin", lambda qemu: bench.folder / "none.so")
    ran = bench.run(LOOP, count=True)
    assert ran.exit_code == 0
    assert ran.how == "icount" or ran.how.startswith("not run: QEMU does not load the plugin")


@on(["cortex-m4", "x86"])
def test_counter_in_a_folder_with_a_comma(bench, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(bench.folder / "a,b=c d"))
    emulate._cache_dir.cache_clear()
    try:
        ran = bench.run(LOOP, count=True)
    finally:
        emulate._cache_dir.cache_clear()
    assert (ran.how, len(ran.counts)) == ("tcg plugin", 5)
    assert [path.suffix for path in (bench.folder / "a,b=c d" / "edgetqs").iterdir()] == [".so"]


@on(["cortex-m4"])
def test_counting_needs_the_markers(bench):
    with pytest.raises(CheckFailed, match="edgetqs_count_begin"):
        bench.run(HELLO, count=True)


@on(BARE)
def test_a_fault_is_reported(bench):
    ran = bench.run('#include "board.h"\nint main(void) { __asm__ volatile("udf #0"); return 0; }')
    main = symbol(bench.folder / "program.elf", "main")
    assert ran.exit_code == emulate.FAULT_EXIT_CODE
    assert ran.uart.startswith("fault: exception 0x00000003 pc ")
    pc = int(ran.uart.split()[4], 16)
    assert main.address <= pc < main.address + main.bytes


@on(BARE)
def test_a_fault_with_a_broken_stack_is_reported(bench):
    text = """
    int main(void)
    {
        __asm__ volatile("movs r0, #64\\n mov sp, r0\\n udf #0");
        return 0;
    }
    """
    ran = bench.run(text)
    assert ran.exit_code == emulate.FAULT_EXIT_CODE
    assert ran.uart.startswith("fault: exception 0x00000003 pc 0x")


@on([name for name in BARE if name != "stm32f405"])
def test_lock_up_is_explained(bench):
    # The UART of this build is nowhere, so the fault handler faults when it reports that.
    elf = bench.build(HELLO, EDGETQS_UART_BASE="0xE1000000u")
    with pytest.raises(CheckFailed, match="the core locked up, a fault inside a fault, at pc 0x"):
        emulate.run(bench.target, elf, bench.folder, timeout_s=20)


@on(BARE)
def test_time_limit(bench):
    elf = bench.build(HELLO.replace("return", 'board_puts("still here");\nfor (;;) {\n}\nreturn'))
    with pytest.raises(CheckFailed) as caught:
        emulate.run(bench.target, elf, bench.folder, timeout_s=4)  # long enough to come up on a busy computer
    assert "still running after 4 s" in str(caught.value)
    assert "still here" in str(caught.value)


@on(["x86", "raspberry-pi-zero"])
def test_time_limit_on_linux(bench):
    elf = bench.build("int main(void) { for (;;) { } }")
    with pytest.raises(CheckFailed, match="still running after 1 s"):
        emulate.run(bench.target, elf, bench.folder, timeout_s=1)


@on(["x86", "raspberry-pi-4"])
def test_crash_on_linux(bench):
    elf = bench.build("#include <stdlib.h>\nint main(void) { abort(); }")
    with pytest.raises(CheckFailed, match="killed by SIGABRT"):
        emulate.run(bench.target, elf, bench.folder)


# Every size and alignment around the word loops; a core that cannot read unaligned
# words (Cortex-M0+) faults on a mistake.
MEMORY = """
#include <stddef.h>
#include <stdint.h>
void *memcpy(void *restrict to, const void *restrict from, size_t count);
void *memmove(void *to, const void *from, size_t count);
void *memset(void *to, int value, size_t count);
int memcmp(const void *left, const void *right, size_t count);
static uint8_t a[64];
static uint8_t b[64];
static void fill(uint8_t *to, uint32_t seed)
{
    volatile uint8_t *byte = to;
    uint32_t i;
    for (i = 0; i < 64u; i++) {
        byte[i] = (uint8_t)(seed + 7u * i);
    }
}
int main(void)
{
    uint32_t to;
    uint32_t from;
    uint32_t size;
    uint32_t i;
    for (to = 0; to < 9u; to++) {
        for (from = 0; from < 9u; from++) {
            for (size = 0; size < 40u; size++) {
                fill(a, 1);
                fill(b, 100);
                if (memcpy(b + to, a + from, size) != b + to) {
                    return 1;
                }
                for (i = 0; i < 64u; i++) {
                    const uint32_t source = i >= to && i < to + size ? 1u + 7u * (i - to + from) : 100u + 7u * i;
                    if (b[i] != (uint8_t)source) {
                        return 2;
                    }
                }
                if (memcmp(a + from, b + to, size) != 0) {
                    return 3;
                }
                memmove(a + to, a + from, size);
                for (i = 0; i < 64u; i++) {
                    const uint32_t source = i >= to && i < to + size ? i - to + from : i;
                    if (a[i] != (uint8_t)(1u + 7u * source)) {
                        return 4;
                    }
                }
            }
        }
        for (size = 0; size < 40u; size++) {
            fill(a, 1);
            memset(a + to, 0x1A5, size);
            for (i = 0; i < 64u; i++) {
                if (a[i] != (i >= to && i < to + size ? 0xA5u : (uint8_t)(1u + 7u * i))) {
                    return 5;
                }
            }
        }
    }
    a[0] = 0x80;
    b[0] = 0x7F;
    return memcmp(a, b, 1) > 0 && memcmp(b, a, 1) < 0 ? 66 : 6;
}
"""


@on(["cortex-m0plus", "cortex-m3", "cortex-m55"])
def test_memory_functions(bench):
    assert bench.run(MEMORY).exit_code == 66


@on(["cortex-m0plus", "cortex-m4"])
def test_an_image_too_big_for_flash(bench):
    too_much = bench.target.memory.flash_bytes
    text = f"""
    static const unsigned char table[{too_much}] = {{1}};
    int main(int argc, char **argv) {{ (void)argv; return ((const volatile unsigned char *)table)[argc]; }}
    """
    with pytest.raises(CheckFailed, match=r"does not fit: \d+ bytes too many in FLASH"):
        bench.build(text)


@on(["cortex-m0plus", "cortex-m4"])
def test_data_may_not_reach_into_the_stack(bench):
    memory = bench.target.memory
    size = memory.ram_bytes - memory.stack_bytes + 4
    text = f"static volatile char space[{size}];\nint main(void) {{ return space[0]; }}"
    with pytest.raises(CheckFailed, match="does not fit: 4 bytes too many in RAM"):
        bench.build(text)


@on(ALL)
def test_same_sources_elsewhere_give_the_same_bytes(bench):
    text = '#include "port.h"\nint main(void) { port_log(__FILE__); port_exit(0); }'
    first = bench.build(text).read_bytes()
    elsewhere = bench.folder / "some" / "where" / "else"
    elsewhere.mkdir(parents=True)
    assert Bench(bench.target, elsewhere).build(text).read_bytes() == first
    assert str(bench.folder).encode() not in first
