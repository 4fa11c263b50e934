"""Options of `ablate`; importing them does not import torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, Literal

from kiwi.errors import InputError
from kiwi.options import Options, option, positional


@dataclass(frozen=True, kw_only=True)
class AblateOptions(Options):
    """Train variants (arms) of an editor under several seeds, measure each, and estimate every arm's effect.

    STUDY.yaml has the stages, the seeds, the arms (options of `kiwi fit` by dotted path, in addition to the base) and
    the measurements; experiments/ablations/ has examples. Paths, names and values are checked before anything starts. A
    feature cache that the arms read (data.cache) is filled first. Runs of one seed share data order, noise and initial
    weights. Rerun the same command to resume, to try failed runs again, and to include arms and seeds that were added
    since. A category with fewer than two items has no interval, and neither has a study of one seed.

    OUT/table.md, table.csv, table.tex, analysis.json, figures/, edits.png (the same items edited by every arm),
    study.json (the configurations), environment.json; OUT/arms/ARM/seed-N/ has each run, of which only result.json is
    needed to continue elsewhere. The exit code is 1 if a run failed or is missing.

    Args:
        study: arms, seeds, stages and measurements.
        out: folder of the results (default: runs/ablations/STUDY).
        jobs: runs at once.
        threads: CPU threads of each run; another number changes the last digits of results.
        launcher: where runs are executed.
        slurm: an option of submitit's executor, such as slurm_partition=gpu or timeout_min=600; may be repeated.
        seeds: seeds to use instead of the study's.
        price: price of one hour of a run; the estimate includes the total.
        estimate: do not time a few steps of the base first to estimate the duration.
        dry_run: check everything and print what would run, but run nothing.
        report: run nothing; analyse the results that exist.
    """

    study: Path = positional(metavar="STUDY.yaml")
    out: Path | None = None
    jobs: int = 1
    threads: int = 1
    launcher: Literal["local", "slurm"] = "local"
    slurm: tuple[str, ...] = option((), metavar="NAME=VALUE", repeat=True)
    seeds: tuple[int, ...] = ()
    price: float | None = None
    estimate: bool = True
    dry_run: bool = False
    report: bool = False

    def __post_init__(self) -> None:
        for name in ("jobs", "threads"):
            if (value := getattr(self, name)) < 1:
                raise InputError(f"--{name} must be at least 1", code="out-of-range", got=value)
        if any(not 0 <= seed < 2**32 for seed in self.seeds) or len(set(self.seeds)) < len(self.seeds):
            expected = "integers from 0, each once"
            raise InputError("--seeds are invalid", code="invalid-seeds", got=list(self.seeds), expected=expected)
        if self.price is not None and not 0 <= self.price < inf:
            raise InputError("--price must be a number of at least 0", code="out-of-range", got=self.price)
        without = {"--dry-run": self.dry_run, "--report": self.report, "--no-estimate": not self.estimate}
        if self.price is not None and any(without.values()):
            flag = next(flag for flag, given in without.items() if given)
            raise InputError(
                f"--price and {flag} exclude each other: the price is part of the estimate",
                code="conflicting-options", fix="remove one of them",
            )  # fmt: skip
        if self.executor_options and self.launcher != "slurm":
            raise InputError("--slurm needs --launcher slurm", code="conflicting-options", got=" ".join(self.slurm))

    @property
    def folder(self) -> Path:
        """`out`, or its default."""
        return self.out or Path("runs/ablations") / self.study.stem

    @property
    def executor_options(self) -> dict[str, Any]:
        """`slurm` as submitit's executor takes it: numbers, true, false, none, and text such as 1:30:00."""
        words: dict[str, bool | None] = {"true": True, "false": False, "null": None, "none": None}
        options: dict[str, Any] = {}
        for assignment in self.slurm:
            name, equals, value = assignment.partition("=")
            if not equals or not name.isidentifier():
                raise InputError(
                    "--slurm must be NAME=VALUE", code="malformed-assignment", got=assignment,
                    expected="such as slurm_partition=gpu",
                )  # fmt: skip
            if re.fullmatch(r"-?\d+(\.\d+)?", value):
                options[name] = float(value) if "." in value else int(value)
            else:
                options[name] = words.get(value.lower(), value)
        return options
