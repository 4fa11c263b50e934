"""The whole of a study: what is still to be run, what that will take, running it, and telling what was found."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

from kiwi import console
from kiwi.ablation.analysis import Row, measures_of, plain, rows_of
from kiwi.ablation.contact import contact
from kiwi.ablation.costs import Cost, cost_of
from kiwi.ablation.figures import draw
from kiwi.ablation.launchers import Launcher
from kiwi.ablation.report import brief_table, category_table, main_table, notes_on, short_table
from kiwi.ablation.results import Result, read_result
from kiwi.ablation.runs import COMMANDS, RESULT, RUN, Run, claim_run, execute, runs_of, why_failed
from kiwi.ablation.study import Study, options_of
from kiwi.environment import environment
from kiwi.media.files import write_json, write_text
from kiwi.tables import Table, latex_document
from kiwi.training.run_log import FILE, read_log

PROBE = 8
"""Steps by which a stage's pace is told before a study starts."""


def run_all(study: Study, runs: Sequence[Run], launcher: Launcher, show: Callable[[Table], None]) -> None:
    """Run what is not done, and show after each change how far all are; results that are there were checked before."""
    waiting = [run for run in runs if run.state != "done"]
    for run in waiting:
        claim_run(run)
    running: set[Path] = set()
    by_folder = {run.folder: run for run in waiting}
    show(progress_table(study, runs, running))
    for folder, what in launcher.launch([run.folder for run in waiting]):
        (running.add if what == "running" else running.discard)(folder)
        if what == "ended":  # a log that is no terminal has no table that changes
            console.note(f"{_name(by_folder[folder])}: {_ended(study, by_folder[folder])}")
        show(progress_table(study, runs, running))


def progress_table(study: Study, runs: Sequence[Run], running: set[Path]) -> Table:
    """A row an arm, a column a seed; of finished runs the mean of the primary measure."""
    seeds = list(dict.fromkeys(run.seed for run in runs))
    by_arm: dict[str, dict[int, str]] = {}
    for run in runs:
        state = "running" if run.folder in running else run.state
        told = _score(study, run) if state == "done" else state
        by_arm.setdefault(run.arm.label, {})[run.seed] = told
    rows = [(label, *(of.get(seed, "") for seed in seeds)) for label, of in by_arm.items()]
    return Table("", ("arm", *(f"seed {seed}" for seed in seeds)), rows)


def _ended(study: Study, run: Run) -> str:
    if run.state == "done":
        return _score(study, run)
    return why_failed(run.folder) if run.state == "failed" else "stopped; the same command goes on with it"


def _score(study: Study, run: Run) -> str:
    result = read_result(run.folder / RESULT)
    measure = next(iter(study.measure.order(measures_of([result]))), "")
    numbers = result.items.get(measure, {"": result.numbers.get(measure, float("nan"))})
    return f"{sum(numbers.values()) / len(numbers):.3f}"


def seconds_a_run(study: Study, runs: Sequence[Run]) -> tuple[float, str]:
    """How long a run will take, and how that is known: from runs that are done, else from a few steps of the base."""
    done = [read_result(run.folder / RESULT).cost["seconds"] for run in runs if run.state == "done"]
    if done:
        return float(median(done)), f"as {len(done)} finished runs took"
    total = 0.0
    init: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for stage, options in study.arms[0].options.items():
            root = Path(folder) / stage
            short = {
                **options, **init, "trainer.max_steps": PROBE, "trainer.default_root_dir": str(root),
                "trainer.limit_val_batches": 0, "trainer.callbacks": [], "previews.every_n_steps": 0,
                "log.every_n_steps": 2,
            }  # fmt: skip
            command = ["fit", *options_of(study.seeds[0], study.stages[stage], short).arguments()]
            write_json(root.parent / RUN, {})
            write_json(root.parent / COMMANDS, [command])
            execute(root.parent)
            speeds = [one["samples_per_second"] for one in _log(root).values() if "samples_per_second" in one]
            resolved = study.arms[0].resolved[stage]
            if not speeds:
                return float("nan"), f"the first steps of {stage} failed: {why_failed(root.parent)}"
            total += _samples(resolved) / median(speeds)
            init = {"model.init": str(root / "model")}
    return total, f"by {PROBE} steps of the base; validation, measuring and starting come on top"


def _samples(resolved: Mapping[str, Any]) -> float:
    """That a stage sees, on all of its processes."""
    trainer = resolved["trainer"]
    processes = [
        size for size in (trainer.get("devices"), trainer.get("num_nodes")) if isinstance(size, int) and size > 0
    ]
    at_once = resolved["data"]["batch_size"] * (trainer.get("accumulate_grad_batches") or 1) * prod(processes)
    return float(max(trainer.get("max_steps") or 0, 0) * at_once)


def _log(root: Path) -> Mapping[int, Mapping[str, float]]:
    return read_log(root) if (root / FILE).is_file() else {}


def tell(study: Study, out: Path) -> tuple[Table | None, list[str]]:
    """Analyse all results in OUT and write tables, figures, analysis.json and the contact sheet.

    Returns:
        The first measure in brief, none without results; and what is missing, a line a run.
    """
    runs = runs_of(study, out)
    results = [read_result(run.folder / RESULT) for run in runs if run.state == "done"]
    failed = {_name(run): why_failed(run.folder) for run in runs if run.state == "failed"}
    lacking = [f"{_name(run)}: {run.state}" for run in runs if run.state != "done"]
    write_json(out / "environment.json", environment())
    write_json(out / "study.json", _settings(study))
    labels = [arm.label for arm in study.arms]
    held = measures_of(results)
    wanted = [name for name in held if "/" not in name] + [name for name in study.measure.validation if name in held]
    if results and (absent := [name for name in study.measure.validation if name not in held]):
        there = ", ".join(name for name in held if "/" in name) or "none"
        console.note(f"no run has {', '.join(absent)}; numbers of validation: {there}")
    rows = {measure: rows_of(measure, results, labels) for measure in study.measure.order(wanted)}
    if not rows:
        return None, lacking
    costs = {arm.label: cost_of(arm) for arm in study.arms}
    first = next(iter(rows))
    gaps = {
        f"{one.label}, seed {one.seed}": ", ".join(absent)
        for one in results
        if (absent := [name for name in wanted if name not in one.items and name not in one.numbers])
    }
    for name, names in gaps.items():
        console.note(f"{name} has no {names}: an arm that diverges is judged by its other seeds alone")
    tables = [*_tables(study.title, rows, costs, results), *notes_on(failed, gaps)]
    write_text(out / "table.md", "\n".join(table.markdown() for table in tables))
    write_text(out / "table.csv", _long(rows).csv())
    write_text(out / "table.tex", latex_document(tables))
    write_json(out / "analysis.json", {"title": study.title, "measures": plain(rows), "failed": failed})
    draw(out / "figures", first, rows[first], results, costs)
    contact(study, runs, out / "edits.png")
    return brief_table(study.title, first, rows[first]), lacking


def _tables(
    title: str, rows: Mapping[str, Sequence[Row]], costs: Mapping[str, Cost | None], results: Sequence[Result]
) -> list[Table]:
    first = next(iter(rows))
    tables = [main_table(title, first, rows[first], costs, results)]
    if len(rows) > 1:
        tables.append(short_table(title, rows))
    if any(name for row in rows[first] for name in row.by_category):
        tables.append(category_table(title, first, rows[first]))
    return tables


def _long(rows: Mapping[str, Sequence[Row]]) -> Table:
    """A row an arm and measure, every number with all its digits."""
    header = ("measure", "arm", "seeds", "items", "mean", "low", "high", "spread", "difference", "difference_low",
              "difference_high", "p", "p_models", "verdict")  # fmt: skip
    told = []
    for measure, of in rows.items():
        for row in of:
            against = row.against
            difference = (
                ("",) * 6 if against is None else (*against.seeded.mean, against.p, against.p_models, against.verdict)
            )
            told.append((measure, row.label, len(row.seeds), row.of.items, *row.of.mean, row.of.seed_std, *difference))
    return Table("", header, told)


def _settings(study: Study) -> dict[str, Any]:
    arms = [{"label": arm.label, "options": arm.options, "resolved": arm.resolved} for arm in study.arms]
    stages = {name: str(file) for name, file in study.stages.items()}
    measure = asdict(study.measure)
    return {"title": study.title, "stages": stages, "seeds": study.seeds, "arms": arms, "measure": measure}


def _name(run: Run) -> str:
    return f"{run.arm.label}, seed {run.seed}"
