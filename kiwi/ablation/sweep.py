"""A sweep over the runs of a study: check, estimate the duration, run what is not done, and write the report."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import isnan, prod
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

from kiwi import console
from kiwi.ablation.caches import cache_requests, fill_caches
from kiwi.ablation.contact_sheet import contact_sheet_is_current, draw_contact_sheet
from kiwi.ablation.costs import cost_of
from kiwi.ablation.launchers import Cluster, Launcher, Local
from kiwi.ablation.options import AblateOptions
from kiwi.ablation.report import StudyReport, write_report
from kiwi.ablation.results import read_result
from kiwi.ablation.runs import RESULT, RUN, Run, check_result, execute, failure_reason, prepare_run, runs_of
from kiwi.ablation.steps import Step, write_steps
from kiwi.ablation.study import Study, fit_options, read_study
from kiwi.media.files import make_folder, write_json
from kiwi.media.run_dir import exclusive_lock
from kiwi.spec import to_dict
from kiwi.tables import Table
from kiwi.training.run_log import METRICS_FILE, read_log

PROBE_STEPS = 8
"""Steps by which the speed of a stage is measured before a study starts."""


def run(options: AblateOptions) -> StudyReport:
    """As `kiwi.ablation.run_study`."""
    study, out = read_study(options.study), options.folder
    if options.seeds:
        study = replace(study, seeds=list(options.seeds))
    runs = runs_of(study, out)
    cache_requests(study.arms, study.seeds)  # refuses caches that do not fit their arms
    for measurement in study.measurements:
        measurement.check()
    for finished in (run for run in runs if run.state == "done"):
        check_result(finished)
    if options.dry_run:
        return StudyReport(table=_plan(study, runs), missing=[run.name for run in runs if run.state != "done"])
    launcher = None if options.report else _launcher(options, out)
    make_folder(out)
    with exclusive_lock(out):
        if launcher is not None:
            _run_missing(study, runs, launcher, options)
            draw_contact_sheet(study, runs, out / "edits.png")
        elif not contact_sheet_is_current(study, runs, out / "edits.png"):
            console.note("edits.png does not show the models of this study; run without --report to draw it")
        return write_report(study, runs, out)


def _launcher(options: AblateOptions, out: Path) -> Launcher:
    if options.launcher == "slurm":
        return Cluster(out / "slurm", options.jobs, options.threads, options.executor_options)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = map(str, range(torch.cuda.device_count())) if visible is None else filter(None, visible.split(","))
    return Local(options.jobs, options.threads, list(devices))


def _run_missing(study: Study, runs: Sequence[Run], launcher: Launcher, options: AblateOptions) -> None:
    missing = [run for run in runs if run.state != "done"]
    console.note(
        f"{study.title}: {len(study.arms)} arms x {len(study.seeds)} seeds, "
        f"{len(runs) - len(missing)} of {len(runs)} runs are done"
    )
    if not missing:
        return
    arms = {run.arm.label: run.arm for run in missing}
    fill_caches(cache_requests(list(arms.values()), study.seeds), options.folder)
    if options.estimate:
        console.note(_estimate(study, runs, len(missing), options))
    with console.live_table() as show:
        run_all(study, runs, launcher, lambda table: show(table.header, table.rows))


def run_all(study: Study, runs: Sequence[Run], launcher: Launcher, show: Callable[[Table], None]) -> None:
    """Run what is not done, and show the state of all runs after each change."""
    missing = {run.folder: run for run in runs if run.state != "done"}
    for run in missing.values():
        prepare_run(run)
    running: set[Path] = set()
    show(progress_table(study, runs, running))
    for folder, event in launcher.launch(list(missing)):
        (running.add if event == "running" else running.discard)(folder)
        if event == "ended":  # a log file has no table that changes
            console.note(f"{missing[folder].name}: {_outcome(study, missing[folder])}")
        show(progress_table(study, runs, running))


def progress_table(study: Study, runs: Sequence[Run], running: set[Path]) -> Table:
    """A row per arm and a column per seed; finished runs show the mean of the primary metric."""
    cells: dict[str, dict[int, str]] = {}
    for run in runs:
        state = "running" if run.folder in running else run.state
        cells.setdefault(run.arm.label, {})[run.seed] = _score(study, run) if state == "done" else state
    rows = [(label, *(by_seed.get(seed, "") for seed in study.seeds)) for label, by_seed in cells.items()]
    return Table("", ("arm", *(f"seed {seed}" for seed in study.seeds)), rows)


def _outcome(study: Study, run: Run) -> str:
    if run.state == "done":
        return _score(study, run)
    return failure_reason(run.folder) if run.state == "failed" else "stopped; rerun the same command to resume"


def _score(study: Study, run: Run) -> str:
    result = read_result(run.folder / RESULT)
    values = next((values for metric in study.metrics if (values := result.values(metric.name))), {})
    return f"{mean(values.values()):.3f}" if values else "done"


def _plan(study: Study, runs: Sequence[Run]) -> Table:
    """What each arm trains, and what it costs."""
    rows = []
    for arm in study.arms:
        cost = cost_of(arm)
        sizes = ("", "", "") if cost is None else (
            f"{cost.parameters / 1e6:,.2f}", f"{cost.trainable / 1e6:,.2f}", f"{cost.step_flops / 1e9:,.2f}"
        )  # fmt: skip
        rows.append((arm.label, " ".join(arm.options), *sizes))
    header = ("arm", "stages", "parameters (M)", "trainable (M)", "GFLOP per step")
    done = sum(run.state == "done" for run in runs)
    return Table(study.title, header, rows, f"{len(runs)} runs, {done} of them done; nothing was run.")


def _estimate(study: Study, runs: Sequence[Run], missing: int, options: AblateOptions) -> str:
    seconds, basis = seconds_per_run(study, runs)
    if isnan(seconds):
        return f"the duration of a run is unknown: {basis}"
    hours = seconds * missing / 3600
    price = "" if options.price is None else f", {hours * options.price:.2f} at {options.price:g} per hour"
    return (
        f"about {seconds / 60:.1f} minutes per run ({basis}): {hours:.2f} hours of runs{price}, "
        f"{hours / min(options.jobs, missing):.2f} hours with {options.jobs} at once"
    )


def seconds_per_run(study: Study, runs: Sequence[Run]) -> tuple[float, str]:
    """The duration of a run and what it is based on: finished runs, or else a few steps of the base."""
    done = [read_result(run.folder / RESULT).cost["seconds"] for run in runs if run.state == "done"]
    if done:
        return float(median(done)), f"the median of {len(done)} finished runs"
    total = 0.0
    init: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for stage, options in study.arms[0].options.items():
            root = folder / stage
            short = {
                **options, **init, "trainer.max_steps": PROBE_STEPS, "trainer.default_root_dir": str(root),
                "trainer.limit_val_batches": 0, "trainer.callbacks": [], "previews.every_n_steps": 0,
                "log.every_n_steps": 2,
            }  # fmt: skip
            training = fit_options(study.seeds[0], study.stages[stage], short)
            write_json(folder / RUN, {})
            write_steps(folder, [Step(command="fit", options=to_dict(training), out=root)])
            execute(folder)
            log = read_log(root) if (root / METRICS_FILE).is_file() else {}
            speeds = [line["samples_per_second"] for line in log.values() if "samples_per_second" in line]
            if not speeds:
                return float("nan"), f"the first steps of {stage} failed: {failure_reason(folder)}"
            total += _samples(study.arms[0].resolved[stage]) / median(speeds)
            init = {"model.init": str(root / "model")}
    return total, f"from {PROBE_STEPS} steps of the base, without validation, measurements and start-up"


def _samples(resolved: Mapping[str, Any]) -> float:
    """Samples that a stage trains on, over all of its processes."""
    trainer = resolved["trainer"]
    sizes = [trainer.get("devices"), trainer.get("num_nodes")]
    processes = prod(size for size in sizes if isinstance(size, int) and size > 0)
    per_step = resolved["data"]["batch_size"] * (trainer.get("accumulate_grad_batches") or 1) * processes
    return float(max(trainer.get("max_steps") or 0, 0) * per_step)
