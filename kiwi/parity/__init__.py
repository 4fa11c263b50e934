"""Numeric parity with the published model: golden vectors in, one result per case out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from kiwi.errors import InputError
from kiwi.options import Options, option, positional

if TYPE_CHECKING:
    from kiwi.parity.golden import CaseResult

TOLERANCE = 1e-4
"""Largest absolute difference that counts as equal."""


@dataclass(frozen=True, kw_only=True)
class ParityOptions(Options):
    """Compare this package's numbers with golden vectors of the published model.

    Every output of every case that this version computes is compared; the largest absolute difference is printed, one
    line per case. The exit code is 1 if an output is missing or differs by more than 1e-4. Cases that this version
    does not compute are listed and do not count.

    Args:
        dir: folder of NAME.json + NAME.safetensors, such as tests/golden
        case: only this case; may be repeated
        all_outputs: print one line per output as well
    """

    dir: Path = positional()
    case: tuple[str, ...] = option((), metavar="NAME", repeat=True)
    all_outputs: bool = False


class ParityReport(NamedTuple):
    """The results of the cases that were compared, and the names of cases that this version does not compute."""

    results: list[CaseResult]
    not_computed: list[str]

    @property
    def passed(self) -> bool:
        """Whether at least one case was compared and all agree."""
        return bool(self.results) and all(result.passed for result in self.results)


def check_parity(options: ParityOptions) -> ParityReport:
    """Compute the golden cases of a folder and compare every output.

    Raises:
        InputError: the folder holds no such cases, or a case cannot be read or lacks something.
    """
    from kiwi.parity.cases import CASES  # imports torch
    from kiwi.parity.golden import compare_case, load_case

    present = {file.stem for file in options.dir.glob("*.json") if file.with_suffix(".safetensors").exists()}
    selected = set(options.case) or present
    if not present or not selected <= present:
        raise InputError(
            f"{options.dir} holds no such golden cases",
            code="missing-golden-case",
            got=", ".join(sorted(present)) or "none",
            expected=", ".join(sorted(selected)) or "NAME.json and NAME.safetensors",
        )
    names = [name for name in CASES if name in selected]
    results = [compare_case(load_case(options.dir / f"{name}.json"), CASES[name]) for name in names]
    return ParityReport(results, sorted(selected - set(CASES)))
