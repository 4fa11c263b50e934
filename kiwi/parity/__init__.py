"""Numerical parity with the published implementation, checked on golden vectors (its recorded inputs and outputs)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from kiwi.errors import InputError
from kiwi.options import Options, option, positional

if TYPE_CHECKING:
    from kiwi.parity.golden import CaseResult

TOLERANCE = 1e-4
"""Largest absolute difference at which two outputs count as equal."""


@dataclass(frozen=True, kw_only=True)
class ParityOptions(Options):
    """Check numerical parity with the published implementation.

    Compares kiwi's outputs with golden vectors (recorded inputs and outputs of the published implementation) and prints
    the largest absolute difference of each case. The exit code is 1 if an output is missing or differs by more than
    1e-4. Cases that this version of kiwi does not compute are listed and do not affect the exit code.

    Args:
        dir: folder with NAME.json and NAME.safetensors of each case, such as tests/golden
        case: check only this case; may be repeated
        all_outputs: also print one line per output
    """

    dir: Path = positional()
    case: tuple[str, ...] = option((), metavar="NAME", repeat=True)
    all_outputs: bool = False


class ParityReport(NamedTuple):
    """Results of the compared cases, and names of the cases that this version of kiwi does not compute."""

    results: list[CaseResult]
    not_computed: list[str]

    @property
    def passed(self) -> bool:
        """Whether at least one case was compared and all cases passed."""
        return bool(self.results) and all(result.passed for result in self.results)


def check_parity(options: ParityOptions) -> ParityReport:
    """Compute the golden cases of a folder and compare all outputs.

    Raises:
        InputError: a selected case is missing, cannot be read or is incomplete.
    """
    from kiwi.parity.cases import CASES  # imports torch
    from kiwi.parity.golden import compare_case, load_case

    present = {file.stem for file in options.dir.glob("*.json") if file.with_suffix(".safetensors").exists()}
    selected = set(options.case) or present
    if not present or not selected <= present:
        raise InputError(
            f"golden cases are missing in {options.dir}",
            code="missing-golden-case",
            got=", ".join(sorted(present)) or "none",
            expected=", ".join(sorted(selected)) or "NAME.json and NAME.safetensors",
        )
    names = [name for name in CASES if name in selected]
    results = [compare_case(load_case(options.dir / f"{name}.json"), CASES[name]) for name in names]
    return ParityReport(results, sorted(selected - set(CASES)))
