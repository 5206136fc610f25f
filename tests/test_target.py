"""Target files: what ships is complete and cited, and every mistake in one is named."""

from pathlib import Path

import pytest

from edgetqs.errors import BadInput
from edgetqs.paths import data_dir
from edgetqs.target import list_targets, load_target

NAMES = {
    "cortex-m0plus",
    "cortex-m3",
    "cortex-m4",
    "cortex-m7",
    "cortex-m33",
    "cortex-m55",
    "stm32f405",
    "microbit",
    "nrf52840-dk",
    "nucleo-f446re",
    "nucleo-l4r5zi",
    "rp2040-pico",
    "raspberry-pi-4",
    "raspberry-pi-zero",
    "x86",
}


def edited(tmp_path: Path, *edits: tuple[str, str], name: str = "cortex-m4") -> Path:
    """A copy of the target ``name`` with parts of its text replaced."""
    text = (data_dir("targets") / f"{name}.toml").read_text()
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / f"{name}.toml"
    path.write_text(text)
    return path


def test_all_shipped_targets_load():
    assert {target.name for target in list_targets()} == NAMES
    assert all(load_target(target.name) == target for target in list_targets())


@pytest.mark.parametrize("target", list_targets(), ids=lambda target: target.name)
def test_limits(target):
    if target.kind == "bare":
        assert 0 < target.flash_budget_bytes < target.memory.flash_bytes
        assert 0 < target.ram_budget_bytes < target.memory.ram_bytes
    else:
        assert target.flash_budget_bytes == target.ram_budget_bytes == 0


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_figure_names_its_source(name):
    lines = (data_dir("targets") / f"{name}.toml").read_text().splitlines()
    figures = [line for line in lines if line.partition("=")[2].strip()[:1].isdigit()]
    assert all("#" in line for line in figures)


def test_budgets():
    target = load_target("cortex-m4")
    assert target.flash_budget_bytes == 524_288 - 32_768
    assert target.ram_budget_bytes == 131_072 - 8_192 - 8_192


def test_a_path_works_too(tmp_path):
    assert load_target(edited(tmp_path)) == load_target("cortex-m4")
    assert load_target(str(edited(tmp_path, ("Cortex-M4F", "Mine")))).title.startswith("Arm Mine")


@pytest.mark.parametrize(("wrong", "meant"), [("cortex_m4", "cortex-m4"), ("stm32f407", "stm32f405"), ("X86", "x86")])
def test_unknown_name_suggests_the_nearest(wrong, meant):
    with pytest.raises(BadInput) as caught:
        load_target(wrong)
    assert f"Did you mean {meant}?" in str(caught.value)
    assert all(name in str(caught.value) for name in NAMES)


def test_unknown_name_with_nothing_near():
    with pytest.raises(BadInput) as caught:
        load_target("z80")
    assert "Did you mean" not in str(caught.value)


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(BadInput, match="cannot read the target"):
        load_target(tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("name = ")
    with pytest.raises(BadInput, match="not valid TOML"):
        load_target(tmp_path / "broken.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="not valid TOML"):
        load_target(tmp_path / "binary.toml")


def test_all_mistakes_at_once_each_with_file_and_key(tmp_path):
    path = edited(
        tmp_path,
        ("flash_bytes = 524_288", 'flash_bytes = "512K"'),
        ("ram_bytes", "ram_kb"),
        ('driver = "cmsdk"', 'driver = "pl011"'),
        ('machine = "mps2-an386"', 'machine = "mps2-an386"\nspeed = 3'),
        ('title = "Arm Cortex-M4F (512 KiB flash, 128 KiB RAM)"', ""),
        ('kernels = "dsp"', "kernels = true"),
    )
    with pytest.raises(BadInput) as caught:
        load_target(path)
    keys = "memory.flash_bytes memory.ram_kb uart.driver watchdog.driver qemu.speed title cpu.kernels"
    for key in keys.split():
        assert f"{path}: {key}: " in str(caught.value)
    assert "7 mistakes" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("stack_bytes = 8_192", "stack_bytes = -8", "memory.stack_bytes: must be a whole number"),
        ("stack_bytes = 8_192", "stack_bytes = true", "memory.stack_bytes: must be a whole number"),
        ("stack_bytes = 8_192", "stack_bytes = 8_190", "memory.stack_bytes: must be a multiple of 8"),
        ("stack_bytes = 8_192", "stack_bytes = 0", "memory.stack_bytes: must not be 0"),
        ("stack_bytes = 8_192", "stack_bytes = 131_072", "memory.stack_bytes: together with"),
        ("flash_reserve_bytes = 32_768", "flash_reserve_bytes = 524_288", "memory.flash_reserve_bytes: leaves nothing"),
        ("-mcpu=cortex-m4", "-mcpu=cortex-m0", "cpu.kernels: must be 'thumb1'"),
        ("-mcpu=cortex-m4", "-mcpu=cortex-m55", "cpu.kernels: must be 'mve'"),
        ('name = "cortex-m4"', 'name = "cortex-m5"', "name: must be the file's own name"),
        ('machine = "mps2-an386"', "", "qemu.machine: missing"),
        ("[uart]", "[cpu.uart]", "cpu.uart: unknown key"),
        ('flags = ["-mcpu=cortex-m4", ', "flags = [4, ", "cpu.flags: must be a list of strings"),
        ('kind = "bare"', 'kind = "naked"', "kind: must be one of bare, linux, host"),
    ],
)
def test_mistakes(tmp_path, old, new, message):
    with pytest.raises(BadInput) as caught:
        load_target(edited(tmp_path, (old, new)))
    assert message in str(caught.value)


def test_uart_is_required_on_a_bare_target_only(tmp_path):
    text = (data_dir("targets") / "cortex-m3.toml").read_text()
    before, _, rest = text.partition("[uart]")
    path = tmp_path / "cortex-m3.toml"
    path.write_text(before + rest[rest.index("[qemu]") :])
    with pytest.raises(BadInput, match="has 1 mistake") as caught:
        load_target(path)
    assert "uart: missing" in str(caught.value)
    assert load_target("raspberry-pi-4").uart is None
