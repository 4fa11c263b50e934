"""Golden cases on disk, and how this package's outputs are compared with them.

A case is NAME.json (configuration and the exact formulas) with NAME.safetensors, whose tensors are named in/*,
weights/* and out/*. Every out/* must be computed; an output that is not computed counts as a failure.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from kiwi.errors import InputError
from kiwi.parity import TOLERANCE


class RequiredEntries(dict[str, Any]):
    """Entries of a file; looking up a missing one raises an InputError that names the file."""

    def __init__(self, entries: Mapping[str, Any], source: str) -> None:
        super().__init__(entries)
        self.source = source

    def __missing__(self, key: str) -> Any:
        raise InputError(
            f"the golden case lacks {key!r} ({self.source})",
            code="incomplete-golden-case",
            got=", ".join(list(self)[:5]) or "nothing",
        )


@dataclass(frozen=True)
class Case:
    """One golden case."""

    name: str
    meta: dict[str, Any]
    tensors: dict[str, Tensor]

    def group(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under a prefix ("in/", "weights/" or "out/"), without it; other names raise an InputError."""
        tensors = {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}
        return RequiredEntries(tensors, f"{self.name}.safetensors, {prefix}")


@dataclass(frozen=True)
class CaseResult:
    """How far this package's outputs are from the published numbers."""

    case: str
    differences: dict[str, float]
    """Largest absolute difference of each output; infinite if it is missing or has another shape."""

    @property
    def worst(self) -> tuple[str, float]:
        """The output that differs most, and by how much."""
        return max(self.differences.items(), key=lambda item: item[1])

    @property
    def passed(self) -> bool:
        """Whether every output agrees."""
        return self.worst[1] <= TOLERANCE


Compute = Callable[[Case], dict[str, Tensor]]
"""From a case's inputs and weights to all its outputs, by name without "out/"."""


def load_case(file: Path) -> Case:
    """Read NAME.json and the tensors beside it.

    Raises:
        InputError: one of the files cannot be read, or there is no output to compare.
    """
    try:
        meta = json.loads(
            file.read_text(encoding="utf-8"), object_hook=lambda entries: RequiredEntries(entries, file.name)
        )
        tensors = load_file(file.with_suffix(".safetensors"))
    except (OSError, ValueError, SafetensorError) as problem:
        raise InputError(f"the golden case {file} cannot be read", code="unreadable-file", got=problem) from problem
    if not isinstance(meta, dict) or not any(name.startswith("out/") for name in tensors):
        raise InputError(
            f"the golden case {file} cannot be compared",
            code="incomplete-golden-case",
            got="no tensor named out/..." if isinstance(meta, dict) else f"a {type(meta).__name__} in {file.name}",
            expected="a JSON object, and outputs",
        )
    return Case(file.stem, meta, tensors)


def compare_case(case: Case, compute: Compute) -> CaseResult:
    """Compute a case and compare every output."""
    with torch.no_grad():
        outputs = compute(case)
    expected = case.group("out/").items()
    return CaseResult(case.name, {name: _difference(outputs.get(name), tensor) for name, tensor in expected})


def _difference(actual: Tensor | None, expected: Tensor) -> float:
    if actual is None or actual.shape != expected.shape:
        return float("inf")
    if expected.numel() == 0:
        return 0.0
    worst = float((actual.double() - expected.double()).abs().max())
    return worst if worst == worst else float("inf")  # NaN
