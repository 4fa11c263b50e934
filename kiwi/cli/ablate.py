"""`python -m kiwi ablate STUDY.yaml`: train and measure arms under seeds, and tell what their differences are worth."""

from __future__ import annotations

import argparse
import os
import re
from math import inf, isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiwi import console
from kiwi.cli import parser
from kiwi.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kiwi.ablation.launchers import Launcher
    from kiwi.ablation.runs import Run
    from kiwi.ablation.study import Arm, Study

_WHAT = """Train arms of an editor under several seeds, measure each, and tell what every arm is worth.

STUDY.yaml names the stages, the seeds, the arms (options of `kiwi fit` by dotted path; the base is there by itself)
and what is measured; experiments/ablations/ has some. Paths, names and seeds are checked before anything starts. A
cache of features that the arms read (data.cache) is filled first. Runs of one seed share data order, noise and initial
weights. The same command goes on where it was cut off, tries failed runs again, and takes in arms and seeds that were
added since. A category of which fewer than two items are measured has no interval, and neither has a study of one seed.

OUT/table.md, table.csv, table.tex, analysis.json, figures/, edits.png (the same items edited by every arm), study.json
(the configurations), environment.json; OUT/arms/ARM/seed-N/ has each run, of which result.json alone is needed to go on
elsewhere. The exit code is 1 if a run failed."""


def main(argv: list[str]) -> int:
    """Run what is not done, analyse what is."""
    options = parser(argv[0], _WHAT)
    options.add_argument("study", type=Path, metavar="STUDY.yaml", help="arms, seeds, stages and measurements")
    options.add_argument("--out", type=Path, help="folder of the results (default: runs/ablations/STUDY)")
    options.add_argument("--jobs", type=int, default=1, help="runs at once (default: %(default)s)")
    options.add_argument(
        "--threads", type=int, default=1,
        help="of the CPU for each run; another number moves the last digits of results (default: %(default)s)",
    )  # fmt: skip
    options.add_argument("--launcher", choices=("local", "slurm"), default="local", help="where (default: %(default)s)")
    options.add_argument(
        "--slurm", action="append", default=[], metavar="NAME=VALUE",
        help="an option of submitit's executor, such as slurm_partition=gpu or timeout_min=600; may be repeated",
    )  # fmt: skip
    options.add_argument("--seeds", type=int, nargs="+", help="instead of the study's")
    options.add_argument("--price", type=float, help="of an hour of a run, to tell what all will cost")
    options.add_argument(
        "--no-estimate", action="store_true", help="do not try a few steps of the base first to tell how long all takes"
    )
    options.add_argument("--dry-run", action="store_true", help="check all, tell what would run, and run nothing")
    options.add_argument("--report", action="store_true", help="run nothing, tell what was found so far")
    arguments = options.parse_args(argv[1:])
    if arguments.price is not None and not 0 <= arguments.price < inf:
        raise InputError("--price is no price", got=arguments.price, wanted="a number from 0")
    without = [name for name in ("dry_run", "report", "no_estimate") if getattr(arguments, name)]
    if arguments.price is not None and without:
        got = f"--price and --{without[0].replace('_', '-')}"
        raise InputError("a price is of the time that an estimate tells", got=got, fix="leave one of them out")

    from kiwi.ablation.runs import require_same, runs_of
    from kiwi.ablation.sweep import tell
    from kiwi.media.files import make_folder
    from kiwi.media.run_dir import exclusive_lock

    study = _study(arguments)
    out = arguments.out or Path("runs/ablations") / arguments.study.stem
    runs = runs_of(study, out)
    _check(study, runs)
    for run in runs:
        if run.state == "done":
            require_same(run)
    if arguments.dry_run:
        return _tell_plan(study, runs)
    launcher = None if arguments.report else _launcher(arguments, out)
    make_folder(out)
    with exclusive_lock(out):
        if launcher is not None:
            _run(study, runs, launcher, arguments, out)
        table, lacking = tell(study, out)
    if table is None:
        done = sum(run.state == "done" for run in runs)
        console.print(
            f"{done} runs are done, and none of them has what the study measures" if done else "no run is done"
        )
    else:
        console.table(table.title, table.header, table.rows, table.note)
    for line in lacking:
        console.note(f"not in the table: {line}")
    console.print(
        f"{out}: table.md, table.csv, table.tex, analysis.json, figures/" if table else f"{out}: no results yet"
    )
    return 1 if lacking else 0


def _study(arguments: argparse.Namespace) -> Study:
    from dataclasses import replace

    from kiwi.ablation.study import read_study
    from kiwi.training.fit import resolve

    study = read_study(arguments.study, resolve)
    seeds = arguments.seeds
    if seeds is None:
        return study
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise InputError("--seeds takes whole numbers from 0, each once", got=seeds)
    return replace(study, seeds=seeds)


def _check(study: Study, runs: Sequence[Run]) -> None:
    """Caches must fit their arms, and every command that measures is read, before anything is trained."""
    from kiwi.ablation.caches import caches_of
    from kiwi.bench import BenchmarkOptions, check_benchmark
    from kiwi.cli import parse
    from kiwi.evaluation.options import SandboxMeasureOptions

    caches_of(study.arms, study.seeds)
    for command in {tuple(command): None for run in runs for command in run.commands}:
        if command[0] == "sandbox":
            parse(SandboxMeasureOptions, "sandbox measure", command[2:]).pair(0)
        elif command[0] == "bench":
            suite = {"suite": command[1]}
            check_benchmark(parse(BenchmarkOptions, f"bench {command[1]}", command[2:], suite))


def _launcher(arguments: argparse.Namespace, out: Path) -> Launcher:
    from kiwi.ablation.launchers import Cluster, Local

    given = executor_options(arguments.slurm)
    if arguments.launcher == "slurm":
        return Cluster(out / "slurm", arguments.jobs, arguments.threads, given)
    if given:
        raise InputError("--slurm is of --launcher slurm", got=", ".join(given))
    return Local(arguments.jobs, arguments.threads, _accelerators())


def executor_options(words: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE as submitit's executor takes them: a number, true or false, none, or a word such as 1:30:00."""
    plain: dict[str, bool | None] = {"true": True, "false": False, "null": None, "none": None}
    given: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier():
            raise InputError("--slurm takes NAME=VALUE", got=word, wanted="such as slurm_partition=gpu")
        if re.fullmatch(r"-?\d+(\.\d+)?", value):
            given[name] = float(value) if "." in value else int(value)
        else:
            given[name] = plain.get(value.lower(), value)
    return given


def _accelerators() -> list[str]:
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    return [str(number) for number in range(torch.cuda.device_count())]


def _arms(runs: Sequence[Run]) -> list[Arm]:
    return list({run.arm.label: run.arm for run in runs}.values())


def _run(study: Study, runs: Sequence[Run], launcher: Launcher, arguments: argparse.Namespace, out: Path) -> None:
    from kiwi.ablation.caches import caches_of, fill
    from kiwi.ablation.sweep import run_all

    waiting = [run for run in runs if run.state != "done"]
    console.note(
        f"{study.title}: {len(study.arms)} arms x {len(study.seeds)} seeds, {len(runs) - len(waiting)} of {len(runs)} "
        "runs are done"
    )
    if not waiting:
        return
    fill(caches_of(_arms(waiting), study.seeds), out)
    if not arguments.no_estimate:
        _tell_estimate(study, runs, waiting, arguments)
    with console.live_table() as show:
        run_all(study, runs, launcher, lambda table: show(table.header, table.rows))


def _tell_estimate(study: Study, runs: Sequence[Run], waiting: Sequence[Run], arguments: argparse.Namespace) -> None:
    from kiwi.ablation.sweep import seconds_a_run

    seconds, known = seconds_a_run(study, runs)
    if isnan(seconds):
        console.note(f"how long a run takes is not known: {known}")
    else:
        hours = seconds * len(waiting) / 3600
        price = "" if arguments.price is None else f", {hours * arguments.price:.2f} at {arguments.price:g} an hour"
        console.note(
            f"about {seconds / 60:.1f} minutes a run ({known}): {hours:.2f} hours of runs{price}, "
            f"{hours / min(arguments.jobs, len(waiting)):.2f} hours with {arguments.jobs} at once"
        )


def _tell_plan(study: Study, runs: Sequence[Run]) -> int:
    from kiwi.ablation.costs import cost_of

    rows = []
    for arm in study.arms:
        cost = cost_of(arm)
        sizes = ("", "", "") if cost is None else (
            f"{cost.parameters / 1e6:,.2f}", f"{cost.learning / 1e6:,.2f}", f"{cost.step_flops / 1e9:,.2f}"
        )  # fmt: skip
        rows.append((arm.label, " ".join(arm.options), *sizes))
    header = ("arm", "stages", "parameters (M)", "learning (M)", "GFLOP a step")
    console.table(study.title, header, rows)
    done = sum(run.state == "done" for run in runs)
    console.print(f"{len(runs)} runs, {done} of them done; nothing was run")
    return 0
