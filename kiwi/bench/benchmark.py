"""Running a benchmark: from its options to the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, get_args

from kiwi import console
from kiwi.bench.budget import Budget
from kiwi.bench.controls import (
    explain_unscored_controls,
    make_anchor_tasks,
    make_control_tasks,
    measure_drift,
    summarize_controls,
)
from kiwi.bench.judge_selection import select_judge
from kiwi.bench.judges import JudgeSpec
from kiwi.bench.ledger import LEDGER_FILE, Judgement, Ledger
from kiwi.bench.options import BenchmarkOptions
from kiwi.bench.report import BenchmarkReport, write_reports
from kiwi.bench.rubric import AnswerFormat, Rubric, read_builtin_rubrics, read_rubrics
from kiwi.bench.run_folder import (
    DATA_FOLDER,
    RunIdentity,
    hash_items,
    open_run,
    require_no_other_files,
    require_same_rendering,
    write_inputs,
)
from kiwi.bench.runner import (
    JudgingTask,
    RateLimit,
    Runner,
    VideoGenerator,
    build_generator,
    describe_editor,
    generate_videos,
)
from kiwi.bench.scoring import JudgedTask, aggregate_scores, score_items
from kiwi.bench.suites import LIST_FILES, Suite, SuiteData, read_items, read_published_rows, read_suite
from kiwi.errors import InputError
from kiwi.media.files import make_folder
from kiwi.media.run_dir import exclusive_lock
from kiwi.reading import follow_links
from kiwi.sandbox.export import SandboxExportOptions, export_sandbox
from kiwi.vlm.request import sum_usage

if TYPE_CHECKING:
    from kiwi.bench.metrics import VideoMetrics

SANDBOX_ITEMS = 20
"""Default number of items per category that `--data sandbox` renders."""

SANDBOX_CATEGORIES: dict[str, tuple[str, ...]] = {
    "openve": ("local_change", "local_remove", "local_add", "background_change", "global_style"),
    "refvie": ("subject_reference", "background_reference"),
    "sandbox": (),
}
"""Categories of edits that `--data sandbox` renders for each suite; empty for all."""


class BenchmarkInputs(NamedTuple):
    """The suite, judge and rubrics that a benchmark's options name."""

    suite: Suite
    judge: JudgeSpec
    rubrics: Mapping[str, Rubric]


def check_benchmark(options: BenchmarkOptions, judge: JudgeSpec | None = None) -> BenchmarkInputs:
    """Check that the data, judge, rubrics and edited videos named in the options exist.

    Args:
        options: options of the benchmark.
        judge: judge to use instead of the one named in the options.

    Raises:
        InputError: one of them is missing; the message names the option and what it should contain.
    """
    suite = read_suite(options.suite)
    if options.videos is not None and not options.videos.is_dir():
        expected = "edited videos, named SOURCE_edited.mp4"
        problem = f"the folder --videos {options.videos} does not exist"
        raise InputError(problem, code="missing-folder", expected=expected)
    lists = [LIST_FILES[layout] for layout in suite.lists]
    if not options.renders_data and not any((Path(options.data_name) / name).is_file() for name in lists):
        raise InputError(
            f"the data of {suite.title} was not found at {options.data_name}", code="missing-data",
            expected=f"a folder with {' or '.join(lists)} and the videos listed in it",
            fix="download the published data to that folder, name another folder with --data, or use --data sandbox, "
            "which needs no download",
        )  # fmt: skip
    judge = judge or select_judge(options, suite)
    if options.editor is None and options.videos is None:
        expected = "--model to edit with, or --videos with edited videos"
        raise InputError("there is nothing to score", code="missing-option", expected=expected)
    if options.rubrics is None:
        by_format = {answer: read_builtin_rubrics(suite, answer) for answer in get_args(AnswerFormat)}
        hashes = {answer: [rubric.hash for rubric in found.values()] for answer, found in by_format.items()}
        rubrics = by_format[judge.choose_format(hashes)]
    else:
        rubrics = read_rubrics(options.rubrics, suite.dimensions)
    return BenchmarkInputs(suite, judge, rubrics)


def run_benchmark(options: BenchmarkOptions, judge: JudgeSpec | None = None) -> BenchmarkReport | None:
    """Generate missing videos, judge all of them, and write the reports into the run's folder.

    Args:
        options: options of the benchmark.
        judge: judge to use instead of the one named in the options.

    Returns:
        The report; None if `options.part` restricts the command to generating videos.

    Raises:
        KiwiError: the options, the data or the model are unusable. An item whose video cannot be edited or judged
            does not raise: the report lists it without a score.
    """
    suite, judge_spec, rubrics = check_benchmark(options, judge)
    metrics = None
    if options.metrics is not None:
        from kiwi.bench.metrics import VideoMetrics  # imports torch

        metrics = VideoMetrics.load(options.metrics, options.device)
    out = options.out or Path("runs/bench") / f"{suite.name}-{datetime.now():%Y%m%d-%H%M%S}"
    editor = {} if options.editor is None else describe_editor(options, suite)
    folder = _render_data(options, suite, out) if options.renders_data else Path(options.data_name)
    data = read_items(suite, folder)
    _log_items(suite, data)
    built_judge = judge_spec.build(folder)
    tasks = _make_edit_tasks(options, data, out)
    identity = RunIdentity(
        name=suite.name,
        title=options.name or _choose_title(options),
        items=hash_items(data.items),
        judge=built_judge.name,
        version=built_judge.version,
        rubrics={category: rubric.hash for category, rubric in rubrics.items()},
        origin=next(iter(rubrics.values())).origin,
        editor=editor,
    )
    budget = Budget(built_judge.model, options.budget, options.prices)
    open_run(out, identity)
    part, parts = options.part_index
    selected = tasks[part - 1 :: parts]
    # Loading takes seconds or minutes, which judging existing videos does not need.
    is_editing = options.editor is not None and not all(task.edited.is_file() for task in selected)
    generate = build_generator(options, suite) if is_editing else None
    if parts > 1:
        count = generate_videos(selected, generate)
        console.print(f"{count} videos generated. When all parts are done, run the same command without --part.")
        return None
    with exclusive_lock(out):
        write_inputs(out, data.items, options)
        limit = RateLimit(concurrency=options.concurrency, per_minute=options.per_minute, tries=options.tries)
        ledger = Ledger(out / LEDGER_FILE)
        for judgement in ledger.initial_judgements:
            budget.add(judgement)
        runner = Runner(suite, rubrics, built_judge, ledger, limit, budget)
        _log_estimate(runner, tasks, is_editing=is_editing)
        return _judge_all(options, out, identity, runner, tasks, generate, data, metrics)


def _judge_tasks(
    runner: Runner, tasks: Sequence[JudgingTask], generate: VideoGenerator | None = None
) -> list[JudgedTask]:
    judgements, failures = runner.run(tasks, generate)
    scored, unscored = score_items(runner.suite, [replace(task.item, id=task.id) for task in tasks], judgements)
    scores, reasons = {score.item.id: score for score in scored}, unscored | failures
    answers: dict[str, list[Judgement]] = {task.id: [] for task in tasks}
    for judgement in judgements:
        answers[judgement.key.item].append(judgement)
    return [
        JudgedTask(task=task, judgements=answers[task.id], score=scores.get(task.id), reason=reasons.get(task.id))
        for task in tasks
    ]


def _judge_all(
    options: BenchmarkOptions, out: Path, identity: RunIdentity, runner: Runner, tasks: Sequence[JudgingTask],
    generate: VideoGenerator | None, data: SuiteData, metrics: VideoMetrics | None,
) -> BenchmarkReport:  # fmt: skip
    """Judge edits, controls and anchors, and write the reports."""
    suite, edited = runner.suite, {task.id: task.edited for task in tasks}
    earlier = runner.ledger.initial_judgements
    anchor_tasks = make_anchor_tasks(data.items, edited, earlier, options.anchors)
    if options.anchors and not anchor_tasks:
        console.note("no anchors: this folder holds no earlier judgements; rerun the same command to judge items again")
    edits = _judge_tasks(runner, tasks, generate)
    scored = [edit.score for edit in edits if edit.score is not None]
    control_tasks = make_control_tasks([score.item for score in scored], edited, options.controls, out / "controls")
    controls = _judge_tasks(runner, list(control_tasks))
    anchors = _judge_tasks(runner, anchor_tasks)
    judgements = _list_judgements([*edits, *controls, *anchors])
    unscored = {edit.task.id: edit.reason for edit in edits if edit.reason is not None}
    report = BenchmarkReport(
        suite=suite,
        identity=identity,
        result=aggregate_scores(suite, data.items, scored, unscored, _list_judgements(edits)),
        scored=scored,
        controls=summarize_controls([control.score for control in controls if control.score is not None], scored),
        answers=sum(score.repeats for score in scored),
        requested_answers=len(scored) * options.repeats,
        judge_note=runner.judge.note,
        models=Counter(judgement.model for judgement in judgements if judgement.model is not None),
        cost=None if runner.budget.price is None else runner.budget.spent,
        usage=sum_usage(judgement.usage for judgement in judgements),
        unscored_controls=explain_unscored_controls(controls),
        drift=measure_drift(_list_judgements(anchors), earlier),
        published=read_published_rows(suite),
        excluded=data.excluded,
        allow_partial=options.allow_partial,
        metrics=None if metrics is None else metrics.make_table(data.items, edited),
        folder=out,
    )
    write_reports(report, edits + controls if options.gallery else None)
    return report


def _list_judgements(judged: Sequence[JudgedTask]) -> list[Judgement]:
    return [judgement for task in judged for judgement in task.judgements]


def make_export_options(options: BenchmarkOptions, suite: Suite, out: Path) -> SandboxExportOptions:
    """The items that `--data sandbox` renders into a run's folder."""
    return SandboxExportOptions(
        out=out / DATA_FOLDER,
        items=SANDBOX_ITEMS * len(suite.categories) if options.items is None else options.items,
        frames=suite.frames if suite.name == "sandbox" else 5,
        size=32,
        categories=SANDBOX_CATEGORIES[suite.name],
        level=options.level or "full",
        split="test",
    )


def _render_data(options: BenchmarkOptions, suite: Suite, out: Path) -> Path:
    """Render items of the sandbox in the suite's file layout and return their folder."""
    export = make_export_options(options, suite, out)
    require_no_other_files(out)
    is_part = options.part_index[1] > 1  # parts of one run may start at the same time
    with nullcontext() if is_part else exclusive_lock(make_folder(out)):
        require_same_rendering(out, export.items)
        export_sandbox(export)
    return export.out


def _make_edit_tasks(options: BenchmarkOptions, data: SuiteData, out: Path) -> list[JudgingTask]:
    videos, repeats = options.videos or out / "videos", range(options.repeats)
    files = {_with_lower_suffix(path.name): path for path in sorted(videos.iterdir())} if videos.is_dir() else {}
    return [
        JudgingTask(
            id=item.id, item=item, instruction=item.instruction, repeats=repeats,
            edited=files.get(item.edited_name, videos / item.edited_name),
        )
        for item in data.items
    ]  # fmt: skip


def _with_lower_suffix(name: str) -> str:
    return str(Path(name).with_suffix(Path(name).suffix.lower()))


def _choose_title(options: BenchmarkOptions) -> str:
    """Name of the folder of videos or of the model; a generic name is replaced or preceded by its parent's."""
    folder = follow_links(options.videos) if options.videos else Path(str(options.editor))
    if folder.name == "model" and folder.parent.name:
        return folder.parent.name
    return f"{folder.parent.name}/{folder.name}" if folder.name in ("edited", "videos") else folder.name


def _log_items(suite: Suite, data: SuiteData) -> None:
    counts = Counter(item.category for item in data.items)
    parts = [
        f"{name} {counts[name]}" + (f" of {category.items}" if category.items else "")
        for name, category in suite.categories.items()
    ]
    console.note(f"{suite.title}: {len(data.items)} items ({', '.join(parts)})")
    for name, count in data.excluded.items():
        console.note(f"not scored: category {name}, {count} in the data ({suite.excluded[name]})")


def _log_estimate(runner: Runner, tasks: Sequence[JudgingTask], is_editing: bool) -> None:
    """Log the numbers of answers and videos still needed, with an estimate of time and cost."""
    judge, (answers, videos) = runner.judge, runner.count_pending(tasks)
    pending = f"{answers} answers to request from {judge.name}"
    parts = [pending if answers else f"all answers of {judge.name} are in the ledger"]
    if answers and judge.seconds:
        parts.append(f"about {runner.rate_limit.estimate_seconds(answers, judge.seconds) / 60:.1f} minutes")
    if answers and (dollars := runner.budget.estimate(answers)) is not None:
        parts.append(f"about {dollars:.2f} dollars at the mean cost of the earlier answers")
    if videos and is_editing:
        parts.append(f"{videos} videos to generate first")
    console.note(", ".join(parts))
