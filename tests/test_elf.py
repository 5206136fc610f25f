"""Compiling, linking and measuring: sections, symbols, and the bound of the stack."""

import shutil
import subprocess
from pathlib import Path

import pytest

from edgetqs import elf, firmware
from edgetqs.errors import BadInput, CheckFailed, ToolMissing
from edgetqs.paths import data_dir
from edgetqs.stack import _deepest, _pushed_bytes, _read_image, stack_bound
from edgetqs.target import Target, load_target

PROGRAM = """
#include <stdint.h>
#include "board.h"
static const int8_t weights[300] = {1, 2, 3};
static volatile uint32_t initialised = 5;
static volatile uint8_t scratch[1000];
static const int8_t never_used[5000] = {9};
const int8_t *unused(void);
const int8_t *unused(void) { return never_used; }
int main(void)
{
    uint32_t i;
    for (i = 0; i < 300u; i++) {
        scratch[i] = (uint8_t)(weights[i] + (int8_t)initialised);
    }
    return scratch[7];
}
"""


def need(target_name: str) -> Target:
    target = load_target(target_name)
    try:
        firmware.toolchain(target)
    except ToolMissing as error:
        pytest.skip(error.what)
    return target


def build(target: Target, folder: Path, text: str, **options) -> Path:
    program = folder / "program.c"
    program.write_text(text)
    sources = [*firmware.board_sources(target), program]
    defines = firmware.board_defines(target, emulated=False)
    objects = firmware.compile_sources(target, sources, folder, defines=defines, **options)
    script = firmware.write_linker_script(target, folder / "link.ld") if target.kind == "bare" else None
    sanitizers = options.get("sanitizers", False)
    return firmware.link(target, objects, folder / "program.elf", script, sanitizers=sanitizers)


@pytest.mark.parametrize("name", ["cortex-m0plus", "cortex-m4", "stm32f405"])
def test_sections_and_sizes(tmp_path, name):
    target = need(name)
    image = build(target, tmp_path, PROGRAM)
    memory = target.memory
    found = {section.name: section for section in elf.sections(image)}
    assert list(found) == [".text", ".rodata", ".data", ".bss"]
    assert found[".text"].address == memory.flash_origin
    assert found[".data"].address == memory.ram_origin
    assert (found[".data"].bytes, found[".bss"].bytes) == (4, 1000)
    assert [section.in_flash for section in found.values()] == [True, True, True, False]
    assert [section.in_ram for section in found.values()] == [False, False, True, True]
    assert elf.ram_bytes(image) == 1004
    assert elf.code_bytes(image) == found[".text"].bytes
    assert elf.flash_bytes(image) == found[".text"].bytes + found[".rodata"].bytes + 4
    assert elf.flash_bytes(image) < 1500, "what is not used must not be linked"


def test_sizes_agree_with_binutils(tmp_path):
    image = build(need("cortex-m3"), tmp_path, PROGRAM)
    line = subprocess.check_output(["arm-none-eabi-size", str(image)], text=True).splitlines()[1]
    text, data, bss = map(int, line.split()[:3])
    assert elf.flash_bytes(image) == text + data
    assert elf.ram_bytes(image) == data + bss


def test_symbols(tmp_path):
    image = build(need("cortex-m4"), tmp_path, PROGRAM)
    assert elf.symbol(image, "weights").bytes == 300
    assert elf.symbols_bytes(image, ["weights", "scratch"]) == 1300
    main = elf.symbol(image, "main")
    assert main.is_function
    assert main.address % 2 == 0
    with pytest.raises(CheckFailed, match="0 symbols called 'never_used'"):
        elf.symbol(image, "never_used")
    with pytest.raises(CheckFailed, match="holds no never_used, unused"):
        elf.symbols_bytes(image, ["weights", "unused", "never_used"])
    assert elf.is_thumb(image)


def test_not_an_elf(tmp_path):
    path = tmp_path / "text"
    path.write_text("hello")
    with pytest.raises(BadInput, match="not an ELF file"):
        elf.sections(path)


# Frames of many shapes, and the parts of libgcc that a forecaster could pull in.
CALLS = """
#include <stdint.h>
int other(int n);
volatile float f = 1.5f;
volatile double d = 1.5;
volatile int64_t l = 5;
volatile int n = 3;
static __attribute__((noinline)) void floats(void)
{
    volatile char space[100];
    space[n] = 1;
    f = f * f + f / 3.0f - (float)l + (float)space[0];
    f = f < 2.0f ? f : (float)n;
}
static __attribute__((noinline)) void doubles(void)
{
    d = d * d / 3.0 + n;
}
static __attribute__((noinline)) void longs(void)
{
    volatile int32_t space[110];
    space[n] = n;
    l = l * l / n % 7 + space[3];
    l >>= n;
    n = n / 3 % (int)l;
}
static __attribute__((noinline)) float saved(float a, float b, float c)
{
    const float x = a * b;
    const float y = b * c;
    floats();
    return x + y;
}
static __attribute__((noinline)) int choose(int which)
{
    switch (which) {
    case 0: return n;
    case 1: return n * 3;
    case 2: return n - 9;
    case 3: return n + 4;
    case 4: return n / 7;
    default: return 1;
    }
}
int main(void)
{
    floats();
    doubles();
    longs();
    f = saved(f, f, f);
    return choose(n) + MORE;
}
"""


def bound_of(target: Target, folder: Path, text: str, root: str = "main"):
    image = build(target, folder, text)
    return stack_bound(folder, image, root, firmware.toolchain(target).objdump)


ARM = ["cortex-m0plus", "cortex-m3", "cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55"]


@pytest.mark.parametrize("name", ARM)
def test_disassembly_gives_the_frames_that_gcc_states(tmp_path, name):
    target = need(name)
    image = build(target, tmp_path, CALLS.replace("MORE", "0"))
    objdump = firmware.toolchain(target).objdump
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    for root in ("main", "floats", "doubles", "longs", "saved", "choose", "memcpy", "board_start"):
        if root not in {entry.name for entry in elf.symbols(image)}:
            continue
        stated = stack_bound(tmp_path, image, root, objdump)
        measured = stack_bound(nothing, image, root, objdump)
        assert stated == measured
        assert stated.unknown == ()


def test_frames_too_large_to_read_off_are_not_covered(tmp_path):
    target = need("cortex-m0plus")
    image = build(target, tmp_path, CALLS.replace("[110]", "[500]").replace("MORE", "0"))
    objdump = firmware.toolchain(target).objdump
    assert stack_bound(tmp_path, image, "longs", objdump).bytes > 2000
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    assert stack_bound(nothing, image, "longs", objdump).unknown == ("longs: frame of unknown size",)


def test_the_deepest_path_is_named(tmp_path):
    bound = bound_of(need("cortex-m0plus"), tmp_path, CALLS.replace("MORE", "0"))
    assert bound.path[:3] == ("main", "longs", "__aeabi_ldivmod")
    assert 440 < bound.bytes < 700


@pytest.mark.parametrize(
    ("mnemonic", "operands", "bytes_down"),
    [
        ("push", "{r3, r4, r5, lr}", 16),
        ("stmdb", "sp!, {r4, r5, r6, r7, r8, r9, sl, lr}", 32),
        ("stmdb", "r0!, {r4, r5}", 0),
        ("str", "lr, [sp, #-8]!", 8),
        ("strd", "ip, lr, [sp, #-16]!", 16),
        ("str", "r3, [sp, #8]", 0),
        ("sub", "sp, #508", 508),
        ("sub", "sp, sp, #1024", 1024),
        ("subw", "sp, sp, #2004", 2004),
        ("sub", "r3, sp, #8", 0),
        ("vpush", "{d8}", 8),
        ("vpush", "{d8-d11}", 32),
        ("vpush", "{s16-s20}", 20),
        ("add", "sp, #16", 0),
        ("pop", "{r4, pc}", 0),
    ],
)
def test_how_far_an_instruction_moves_the_stack(mnemonic, operands, bytes_down):
    assert _pushed_bytes(mnemonic, operands) == bytes_down


def test_functions_run_into_each_other_as_in_libgcc():
    names = ["root", "falls", "body", "leaf", "pointer"]
    functions = [elf.Symbol(name, 16 * i, 0, is_function=True) for i, name in enumerate(names)]
    listing = """
   0:\tpush\t{r4, lr}
   2:\tbl\t10 <falls>
   6:\tcbz\tr0, 8 <root+0x8>
   8:\tpop\t{r4, pc}
  10:\teors.w\tr0, r0, #1
  14:\tnop
  20:\tpush\t{r0, r1, lr}
  22:\tbl\t26 <body+0x6>
  26:\tpush\t{r2}
  28:\tbleq\t30 <leaf>
  2c:\tb.n\t20 <body>
  30:\tbx\tlr
  32:\t.word\t0x00000020
  40:\tblx\tr3\t@ comment
  42:\tudf\t#0
"""
    graph = _read_image({}, functions, listing)
    assert {name: graph[name].bytes for name in names} == dict(zip(names, (8, 0, 16, 0, 0), strict=True))
    assert [graph[name].calls for name in names] == [{"falls"}, {"body"}, {"leaf"}, set(), set()]
    assert graph["pointer"].unknown == {"pointer: call through a pointer"}
    assert _deepest(graph, "root").path == ("root", "falls", "body", "leaf")
    assert _deepest(graph, "root").bytes == 24


def test_recursion_is_refused(tmp_path):
    text = CALLS.replace("MORE", "other(n)")
    text += "static __attribute__((noinline)) int back(int k) { n++; return other(k - 1) + n; }\n"
    text += "int other(int k) { n++; return k > 0 ? back(k) * n : 0; }\n"
    with pytest.raises(CheckFailed, match=r"recursion: .*back"):
        bound_of(need("cortex-m4"), tmp_path, text)


def test_calls_through_pointers_are_not_covered(tmp_path):
    text = CALLS.replace("MORE", "other(n)")
    text += "int (*volatile pointer)(int) = choose;\nint other(int k) { return pointer(k) + 1; }\n"
    bound = bound_of(need("cortex-m4"), tmp_path, text)
    assert bound.unknown == ("other: call through a pointer",) or bound.unknown == ("main: call through a pointer",)


def test_variable_arrays_are_not_covered(tmp_path):
    text = CALLS.replace("MORE", "other(n)")
    text += "__attribute__((noinline)) int other(int k) { volatile char a[k]; a[0] = 1; return a[n]; }\n"
    bound = bound_of(need("cortex-m0plus"), tmp_path, text)
    assert bound.unknown == ("other: array of variable length",)


def test_unknown_root(tmp_path):
    with pytest.raises(CheckFailed, match="no function 'nobody'"):
        bound_of(need("cortex-m4"), tmp_path, CALLS.replace("MORE", "0"), root="nobody")


def test_elsewhere_the_bound_is_gccs_part(tmp_path):
    text = 'int puts(const char *);\nint main(void) { volatile char a[400]; a[1] = 2; return puts("x") + a[1]; }'
    bound = bound_of(need("x86"), tmp_path, text)
    assert 400 <= bound.bytes < 500
    assert bound.unknown == ("puts: its code is not among the files that gcc compiled",)


def test_sanitizers_end_the_program(tmp_path):
    text = "int main(int argc, char **argv) { int a[3] = {1, 2, 3}; (void)argv; return a[argc + 2]; }"
    image = build(need("x86"), tmp_path, text, sanitizers=True, extra=["-Wno-array-bounds"])
    done = subprocess.run([str(image)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "out of bounds" in done.stderr


def test_warnings_are_errors(tmp_path):
    with pytest.raises(CheckFailed, match=r"compiling program\.c failed") as caught:
        build(need("x86"), tmp_path, "int main(void) { char small = 1000; return small; }")
    assert "-Werror=" in str(caught.value)
    assert not (tmp_path / "program.elf").exists()


def test_two_sources_of_one_name(tmp_path):
    with pytest.raises(BadInput, match=r"two sources are called a\.c"):
        firmware.compile_sources(need("x86"), [tmp_path / "a.c", tmp_path / "b" / "a.c"], tmp_path)


def test_missing_compiler_names_the_package(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ToolMissing) as caught:
        firmware.toolchain(load_target("cortex-m4"))
    assert "apt install gcc-arm-none-eabi" in str(caught.value)


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("source", ["port_posix.c", "board_mem.c", "count.c"])
def test_sources_are_clean_with_both_compilers(tmp_path, compiler, source):
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    flags = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror", "-DEDGETQS_PLUGIN_API=1"]
    output = tmp_path / "out.o"
    subprocess.run([compiler, *flags, "-c", str(data_dir("runtime") / source), "-o", str(output)], check=True)
