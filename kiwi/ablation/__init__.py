"""Ablation studies: train variants of an editor with several seeds, evaluate them and compare each with the base.

The options do not import torch, so that `--help` is instant.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kiwi.errors import InputError
from kiwi.options import Options, option, positional

if TYPE_CHECKING:
    from kiwi.ablation.report import StudyReport

__all__ = ["AblateOptions", "run_study"]


@dataclass(frozen=True, kw_only=True)
class AblateOptions(Options):
    """Train variants of an editor with several seeds, evaluate them, and estimate the effect of each change.

    An arm is one variant of the configuration, and the base is the unchanged configuration. STUDY.yaml lists the stages
    of training, the seeds, the arms (options of `kiwi fit` by dotted path) and the measurements; see
    experiments/ablations/. Before anything runs, the command checks names and types of all
    options, ranges of the model's settings, the measurements with their data, and the output folder, but not model
    folders, training data and devices. Feature caches that the arms read (data.cache) are filled first. Runs with the
    same seed share data order, noise and initial weights. Rerun the same command to resume, to retry failed runs, or to
    add arms and seeds. Intervals need at least two seeds, and those of a category also at least two items.

    The command writes to OUT: table.md, table.csv, table.tex, analysis.json, figures/, edits.png (the same items edited
    by every arm), study.json (all configurations) and environment.json. Each run is in OUT/arms/ARM/seed-N/; its
    result.json is enough to continue the study elsewhere. The exit code is 1 if a run failed or is missing.

    Args:
        study: YAML file of the study.
        out: output folder (default: runs/ablations/STUDY).
        jobs: number of runs at once.
        threads: number of CPU threads per run; it affects the last digits of results.
        launcher: execute runs on this machine or as Slurm jobs.
        slurm: option of submitit's executor, such as slurm_partition=gpu or timeout_min=600; may be repeated.
        seeds: seeds that replace those of the study.
        price: price of one hour of a run, to estimate the total price.
        estimate: estimate the duration from a few training steps of the base.
        dry_run: check the study and print the arms with their cost, but run nothing.
        report: analyse existing results and run nothing.
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
        super().__post_init__()
        self.require_at_least(1, "jobs", "threads")
        if any(not 0 <= seed < 2**32 for seed in self.seeds) or len(set(self.seeds)) < len(self.seeds):
            expected = "distinct integers of at least 0"
            raise InputError("--seeds are invalid", code="invalid-seeds", got=list(self.seeds), expected=expected)
        if self.price is not None and not 0 <= self.price < inf:
            raise InputError("--price must be a number of at least 0", code="out-of-range", got=self.price)
        switches = {"--dry-run": self.dry_run, "--report": self.report, "--no-estimate": not self.estimate}
        if self.price is not None and any(switches.values()):
            flag = next(flag for flag, is_set in switches.items() if is_set)
            message = f"--price and {flag} cannot be combined, because the price is part of the estimate"
            raise InputError(message, code="conflicting-options", fix="remove one of them")
        if self.dry_run and self.report:
            message = "--dry-run and --report cannot be combined, because a dry run analyses nothing"
            raise InputError(message, code="conflicting-options", fix="remove one of them")
        if self.executor_options and self.launcher != "slurm":
            raise InputError("--slurm needs --launcher slurm", code="conflicting-options", got=" ".join(self.slurm))

    @property
    def folder(self) -> Path:
        """The output folder: `out`, or runs/ablations/STUDY if it is not set."""
        return self.out or Path("runs/ablations") / self.study.stem

    @property
    def executor_options(self) -> dict[str, Any]:
        """`slurm` parsed for submitit's executor: numbers, true, false, none, and text such as 1:30:00."""
        constants: dict[str, bool | None] = {"true": True, "false": False, "null": None, "none": None}
        options: dict[str, Any] = {}
        for assignment in self.slurm:
            name, equals, value = assignment.partition("=")
            if not equals or not name.isidentifier():
                expected = "NAME=VALUE, such as slurm_partition=gpu"
                raise InputError("--slurm is invalid", code="invalid-assignment", got=assignment, expected=expected)
            if re.fullmatch(r"-?\d+(\.\d+)?", value):
                options[name] = float(value) if "." in value else int(value)
            else:
                options[name] = constants.get(value.lower(), value)
        return options


def run_study(options: AblateOptions) -> StudyReport:
    """Run a study and analyse its results (`python -m kiwi ablate`); finished runs are not repeated.

    Raises:
        KiwiError: the study, an option or the output folder is invalid, and nothing was run. A run that fails does not
            raise an error; the report lists it.
    """
    from kiwi.ablation.sweep import run_sweep  # imports torch, which options and --help do not need

    return run_sweep(options)
