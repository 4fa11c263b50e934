"""Golden cases on disk, and their comparison with kiwi's outputs.

A case is NAME.json (configuration and the exact formulas) with NAME.safetensors, whose tensors are named in/*,
weights/* and out/*. Every out/* must be computed; an output that is not computed counts as a failure.
"""

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
from kiwi.reading import read_json
from kiwi.weights.names import select_prefix


class RequiredEntries(dict[str, Any]):
    """A dict of entries of a file; looking up a missing key raises an InputError that names the file."""

    def __init__(self, entries: Mapping[str, Any], source: str) -> None:
        super().__init__(entries)
        self.source = source

    def __missing__(self, key: str) -> Any:
        raise InputError(
            f"the golden case has no {key!r} in {self.source}",
            code="incomplete-golden-case",
            got=", ".join(list(self)[:5]) or "no entries",
        )


@dataclass(frozen=True)
class Case:
    """A golden case: configuration and tensors recorded from the published implementation."""

    name: str
    meta: dict[str, Any]
    tensors: dict[str, Tensor]

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors with a prefix ("in/", "weights/" or "out/") by name without it; missing names raise."""
        return RequiredEntries(select_prefix(self.tensors, prefix), f"{self.name}.safetensors, {prefix}")


@dataclass(frozen=True)
class CaseResult:
    """Differences between kiwi's outputs and the published ones."""

    case: str
    differences: dict[str, float]
    """Largest absolute difference of each output; infinite if the output is missing or has the wrong shape."""

    @property
    def worst(self) -> tuple[str, float]:
        """Name and difference of the output that differs most."""
        return max(self.differences.items(), key=lambda item: item[1])

    @property
    def passed(self) -> bool:
        """Whether the differences of all outputs are within the tolerance."""
        return self.worst[1] <= TOLERANCE


Compute = Callable[[Case], dict[str, Tensor]]
"""Function that computes all outputs of a case from its inputs and weights, by name without "out/"."""


def load_case(file: Path) -> Case:
    """Read NAME.json and the tensors beside it.

    Raises:
        InputError: one of the files cannot be read, or there are no outputs to compare.
    """
    try:
        meta = read_json(file, object_hook=lambda entries: RequiredEntries(entries, file.name))
        tensors = load_file(file.with_suffix(".safetensors"))
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"the golden case {file} cannot be read", code="unreadable-file", got=error) from error
    if not isinstance(meta, dict) or not any(name.startswith("out/") for name in tensors):
        raise InputError(
            f"the golden case {file} cannot be compared",
            code="incomplete-golden-case",
            got="no tensor named out/..." if isinstance(meta, dict) else f"a {type(meta).__name__} in {file.name}",
            expected="a JSON object and tensors named out/...",
        )
    return Case(file.stem, meta, tensors)


def compare_case(case: Case, compute: Compute) -> CaseResult:
    """Compute a case and compare all of its outputs."""
    with torch.no_grad():
        outputs = compute(case)
    expected = case.group("out/").items()
    return CaseResult(case.name, {name: _max_difference(outputs.get(name), tensor) for name, tensor in expected})


def _max_difference(actual: Tensor | None, expected: Tensor) -> float:
    if actual is None or actual.shape != expected.shape:
        return float("inf")
    if expected.numel() == 0:
        return 0.0
    difference = float((actual.double() - expected.double()).abs().max())
    return difference if difference == difference else float("inf")  # NaN
