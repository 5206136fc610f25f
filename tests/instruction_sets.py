"""Which instructions each core has, to be compared with a disassembly.

QEMU executes more than a core has (its Cortex-M3 runs SMLAD), so running an
image proves nothing. Cortex-M cores have white lists, by mnemonic and for
Armv6-M by width too: what is not on one is foreign. For the Linux
processors, objects of this package are checked against what came later.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

_CONDITIONS = "eq ne cs cc mi pl vs vc hi ls ge lt gt le hs lo al".split()


@dataclass(frozen=True, slots=True)
class Instruction:
    mnemonic: str  # without .n and .w; "undefined" where the disassembler knows none
    operands: str
    bytes: int
    line: str


def disassemble(objdump: str, path: Path, core: str) -> list[Instruction]:
    """All instructions of an image or object; literal pools, which objdump marks by .word and its like, left out.

    Whatever the core, objdump decodes for the richest of its family, so that what is foreign has a name.
    """
    richest = ["-m", "armv8.1-m.main"] if core.startswith("cortex-m") else []
    command = [objdump, "--disassemble", *richest, str(path)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = []
    for line in listing.splitlines():
        match = re.match(r" *[0-9a-f]+:\t([0-9a-f]+(?: [0-9a-f]+)*) *\t(\S*)(?:\t([^@;]*))?", line)
        if match is None or match[2] in (".word", ".short", ".byte"):
            continue
        known = "<UNDEFINED>" not in line and match[2] != ".inst"
        mnemonic = re.sub(r"\.[nw]$", "", match[2]) if known else "undefined"
        size = len(match[1].replace(" ", "")) // 2
        found.append(Instruction(mnemonic, (match[3] or "").strip(), size, line.strip()))
    return found


def foreign(core: str, instructions: list[Instruction]) -> list[str]:
    """Lines of those that ``core`` (of a target's [cpu]) does not have."""
    return [one.line for one in instructions if not _HAS[core](one)]


# --- Armv6-M: DDI 0419, A6.7 ---------------------------------------------------------

_V6M = frozenset(
    "adc add adr and asr b bic bkpt bl blx bx cmn cmp cps cpsid cpsie dmb dsb eor isb ldm ldmia ldr ldrb ldrh ldrsb "
    "ldrsh lsl lsr mov mrs msr mul mvn neg nop orr pop push rev rev16 revsh rsb ror sbc sev stm stmia str strb strh "
    "sub svc sxtb sxth tst udf uxtb uxth wfe wfi yield".split()
)
_V6M_LONG = frozenset("bl dmb dsb isb mrs msr udf".split())

# --- Armv7-M: DDI 0403, A7.7 without the DSP and floating-point extensions -----------

_V7M = _V6M | frozenset(
    "addw bfc bfi cbnz cbz clrex clz csdb dbg it ite itt itee itet itte ittt iteee iteet itete itett ittee ittet "
    "ittte itttt ldmdb ldrd ldrex ldrexb ldrexh ldrbt ldrht ldrsbt ldrsht ldrt mla mls movt movw orn pld pldw pli "
    "pssbb rbit rrx sbfx sdiv smlal smull ssat ssbb stmdb strd strex strexb strexh strbt strht strt subw tbb tbh teq "
    "ubfx udiv umlal umull usat".split()
)

#: The DSP extension, A7.7 of the same.
_DSP = frozenset(
    [f"{sign}{name}" for sign in ("s", "u", "q", "sh", "uh", "uq") for name in "add8 add16 asx sax sub8 sub16".split()]
    + [f"sml{long}{one}{two}" for long in ("a", "al") for one in "bt" for two in "bt"]
    + [f"smul{one}{two}" for one in "bt" for two in "bt"]
    + "pkhbt pkhtb qadd qdadd qdsub qsub sel smlad smladx smlald smlaldx smlawb smlawt smlsd smlsdx smlsld smlsldx "
    "smmla smmlar smmls smmlsr smmul smmulr smuad smuadx smulwb smulwt smusd smusdx ssat16 sxtab sxtab16 sxtah sxtb16 "
    "umaal usad8 usada8 usat16 uxtab uxtab16 uxtah uxtb16".split()
)

#: Floating point: FPv4-SP (A7.7), and what FPv5 adds (DDI 0403E). Registers tell the precision.
_FPV4 = frozenset(
    "vabs vadd vcmp vcmpe vcvt vcvtb vcvtr vcvtt vdiv vfma vfms vfnma vfnms vldm vldmdb vldmia vldr vmla vmls vmov "
    "vmrs vmsr vmul vneg vnmla vnmls vnmul vpop vpush vsqrt vstm vstmdb vstmia vstr vsub".split()
)
_FPV5 = _FPV4 | frozenset(
    "vcvta vcvtm vcvtn vcvtp vmaxnm vminnm vrinta vrintm vrintn vrintp vrintr vrintx vrintz vseleq vselge vselgt "
    "vselvs".split()
)

#: Armv8-M with the Main Extension, DDI 0553, beside Armv7-M and DSP.
_V8M = frozenset(
    "blxns bxns lda ldab ldaex ldaexb ldaexh ldah sg stl stlb stlex stlexb stlexh stlh tt tta ttat ttt vlldm "
    "vlstm".split()
)


def _listed(mnemonic: str, names: frozenset[str]) -> bool:
    """Whether it is there, as it stands, with a condition, with the s that sets flags, or with both."""
    stem = mnemonic[:-2] if mnemonic[-2:] in _CONDITIONS else mnemonic
    return bool(names & {mnemonic, mnemonic.removesuffix("s"), stem, stem.removesuffix("s")})


def _v6m(one: Instruction) -> bool:
    return _listed(one.mnemonic, _V6M) and (one.bytes == 2 or one.mnemonic in _V6M_LONG)


def _v7m(one: Instruction) -> bool:
    return _listed(one.mnemonic, _V7M)


def _single(one: Instruction, names: frozenset[str]) -> bool:
    """One of the named floating-point instructions, in single precision."""
    stem, _, kinds = one.mnemonic.partition(".")
    if re.search(r"\bq\d", one.operands) or "f64" in kinds:
        return False
    # s32 and u32 are what vcvt converts from and to; 8, 16 and 32 is what vmov, vldr and their like move.
    converted = {"f32", "f16", "s32", "u32", "s16", "u16"} if stem.startswith(("vcvt", "vrint")) else {"f32"}
    moved = {"32", "64"} if stem.startswith(("vmov", "vldr", "vstr", "vpush", "vpop", "vldm", "vstm")) else set()
    return _listed(stem, names) and set(filter(None, kinds.split("."))) <= converted | moved


def _v7em(one: Instruction) -> bool:
    return _listed(one.mnemonic, _V7M | _DSP) or _single(one, _FPV4)


def _v7em_fpv5(one: Instruction) -> bool:
    return _listed(one.mnemonic, _V7M | _DSP) or _single(one, _FPV5)


def _v8m(one: Instruction) -> bool:
    return _listed(one.mnemonic, _V7M | _DSP | _V8M) or _single(one, _FPV5)


def _v81m(one: Instruction) -> bool:
    """Armv8.1-M with Helium is what objdump decodes for: all that it knows."""
    return one.mnemonic != "undefined"


# --- Linux processors -----------------------------------------------------------------

#: Armv6T2, Armv7, Armv8 and VFPv3 in Arm code: DDI 0406, by the architecture that each came with.
_AFTER_V6 = frozenset(
    "bfc bfi dbg dmb dsb isb mls movt movw pldw pli rbit sbfx sdiv ubfx udiv ldrht ldrsht ldrsbt strht lda ldab ldah "
    "stl stlb stlh ldaex stlex crc32b crc32h crc32w hvc smc vfma vfms vfnma vfnms".split()
)
_VFPV2_TYPES = {"f32", "f64", "s32", "u32", "32"}


def _arm1176(one: Instruction) -> bool:
    stem, _, kinds = one.mnemonic.partition(".")
    if stem == "undefined" or _listed(stem, _AFTER_V6) or re.search(r"\bq\d|\bd(1[6-9]|2\d|3[01])\b", one.operands):
        return False
    if not stem.startswith("v"):
        return True
    immediate = stem.startswith("vmov") and re.search(r"#", one.operands)  # VFPv3
    return set(filter(None, kinds.split("."))) <= _VFPV2_TYPES and not immediate


def _cortex_a72(one: Instruction) -> bool:
    """Armv8.0-A with Neon: no atomics of 8.1, half precision of 8.2, dot product, matrix product, SVE."""
    later = r"cas[abhlp]*|swp[abhl]*|(?:ld|st)(?:add|clr|eor|set|[su]max|[su]min)[abhl]*|[su]dot|[su]mmla|usdot|sudot"
    if one.mnemonic == "undefined" or re.fullmatch(
        rf"{later}|bf\w*dot|bfm(?:lal\w|mla)|ldapr\w*|sqrdml[as]h", one.mnemonic
    ):
        return False
    half = one.mnemonic.startswith("f") and re.search(r"\.[48]h|\bh\d", one.operands)
    conversion = one.mnemonic in ("fcvt", "fcvtl", "fcvtl2", "fcvtn", "fcvtn2")
    return not (half and not conversion) and re.search(r"\b[zp]\d+[./,]", one.operands) is None


_HAS = {
    "cortex-m0": _v6m,
    "cortex-m0plus": _v6m,
    "cortex-m3": _v7m,
    "cortex-m4": _v7em,
    "cortex-m7": _v7em_fpv5,
    "cortex-m33": _v8m,
    "cortex-m55": _v81m,
    "arm1176jzf-s": _arm1176,
    "cortex-a72": _cortex_a72,
}
