"""The record of a build: the contents of ``build.json``. DESIGN.md documents its schema."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import edgetqs
from edgetqs import elf, firmware
from edgetqs.emit_c import c_name
from edgetqs.model import Forecaster
from edgetqs.planner import Plan
from edgetqs.prove import Proof
from edgetqs.stack import stack_bound
from edgetqs.target import Target
from edgetqs.tqs import Score
from edgetqs.write_tflite import TfliteFile

SCHEMA = 1


def record(
    forecaster: Forecaster,
    scores: Score,
    plan: Plan,
    rounding: str,
    file: TfliteFile,
    memory: dict[str, Any],
    proof: Proof,
    rollout: dict[str, Any],
    target: Target,
) -> dict[str, Any]:
    """One JSON object; ``memory`` comes from ``measure``."""
    return {
        "schema": SCHEMA,
        "tool_version": edgetqs.__version__,
        "model": {
            "name": forecaster.name,
            "sha256": forecaster.sha256,
            "layers": [f"{layer.name}: {type(layer).__name__}" for layer in forecaster.layers],
            "parameters": forecaster.parameters,
        },
        "target": target.name,
        "plan": {
            "granularity": plan.granularity,
            "rounding": rounding,
            "hash": plan.hash,
            "units": [asdict(unit) for unit in plan.units],
            "weight_bytes": plan.weight_bytes,
            "int8_bytes": plan.int8_bytes,
            "int4_bytes": plan.int4_bytes,
            "predicted": plan.predicted,
            "refined": plan.refined,
            "front": [asdict(point) for point in plan.front],
        },
        "score": {
            "horizon": scores.horizon,
            "scored": scores.scored,
            "flagged": [f"{entry.unit.name}: {entry.flag}" for entry in scores.flagged],
        },
        "firmware": memory,
        "chain": {
            "steps": proof.steps,
            **{engine: link.verdict for engine, link in proof.links.items()},
            "details": {engine: link.detail for engine, link in proof.links.items()},
        },
        "cost": proof.cost,
        "rollout": rollout,
        "tflite": {
            "path": f"{c_name(forecaster.name)}.tflite",
            "bytes": len(file.data),
            "signatures": list(file.signatures),
        },
    }


def measure(
    target: Target, image: Path, objects: Path, flash_budget: int, root: str, painted: int | None = None
) -> dict[str, Any]:
    """What the linked image takes of flash, RAM and stack, against the device. ``root`` is where the stack begins."""
    bound = stack_bound(objects, image, root, firmware.toolchain(target).objdump)
    flash, ram = elf.flash_bytes(image), elf.ram_bytes(image)
    fits = target.kind != "bare" or (
        flash <= flash_budget and ram <= target.ram_budget_bytes and bound.bytes <= target.memory.stack_bytes
    )
    return {
        "elf": image.name,
        "flash_bytes": flash,
        "ram_bytes": ram,
        "stack_bytes": bound.bytes,
        "stack_path": list(bound.path),
        "stack_unknown": list(bound.unknown),
        "stack_measured_bytes": painted,
        "code_bytes": elf.code_bytes(image),
        "flash_budget_bytes": flash_budget if target.kind == "bare" else 0,
        "ram_budget_bytes": max(target.ram_budget_bytes, 0),
        "stack_budget_bytes": target.memory.stack_bytes,
        "sections": [asdict(section) for section in elf.sections(image)] if target.kind == "bare" else [],
        "fits": fits,
    }
