"""Golden cases on disk, and how ours is held against them.

A case is NAME.json (configuration and the exact formulas) with NAME.safetensors, whose tensors are named
in/*, weights/* and out/*. Every out/* must be computed and compared; one that is not counts as a failure.
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

TOLERANCE = 1e-4
"""Largest absolute difference that counts as equal."""


class RequiredEntries(dict[str, Any]):
    """What a file holds by name; a name that it lacks is told with the file, since whoever made it can mend it."""

    def __init__(self, found: Mapping[str, Any], where: str) -> None:
        super().__init__(found)
        self.where = where

    def __missing__(self, key: str) -> Any:
        raise InputError(f"the golden case lacks {key!r} ({self.where})", got=", ".join(list(self)[:5]) or "nothing")


@dataclass(frozen=True)
class Case:
    """One golden case."""

    name: str
    meta: dict[str, Any]
    tensors: dict[str, Tensor]

    def group(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under a prefix ("in/", "weights/" or "out/"), without it; asking for another is an InputError."""
        found = {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}
        return RequiredEntries(found, f"{self.name}.safetensors, {prefix}")


@dataclass(frozen=True)
class CaseResult:
    """How far ours is from the published numbers."""

    case: str
    differences: dict[str, float]
    """Largest absolute difference of each output; infinite where ours is missing or of another shape."""

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
        InputError: either file is missing or cannot be read, or there is no output to compare.
    """
    try:
        meta = json.loads(file.read_text(encoding="utf-8"), object_hook=lambda found: RequiredEntries(found, file.name))
        tensors = load_file(file.with_suffix(".safetensors"))
    except (OSError, ValueError, SafetensorError) as problem:
        raise InputError(f"the golden case {file} cannot be read", got=problem) from problem
    if not isinstance(meta, dict) or not any(name.startswith("out/") for name in tensors):
        got = "no tensor named out/..." if isinstance(meta, dict) else f"a {type(meta).__name__} in {file.name}"
        raise InputError(f"the golden case {file} cannot be compared", got=got, wanted="a JSON object, and outputs")
    return Case(file.stem, meta, tensors)


def compare_case(case: Case, compute: Compute) -> CaseResult:
    """Compute a case and compare every output."""
    with torch.no_grad():
        ours = compute(case)
    return CaseResult(case.name, {name: _difference(ours.get(name), want) for name, want in case.group("out/").items()})


def _difference(ours: Tensor | None, want: Tensor) -> float:
    if ours is None or ours.shape != want.shape:
        return float("inf")
    if want.numel() == 0:
        return 0.0
    worst = float((ours.double() - want.double()).abs().max())
    return worst if worst == worst else float("inf")
