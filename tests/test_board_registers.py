"""``link.elf`` of every board in an instruction set simulator, the registers that it touches as the manuals have them.

The models are written from the manuals, not from runtime/board_*.c: a register of
a block that has no clock, is in reset or has no power is an error, and so is any
register that is not modelled. Bytes travel only when the pins are connected and
the rate is right. This says nothing of timing or of what the manuals leave out.
"""

import struct
from collections import deque
from collections.abc import Callable
from typing import ClassVar

import pytest
from installed import ready
from linked import linked, play
from test_boards import flash

from edgetqs.dut import Dut

unicorn = pytest.importorskip("unicorn")
from unicorn import arm_const  # noqa: E402

BAUD = 115200
#: Peripherals, by regions of the address map.
REGIONS = ((0x1800_0000, 0x1000), (0x4000_0000, 0x60000), (0x4800_0000, 0x4000), (0x5000_0000, 0x1000))
PRIVATE = (0xE000_0000, 0x10_0000)
CHUNK = 20_000  # instructions between two looks at the UART


class Chip:
    """Registers: what is stored, what reads differently, what must hold before a block may be touched."""

    core = arm_const.UC_CPU_ARM_CORTEX_M4

    def __init__(self) -> None:
        self.stored: dict[int, int] = dict(self.reset)
        self.incoming: deque[int] = deque()
        self.outgoing = bytearray()
        self.started: set[int] = set()
        self.ticks = 0

    #: Registers that may be touched, with what they hold after reset.
    reset: ClassVar[dict[int, int]] = {}
    #: (first, last, what must be true) of blocks that need something before.
    gates: tuple[tuple[int, int, Callable[["Chip"], bool]], ...] = ()

    def get(self, address: int) -> int:
        return self.stored[address]

    def _check(self, address: int) -> None:
        assert address in self.stored, f"{address:#x} is no register of this model"
        for first, last, ready_ in self.gates:
            assert not first <= address <= last or ready_(self), f"{address:#x} is touched before its block is ready"

    def read(self, address: int) -> int:
        self._check(address)
        return self.value(address)

    def write(self, address: int, value: int) -> None:
        self._check(address)
        self.stored[address] = value
        self.written(address, value)

    def value(self, address: int) -> int:
        return self.stored[address]

    def written(self, address: int, value: int) -> None:
        pass

    def connected(self) -> None:
        """Raises where a byte would not get through."""
        raise NotImplementedError

    def send(self, byte: int) -> None:
        self.connected()
        self.outgoing.append(byte & 0xFF)

    def take(self) -> int:
        self.connected()
        return self.incoming.popleft()


class Watchdog:
    """What a chip's watchdog registers have been told; a reset is not played."""

    def __init__(self, chip: Chip, base: int) -> None:
        self.chip, self.base = chip, base
        self.running, self.fed = False, 0

    @property
    def seconds(self) -> float:
        raise NotImplementedError

    def written(self, offset: int, value: int) -> None:
        raise NotImplementedError


class Iwdg(Watchdog):
    """RM0090 21.3, RM0432 38.3: a key opens PR and RLR, another one closes them and reloads the counter."""

    open = False

    @property
    def seconds(self):
        prescaler, reload = (self.chip.get(self.base + offset) for offset in (4, 8))
        assert prescaler <= 6 and reload <= 0xFFF
        return (reload + 1) * (4 << prescaler) / 32_000

    def written(self, offset, value):
        if offset:
            assert self.open, "PR and RLR are written without their key"
            return
        assert value in (0x5555, 0xAAAA, 0xCCCC)
        self.open = value == 0x5555
        self.running |= value == 0xCCCC
        self.fed += value == 0xAAAA


class Wdt(Watchdog):
    """nRF51 Reference Manual 24, nRF52840 Product Specification, WDT: configured before it starts, fed by a word."""

    @property
    def seconds(self):
        return (self.chip.get(self.base + 0x504) + 1) / 32_768

    def written(self, offset, value):
        if offset == 0x600:
            assert value == 0x6E52_4635 and self.chip.get(self.base + 0x508) & 1
            self.fed += 1
            return
        assert not self.running, "it cannot be changed while it runs"
        self.running |= offset == 0 and value == 1


def near(rate: float) -> bool:
    return abs(rate / BAUD - 1) < 0.01


class Stm32F4(Chip):
    """RM0090 and RM0390: RCC 0x40023800, GPIO from 0x40020000 on, USART, IWDG."""

    uart, clocks, clock_bit, pins = 0x4001_1000, 0x4002_3844, 4, (9, 10)
    #: RCC_CSR, its watchdog flag, and the bit that clears all flags.
    cause: ClassVar = (0x4002_3874, 1 << 29, 1 << 24)

    def __init__(self) -> None:
        gpio = {0x4002_0000 + offset: 0 for offset in (0x00, 0x20, 0x24)} | {0x4002_0000: 0xA800_0000}
        rcc = dict.fromkeys((0x4002_3830, 0x4002_3840, 0x4002_3844, 0x4002_3874), 0)
        usart = {self.uart + offset: 0 for offset in (0x00, 0x04, 0x08, 0x0C)}
        self.reset = {**gpio, **rcc, **usart, **dict.fromkeys((0x4000_3000, 0x4000_3004, 0x4000_3008), 0)}
        self.gates = (
            (0x4002_0000, 0x4002_03FF, lambda chip: chip.get(0x4002_3830) & 1),
            (self.uart, self.uart + 0x3FF, lambda chip: chip.get(self.clocks) >> self.clock_bit & 1),
        )
        super().__init__()
        self.watchdog = Iwdg(self, 0x4000_3000)

    def value(self, address):
        if address == self.uart:  # SR: TXE, TC, RXNE
            return 0xC0 | (0x20 if self.incoming else 0)
        return self.take() if address == self.uart + 4 else self.get(address)

    def written(self, address, value):
        if address == self.uart + 4:
            self.send(value)
        elif 0x4000_3000 <= address < 0x4000_3400:
            self.watchdog.written(address - 0x4000_3000, value)
        elif address == self.cause[0] and value & self.cause[2]:
            self.stored[address] = 0

    def connected(self):
        for pin in self.pins:
            assert self.get(0x4002_0000) >> 2 * pin & 3 == 2
            assert self.get(0x4002_0020 + pin // 8 * 4) >> pin % 8 * 4 & 15 == 7
        assert self.get(self.uart + 12) & 0x200C == 0x200C  # UE, TE, RE
        assert near(16e6 / self.get(self.uart + 8))
        assert self.get(0x4002_0000) & 0xFC00_0000 == 0xA800_0000  # the debug port's pins


class Stm32F446(Stm32F4):
    uart, clocks, clock_bit, pins = 0x4000_4400, 0x4002_3840, 17, (2, 3)


class Stm32L4R5(Chip):
    """RM0432: RCC 0x40021000, PWR 0x40007000, GPIOG 0x48001800, LPUART1 0x40008000, IWDG."""

    cause: ClassVar = (0x4002_1094, 1 << 29, 1 << 23)
    reset: ClassVar[dict[int, int]] = {
        **{0x4002_1000: 0x63, 0x4002_1008: 0, 0x4002_104C: 0, 0x4002_1058: 0, 0x4002_105C: 0, 0x4002_1094: 0},
        **{0x4000_7004: 0, 0x4800_1800: 0xFFFF_FFFF, 0x4800_1820: 0, 0x4800_1824: 0},
        **{0x4000_8000 + offset: 0 for offset in (0x00, 0x0C, 0x1C, 0x20, 0x24, 0x28)},
        **dict.fromkeys((0x4000_3000, 0x4000_3004, 0x4000_3008), 0),
    }
    gates = (
        (0x4000_7000, 0x4000_73FF, lambda chip: chip.get(0x4002_1058) >> 28 & 1),
        (0x4000_8000, 0x4000_83FF, lambda chip: chip.get(0x4002_105C) & 1),
        (0x4800_1800, 0x4800_1BFF, lambda chip: chip.get(0x4002_104C) >> 6 & 1),
    )

    def __init__(self) -> None:
        super().__init__()
        self.watchdog = Iwdg(self, 0x4000_3000)

    def value(self, address):
        if address == 0x4002_1000:  # HSIRDY follows HSION
            return self.get(address) | (self.get(address) >> 8 & 1) << 10
        if address == 0x4002_1008:  # SWS follows SW, if that clock runs
            chosen = self.get(address) & 3
            assert chosen != 1 or self.get(0x4002_1000) >> 8 & 1
            return self.get(address) & ~0xC | chosen << 2
        if address == 0x4000_801C:  # ISR: TXE, TC, RXNE
            return 0xC0 | (0x20 if self.incoming else 0)
        return self.take() if address == 0x4000_8024 else self.get(address)

    def written(self, address, value):
        if address == 0x4000_8028:
            self.send(value)
        elif 0x4000_3000 <= address < 0x4000_3400:
            self.watchdog.written(address - 0x4000_3000, value)
        elif address == self.cause[0] and value & self.cause[2]:
            self.stored[address] = 0

    def connected(self):
        assert self.get(0x4000_7004) >> 9 & 1  # IOSV: port G has power
        assert self.get(0x4800_1800) >> 14 & 15 == 0b1010
        assert (self.get(0x4800_1820) >> 28, self.get(0x4800_1824) & 15) == (8, 8)
        assert self.get(0x4000_8000) & 0xD == 0xD  # UE, RE, TE
        assert self.get(0x4002_1008) & 3 == 1
        assert near(256 * 16e6 / self.get(0x4000_800C)) and 0x300 <= self.get(0x4000_800C) < 1 << 20


class Nrf5(Chip):
    """nRF51 Reference Manual, nRF52840 Product Specification: CLOCK, POWER, UART, WDT, GPIO."""

    tx, rx = 6, 8
    cause: ClassVar = (0x4000_0400, 1 << 1, 0)  # RESETREAS: ones clear

    def __init__(self) -> None:
        self.reset = dict.fromkeys((0x4000_0000, 0x4000_0100, 0x4000_0400), 0)
        uart = (0x000, 0x008, 0x108, 0x11C, 0x500, 0x518, 0x51C, 0x524)
        self.reset |= {0x4000_2000 + offset: 0 for offset in uart}
        self.reset |= dict.fromkeys((0x4000_250C, 0x4000_2514), 0xFFFF_FFFF)
        self.reset |= dict.fromkeys((0x4001_0000, 0x4001_0504, 0x4001_0508, 0x4001_0600), 0)
        self.reset |= {0x5000_0508: 0} | {0x5000_0700 + 4 * pin: 2 for pin in range(32)}
        super().__init__()
        self.watchdog = Wdt(self, 0x4001_0000)

    def value(self, address):
        if address == 0x4000_0100:  # HFCLKSTARTED
            return int(0x4000_0000 in self.started)
        if address == 0x4000_2108:  # RXDRDY: with every byte that reaches RXD
            return int(bool(self.incoming))
        return self.take() if address == 0x4000_2518 else self.get(address)

    def written(self, address, value):
        if address in (0x4000_0000, 0x4000_2000, 0x4000_2008) and value == 1:
            self.started.add(address)
        if 0x4001_0000 <= address < 0x4001_1000:
            self.watchdog.written(address - 0x4001_0000, value)
        if address == self.cause[0]:
            self.stored[address] = 0
        if address == 0x4000_251C:
            self.send(value)
            self.stored[0x4000_211C] = 1  # TXDRDY

    def connected(self):
        assert self.started >= {0x4000_0000, 0x4000_2000, 0x4000_2008}  # crystal, receiver, transmitter
        assert (self.get(0x4000_250C), self.get(0x4000_2514)) == (self.tx, self.rx)
        assert self.get(0x5000_0508) >> self.tx & 1  # idle is high
        assert self.get(0x5000_0700 + 4 * self.tx) & 1
        assert self.get(0x5000_0700 + 4 * self.rx) & 3 == 0
        assert (self.get(0x4000_2500), self.get(0x4000_2524)) == (4, 0x01D7_E000)


class Microbit(Nrf5):
    core = arm_const.UC_CPU_ARM_CORTEX_M0
    tx, rx = 24, 25


class Rp2040(Chip):
    """RP2040 data sheet: SSI, RESETS with its set and clear aliases, CLOCKS, XOSC, IO_BANK0, UART0."""

    core = arm_const.UC_CPU_ARM_CORTEX_M0
    reset: ClassVar[dict[int, int]] = {
        **dict.fromkeys((0x1800_0000, 0x1800_0004, 0x1800_0014, 0x1800_00F4), 0),
        **{0x1800_0008: 1, 0x4000_C000: 0x01FF_FFFF, 0x4000_E000: 0, 0x4000_F000: 0, 0x4000_C008: 0},
        **{0x4000_8030: 0, 0x4000_8038: 1, 0x4000_8048: 0, 0x4002_4000: 0, 0x4002_4004: 0, 0x4002_400C: 0xC4},
        **{0x4001_4004: 31, 0x4001_400C: 31},
        **{0x4003_4000 + offset: 0 for offset in (0x00, 0x18, 0x24, 0x28, 0x2C, 0x30)},
    }
    gates = (
        (0x1800_0000, 0x1800_0004, lambda chip: chip.get(0x1800_0008) == 0),  # set while it is off only
        (0x1800_00F4, 0x1800_00F4, lambda chip: chip.get(0x1800_0008) == 0),
        (0x4001_4000, 0x4001_4FFF, lambda chip: not chip.get(0x4000_C000) >> 5 & 1),
        (0x4003_4000, 0x4003_4FFF, lambda chip: not chip.get(0x4000_C000) >> 22 & 1),
        (0x4003_4000, 0x4003_4FFF, lambda chip: chip.get(0x4000_8048) >> 11 & 1),  # clk_peri
    )

    def value(self, address):
        if address == 0x4000_C008:  # RESET_DONE
            return ~self.get(0x4000_C000) & 0x01FF_FFFF
        if address == 0x4002_4004:  # XOSC STATUS
            return (self.get(0x4002_4000) == 0xFABAA0) << 31
        if address == 0x4000_8038:  # CLK_REF_SELECTED
            assert self.get(0x4000_8030) & 3 != 2 or self.get(0x4002_4000) == 0xFABAA0
            return 1 << (self.get(0x4000_8030) & 3)
        if address == 0x4003_4018:  # FR: RXFE, TXFE
            return 0x80 | (0 if self.incoming else 0x10)
        return self.take() if address == 0x4003_4000 else self.get(address)

    def written(self, address, value):
        if address == 0x4000_E000:
            self.stored[0x4000_C000] |= value
        elif address == 0x4000_F000:
            self.stored[0x4000_C000] &= ~value
        elif address == 0x4003_4000:
            self.send(value)

    def connected(self):
        assert self.get(0x1800_0008) == 1 and self.get(0x1800_00F4) >> 24 == 0x03  # flash is read
        assert not self.get(0x4000_C000) >> 8 & 1  # the pads are out of reset
        assert (self.get(0x4001_4004) & 31, self.get(0x4001_400C) & 31) == (2, 2)
        assert self.get(0x4000_8030) & 3 == 2 and self.get(0x4000_8048) >> 5 & 7 == 0
        assert near(12e6 / 16 / (self.get(0x4003_4024) + self.get(0x4003_4028) / 64))
        assert self.get(0x4003_402C) & 0x7F == 0x70 and self.get(0x4003_4030) & 0x301 == 0x301


CHIPS = {
    "microbit": Microbit,
    "nrf52840-dk": Nrf5,
    "nucleo-f446re": Stm32F446,
    "nucleo-l4r5zi": Stm32L4R5,
    "rp2040-pico": Rp2040,
    "stm32f405": Stm32F4,
}


class Simulated:
    """A transport to ``link.elf`` on a chip."""

    can_power_cycle = False

    def __init__(self, own, chip: Chip) -> None:
        self.chip, self.machine = chip, unicorn.Uc(unicorn.UC_ARCH_ARM, unicorn.UC_MODE_THUMB | unicorn.UC_MODE_MCLASS)
        machine, memory = self.machine, own.target.memory
        machine.ctl_set_cpu_model(chip.core)
        machine.mem_map(memory.flash_origin, memory.flash_bytes, unicorn.UC_PROT_READ | unicorn.UC_PROT_EXEC)
        machine.mem_map(memory.ram_origin, (memory.ram_bytes + 0xFFF) & ~0xFFF)
        for address, data in flash(own.image):
            machine.mem_write(address, data)
        for base, size in REGIONS:
            machine.mmio_map(base, size, self._read, base, self._write, base)
        self.private: dict[int, int] = {}
        machine.mmio_map(*PRIVATE, self._read_private, None, self._write_private, None)
        sp, pc = struct.unpack("<2I", machine.mem_read(memory.flash_origin, 8))
        if memory.boot_bytes:  # the boot ROM copies the stage to the end of SRAM and calls it
            pc = 0x2004_1F00 | 1
            machine.mem_write(0x2004_1F00, bytes(machine.mem_read(memory.flash_origin, 256)))
            sp = 0x2004_1F00
        machine.reg_write(arm_const.UC_ARM_REG_SP, sp)
        self.pc = pc

    def _read(self, machine, offset, size, base):
        assert size == 4
        return self.chip.read(base + offset)

    def _write(self, machine, offset, size, value, base):
        assert size == 4
        self.chip.write(base + offset, value)

    def _read_private(self, machine, offset, size, data):
        self.chip.ticks += 64
        if offset == 0x1004:  # DWT_CYCCNT
            return self.chip.ticks & 0xFFFF_FFFF
        return -self.chip.ticks & 0xFF_FFFF if offset == 0xE018 else self.private.get(offset, 0)  # SYST_CVR

    def _write_private(self, machine, offset, size, value, data):
        self.private[offset] = value

    def read(self, timeout_s):
        for _ in range(200):
            self.machine.emu_start(self.pc, 0xFFFF_FFFE, count=CHUNK)
            self.pc = self.machine.reg_read(arm_const.UC_ARM_REG_PC) | 1
            if self.chip.outgoing and not self.chip.incoming:
                break
        said = bytes(self.chip.outgoing)
        self.chip.outgoing.clear()
        return said

    def write(self, data):
        self.chip.incoming.extend(data)

    def reconnect(self):
        pass

    def power_cycle(self):
        raise NotImplementedError

    def close(self):
        pass


@pytest.mark.parametrize("name", sorted(CHIPS))
def test_the_board_starts_and_answers_with_the_references_bits(name):
    ready(name, runs=False)
    own = linked(name)
    chip = CHIPS[name]()
    dut = Dut(Simulated(own, chip), patience_s=30)
    assert (dut.hello.target, dut.hello.cause, dut.hello.image_intact) == (name, "power-up", True)
    assert dut.hello.clock_hz == own.target.clock_hz
    assert play(dut, own, 20) == []
    assert dut.check()  # the CRC, read back through the chip's own flash


WATCHED = sorted(set(CHIPS) - {"rp2040-pico"})


@pytest.mark.parametrize("name", WATCHED)
def test_the_watchdog_is_fed_until_the_program_hangs(name):
    ready(name, runs=False)
    chip = CHIPS[name]()
    board = Simulated(linked(name), chip)
    dut = Dut(board, patience_s=30)
    assert chip.watchdog.running and 5 < chip.watchdog.seconds < 20
    fed = chip.watchdog.fed
    dut.stats()
    board.read(0)  # nobody asks for anything
    assert chip.watchdog.fed > fed + 10
    board.machine.mem_write(board.pc & ~1, b"\xfe\xe7")  # b . : a loop of one instruction
    board.machine.ctl_remove_cache(board.pc & ~1, (board.pc & ~1) + 2)
    fed = chip.watchdog.fed
    board.read(0)
    assert chip.watchdog.fed == fed


@pytest.mark.parametrize("name", WATCHED)
def test_a_reset_by_the_watchdog_is_told_once(name):
    ready(name, runs=False)
    chip = CHIPS[name]()
    address, flag, _ = chip.cause
    chip.stored[address] = flag
    assert Dut(Simulated(linked(name), chip), patience_s=30).hello.cause == "watchdog"
    assert not chip.stored[address] & flag


@pytest.mark.parametrize(
    ("name", "change", "fault"),
    [
        ("nucleo-f446re", {0x4002_3830: None}, "no register"),  # a model without RCC_AHB1ENR
        ("nucleo-l4r5zi", {0x4800_1800: None}, "no register"),
    ],
)
def test_the_model_is_strict(name, change, fault):
    ready(name, runs=False)
    chip = CHIPS[name]()
    for address in change:
        del chip.stored[address]
    with pytest.raises(AssertionError, match=fault):
        Dut(Simulated(linked(name), chip), patience_s=5)


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("nucleo-f446re", 0x4000_440C),  # USART2 without its clock
        ("nucleo-l4r5zi", 0x4000_7004),  # PWR without its clock
        ("rp2040-pico", 0x4003_4030),  # UART0 in reset
        ("rp2040-pico", 0x1800_0000),  # the flash interface while it runs
    ],
)
def test_a_block_that_is_not_ready_is_an_error(name, address):
    with pytest.raises(AssertionError, match="before its block is ready"):
        CHIPS[name]().write(address, 0)
