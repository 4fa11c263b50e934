"""A whole study: check it, estimate its duration, execute the runs that are not done, and write the report."""

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
from kiwi.ablation import AblateOptions
from kiwi.ablation.caches import fill_caches, list_cache_requests
from kiwi.ablation.contact_sheet import draw_contact_sheet, is_contact_sheet_current
from kiwi.ablation.launchers import ClusterLauncher, Launcher, LocalLauncher
from kiwi.ablation.report import StudyReport, write_report
from kiwi.ablation.results import read_result
from kiwi.ablation.runs import (
    RESULT_FILE,
    RUN_FILE,
    RUNS_FOLDER,
    Run,
    check_initial_models,
    check_result,
    describe_failure,
    execute_run,
    list_runs,
    prepare_run,
)
from kiwi.ablation.steps import Step, write_steps
from kiwi.ablation.study import Study, count_cost, make_fit_options, read_study
from kiwi.environment import environment
from kiwi.errors import InputError
from kiwi.media import run_dir
from kiwi.media.files import make_folder, write_json
from kiwi.media.run_dir import exclusive_lock
from kiwi.spec import to_dict
from kiwi.statistics.intervals import describe_single_items
from kiwi.tables import Table
from kiwi.training.run_log import METRICS_FILE, read_log

PROBE_STEPS = 8
"""Number of training steps with which the speed of a stage is estimated before a study starts."""


def run_sweep(options: AblateOptions) -> StudyReport:
    """Implement `kiwi.ablation.run_study`."""
    study, out = read_study(options.study), options.folder
    if options.seeds:
        study = replace(study, seeds=list(options.seeds))
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file, not a folder", code="not-a-folder", fix="choose another --out")
    if not options.report:  # a report of a folder without results has a message of its own
        others = ("caches", "environment.json", "slurm")
        run_dir.require_no_other_files(out / RUNS_FOLDER, "the folder of a study", others)
    check_initial_models(study)
    runs = list_runs(study, out)
    list_cache_requests(study.arms, study.seeds)  # raises an error if a cache does not suit its arms
    for measurement in study.measurements:
        measurement.check()
        if single := describe_single_items(measurement.count_items()):
            console.note(f"{measurement.name}: {single}")
    results = [check_result(run) for run in runs if run.state == "done"]
    if unchecked := sum(not result.is_checked for result in results):
        console.note(f"{unchecked} results have no checksum (previous release): edits of them by hand are not noticed")
    if options.dry_run:
        waiting = [run.name for run in runs if run.state != "done"]
        return StudyReport(table=_make_plan_table(study, runs), missing=waiting)
    if options.report and all(run.state == "waiting" for run in runs):
        problem, fix = f"{out} has no run of this study to report", "choose the folder of the study with --out"
        raise InputError(problem, code="no-results", fix=f"{fix}, or run the study without --report")
    launcher = None if options.report else _make_launcher(options, out)
    make_folder(out)
    with exclusive_lock(out):
        if launcher is not None:
            _run_missing(study, runs, launcher, options)
            draw_contact_sheet(study, runs, out / "edits.png")
        elif not is_contact_sheet_current(study, runs, out / "edits.png"):
            console.note("edits.png does not show the current models; rerun without --report to draw it")
        return write_report(study, runs, out)


def _make_launcher(options: AblateOptions, out: Path) -> Launcher:
    if options.launcher == "slurm":
        return ClusterLauncher(out / "slurm", options.jobs, options.threads, options.executor_options)
    visible_devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible_devices is None:
        visible_devices = ",".join(map(str, range(torch.cuda.device_count())))
    return LocalLauncher(options.jobs, options.threads, list(filter(None, visible_devices.split(","))))


def _run_missing(study: Study, runs: Sequence[Run], launcher: Launcher, options: AblateOptions) -> None:
    missing = [run for run in runs if run.state != "done"]
    console.note(
        f"{study.title}: {len(study.arms)} arms x {len(study.seeds)} seeds, "
        f"{len(runs) - len(missing)} of {len(runs)} runs are done"
    )
    if not missing:
        return
    write_json(options.folder / "environment.json", environment())
    arms = {run.arm.label: run.arm for run in missing}
    fill_caches(list_cache_requests(list(arms.values()), study.seeds), options.folder)
    if options.estimate:
        console.note(_describe_estimate(study, runs, len(missing), options))
    with console.live_table() as update_table:
        launch_runs(study, runs, launcher, update_table)


def launch_runs(study: Study, runs: Sequence[Run], launcher: Launcher, show: Callable[[Table], None]) -> None:
    """Execute the runs that are not done, and show the states of all runs after each event."""
    missing = {run.folder: run for run in runs if run.state != "done"}
    for run in missing.values():
        prepare_run(run)
    running: set[Path] = set()
    show(make_progress_table(study, runs, running))
    for folder, event in launcher.launch(list(missing)):
        (running.add if event == "running" else running.discard)(folder)
        if event == "ended":  # for log files, which do not show the live table
            console.note(f"{missing[folder].name}: {_describe_outcome(study, missing[folder])}")
        show(make_progress_table(study, runs, running))


def make_progress_table(study: Study, runs: Sequence[Run], running: set[Path]) -> Table:
    """Make a table with a row per arm and a column per seed; finished runs show the mean of the primary metric."""
    cells: dict[str, dict[int, str]] = {}
    for run in runs:
        state = "running" if run.folder in running else run.state
        cells.setdefault(run.arm.label, {})[run.seed] = _format_score(study, run) if state == "done" else state
    rows = [(label, *(by_seed.get(seed, "") for seed in study.seeds)) for label, by_seed in cells.items()]
    return Table("", ("arm", *(f"seed {seed}" for seed in study.seeds)), rows)


def _describe_outcome(study: Study, run: Run) -> str:
    if run.state == "done":
        return _format_score(study, run)
    return describe_failure(run.folder) if run.state == "failed" else "stopped; rerun the same command to resume"


def _format_score(study: Study, run: Run) -> str:
    result = read_result(run.folder / RESULT_FILE)
    values = next((values for metric in study.metrics if (values := result.values(metric.name))), {})
    return f"{mean(values.values()):.3f}" if values else "done"


def _make_plan_table(study: Study, runs: Sequence[Run]) -> Table:
    """Make a table of the stages and the cost of each arm."""
    rows = []
    for arm in study.arms:
        cost = count_cost(arm)
        sizes = ("", "", "") if cost is None else (
            f"{cost.parameters / 1e6:,.2f}", f"{cost.trainable / 1e6:,.2f}", f"{cost.denoising_step_flops / 1e9:,.2f}"
        )  # fmt: skip
        rows.append((arm.label, " ".join(arm.options), *sizes))
    header = ("arm", "stages", "parameters (M)", "trainable (M)", "GFLOP per denoising step")
    done = sum(run.state == "done" for run in runs)
    return Table(study.title, header, rows, f"{len(runs)} runs, {done} of them done; this dry run executed none.")


def _describe_estimate(study: Study, runs: Sequence[Run], missing: int, options: AblateOptions) -> str:
    seconds, basis = estimate_seconds_per_run(study, runs)
    if isnan(seconds):
        return f"cannot estimate the duration: {basis}"
    hours = seconds * missing / 3600
    price = "" if options.price is None else f", {hours * options.price:.2f} at {options.price:g} per hour"
    return (
        f"estimate of training alone: {seconds / 60:.1f} minutes per run ({basis}), {hours:.2f} hours in total{price}, "
        f"{hours / min(options.jobs, missing):.2f} hours with {options.jobs} runs at once"
    )


def estimate_seconds_per_run(study: Study, runs: Sequence[Run]) -> tuple[float, str]:
    """Estimate the duration of a run in seconds, and describe what the estimate is based on.

    The basis is the finished runs, or a few training steps of the base (the unchanged configuration).
    """
    durations = [read_result(run.folder / RESULT_FILE).cost["seconds"] for run in runs if run.state == "done"]
    if durations:
        return float(median(durations)), f"median of {len(durations)} finished runs"
    total = 0.0
    init: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for stage, options in study.arms[0].options.items():
            root = folder / stage
            probe_options = {
                **options, **init, "trainer.max_steps": PROBE_STEPS, "trainer.default_root_dir": str(root),
                "trainer.limit_val_batches": 0, "trainer.callbacks": [], "previews.every_n_steps": 0,
                "log.every_n_steps": 2,
            }  # fmt: skip
            training = make_fit_options(study.seeds[0], study.stages[stage], probe_options)
            write_json(folder / RUN_FILE, {})
            modules = study.arms[0].modules
            write_steps(folder, [Step(command="fit", options=to_dict(training), out=root, modules=modules)])
            execute_run(folder)
            log = read_log(root) if (root / METRICS_FILE).is_file() else {}
            speeds = [line["samples_per_second"] for line in log.values() if "samples_per_second" in line]
            if not speeds:
                return float("nan"), f"the first steps of {stage} failed: {describe_failure(folder)}"
            total += _count_samples(study.arms[0].resolved[stage]) / median(speeds)
            init = {"model.init": str(root / "model")}
    return total, f"from {PROBE_STEPS} training steps of the base, without validation, evaluation and start-up"


def _count_samples(resolved: Mapping[str, Any]) -> float:
    """Count the samples that a stage trains on, over all processes."""
    trainer = resolved["trainer"]
    sizes = [trainer.get("devices"), trainer.get("num_nodes")]
    processes = prod(size for size in sizes if isinstance(size, int) and size > 0)
    per_step = resolved["data"]["batch_size"] * (trainer.get("accumulate_grad_batches") or 1) * processes
    return float(max(trainer.get("max_steps") or 0, 0) * per_step)
