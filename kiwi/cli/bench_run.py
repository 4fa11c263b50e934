"""`python -m kiwi bench openve | refvie | sandbox`: generate, judge, report."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from kiwi import console
from kiwi.bench.case import Case
from kiwi.bench.runner import Generate, Pace, Runner, Task
from kiwi.bench.suites import Cases, Suite, read_cases, read_suite
from kiwi.cli.bench_inputs import (
    data_of,
    judge_of,
    measures_of,
    name_of,
    part_of,
    require_data,
    require_fitting,
    rubrics_of,
)
from kiwi.errors import InputError

if TYPE_CHECKING:
    from kiwi.bench.gallery import Shown
    from kiwi.bench.judges import Judge
    from kiwi.bench.ledger import Judgement
    from kiwi.bench.metrics import Measures
    from kiwi.bench.report import Found
    from kiwi.bench.run_folder import Identity
    from kiwi.bench.scoring import ItemScore
    from kiwi.tables import Table


def run(options: argparse.Namespace, name: str) -> int:
    """Judge a suite; 0 when every item has a score (or partial ones were allowed), else 1."""
    from kiwi.bench.ledger import FILE, Ledger
    from kiwi.bench.run_folder import Identity, claim_folder, fingerprint, write_begun
    from kiwi.media.run_dir import exclusive_lock

    suite = read_suite(name)
    pace = Pace(concurrency=options.concurrency, per_minute=options.per_minute, tries=options.tries)
    require_fitting(options)
    part, parts = part_of(options.part)
    require_data(options, suite)
    spec, measures = judge_of(options, suite), measures_of(options)
    out = options.out or Path("runs/bench") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    data = data_of(options, name, suite, out)
    found = read_cases(suite, data)
    _tell_counts(suite, found)
    judge, rubrics = spec.build(data), rubrics_of(options, name, suite)
    model = options.model or ("sandbox" if options.videos is None and options.data == "sandbox" else None)
    if model is None and options.videos is None:
        raise InputError("there is nothing to judge", wanted="--model to edit with, or --videos with edited videos")
    identity = Identity(
        name=name,
        title=options.name or name_of(options.videos.resolve() if options.videos else Path(str(model))),
        items=fingerprint(found.scored),
        judge=judge.name,
        version=judge.version,
        rubrics={category: rubric.hash for category, rubric in rubrics.items()},
        origin=next(iter(rubrics.values())).origin,
    )
    videos = options.videos or out / "videos"
    tasks = [_task(case, videos, range(options.repeats)) for case in found.scored]
    to_generate = model is not None and any(not task.edited.is_file() for task in tasks)
    generate = _generator(options, str(model), suite) if to_generate else None
    claim_folder(out, identity)
    settings = {key: str(value) for key, value in vars(options).items() if value is not None}
    if parts > 1:
        return _generate_part(tasks[part - 1 :: parts], generate)
    with exclusive_lock(out):
        write_begun(out, found.scored, settings)
        runner = Runner(suite, rubrics, judge, Ledger(out / FILE), pace)
        waiting, missing = runner.waiting(tasks)
        _estimate(judge, pace, waiting, missing if model else 0)
        return _judge_all(options, out, identity, runner, tasks, generate, found, measures)


def _judge_all(
    options: argparse.Namespace, out: Path, identity: Identity, runner: Runner, tasks: Sequence[Task],
    generate: Generate | None, data: Cases, measures: Measures | None,
) -> int:  # fmt: skip
    from kiwi.bench.controls import anchor_tasks, control_tasks, controls_of, drift_of, unjudged
    from kiwi.bench.published import published_rows
    from kiwi.bench.report import Found
    from kiwi.bench.run_folder import as_item, write_reports
    from kiwi.bench.scoring import item_scores, result_of

    suite, edited = runner.suite, {task.case.id: task.edited for task in tasks}
    earlier = runner.ledger.earlier
    anchors = anchor_tasks(data.scored, edited, earlier, options.anchors)
    if options.anchors and not anchors:
        console.note("no anchors: nothing here has been judged before; the same command again asks for them")
    judged, why = runner.run(tasks, generate)
    scored, unscored = item_scores(suite, data.scored, judged)
    own = [item.case for item in scored]
    controls = list(control_tasks(own, edited, options.controls, out / "controls")) if scored else []
    answers, unanswered = runner.run(controls)
    bad, unread = item_scores(suite, [as_item(task.case, task.item) for task in controls], answers)
    again, _ = runner.run(anchors)
    found = Found(
        suite=suite,
        title=identity.title,
        judge=identity.judge,
        version=identity.version,
        rubrics=identity.origin,
        result=result_of(suite, data.scored, scored, unscored | why, judged),
        scored=scored,
        controls=controls_of(bad, scored),
        answers=(sum(item.repeats for item in scored), len(scored) * options.repeats),
        judge_note=runner.judge.note,
        unjudged=unjudged(controls, bad, unread | unanswered),
        drift=drift_of(again, earlier),
        published=published_rows(identity.name, suite),
        excluded=dict(data.excluded),
        partial=options.allow_partial,
        metrics=_measured(measures, data, edited),
    )
    shown = _shown(data.scored, found.scored, edited, judged, found.result.unscored)
    shown += _shown_controls(controls, bad, answers, unread | unanswered)
    write_reports(out, found, None if options.no_gallery else shown)
    _tell(found, out, options.no_gallery)
    whole = found.result.complete and found.answers[0] == found.answers[1]
    return 0 if whole or (options.allow_partial and scored) else 1


def _shown(
    cases: Sequence[Case], scored: Sequence[ItemScore], edited: Mapping[str, Path], judged: Sequence[Judgement],
    why: Mapping[str, str],
) -> list[Shown]:  # fmt: skip
    """Every item for the gallery, with what was answered about it."""
    from kiwi.bench.gallery import Shown

    by_item = {item.case.id: item for item in scored}
    answers: dict[str, list[Judgement]] = {}
    for one in judged:
        answers.setdefault(one.asked.item, []).append(one)
    return [
        Shown(
            case=case,
            edited=edited[case.id],
            score=by_item.get(case.id),
            judgements=answers.get(case.id, []),
            why=why.get(case.id),
        )
        for case in cases
    ]


def _shown_controls(
    tasks: Sequence[Task], scored: Sequence[ItemScore], judged: Sequence[Judgement], why: Mapping[str, str]
) -> list[Shown]:
    """The same of controls: they are looked at by kind."""
    cases = [replace(task.case, id=task.item, instruction=task.instruction) for task in tasks]
    shown = _shown(cases, scored, {task.item: task.edited for task in tasks}, judged, why)
    return [replace(one, control=one.case.id.partition(":")[0]) for one in shown]


def _tell(found: Found, out: Path, bare: bool) -> None:
    from kiwi.bench.report import column_table, controls_table, notes, warnings

    tables = [column_table(found), controls_table(found.controls) if found.controls else None, found.metrics]
    for table in tables:
        if table is not None:
            console.table(table.title, table.header, table.rows, table.note)
    for line in notes(found):
        console.note(line)
    for warning in warnings(found):
        console.print(f"Warning: {warning}")
    gallery = "" if bare else "gallery.html, "
    console.print(f"{out}: report.md, report.tex, scores.csv, {gallery}judgements.jsonl")


def _measured(measures: Measures | None, data: Cases, edited: dict[str, Path]) -> Table | None:
    if measures is None:
        return None
    from kiwi.bench.metrics import measure_all

    return measure_all(data.scored, edited, measures)


def _task(case: Case, videos: Path, repeats: Sequence[int]) -> Task:
    return Task(
        item=case.id, case=case, instruction=case.instruction, edited=videos / case.edited_name, repeats=list(repeats)
    )


def _tell_counts(suite: Suite, found: Cases) -> None:
    counts = found.counts()
    parts = [
        f"{name} {counts.get(name, 0)}" + (f" of {of.items}" if of.items else "")
        for name, of in suite.categories.items()
    ]
    left = [f"{count} of {name}: {suite.excluded[name]}" for name, count in found.excluded.items()]
    console.note(f"{suite.title}: {len(found.scored)} items ({', '.join(parts)})")
    for line in left:
        console.note(f"not scored: {line}")


def _estimate(judge: Judge, pace: Pace, answers: int, videos: int) -> None:
    """Say what is about to happen, before it costs anything."""
    said = [
        f"{answers} answers of {judge.name} to be asked for" if answers else f"no answer of {judge.name} is missing"
    ]
    if answers and judge.seconds:
        seconds = answers * judge.seconds / pace.concurrency
        if pace.per_minute:
            seconds = max(seconds, 60 * answers / pace.per_minute)
        said.append(f"about {seconds / 60:.1f} minutes")
    if answers and judge.dollars:
        said.append(f"about {answers * judge.dollars:.2f} dollars")
    if videos:
        said.append(f"{videos} videos to be generated first")
    console.note(", ".join(said))


def _generator(options: argparse.Namespace, model: str, suite: Suite) -> Generate:
    """Edits with a model, at the benchmark's length and rate."""
    from kiwi.editing.editor import KiwiEditor
    from kiwi.media.files import make_folder
    from kiwi.media.image import read_image
    from kiwi.media.video import read_video, write_video
    from kiwi.models.device import usable_device

    editor = KiwiEditor.from_pretrained(model, device=usable_device(options.device))
    sampling = editor.defaults.sampling
    if options.steps is not None:
        sampling = sampling.replace(steps=options.steps)

    def generate(case: Case, path: Path) -> None:
        make_folder(path.parent)
        video = read_video(case.source)
        video = replace(video, frames_FHWC=video.frames_FHWC[: suite.frames])
        references = [] if case.reference is None else [read_image(case.reference)]
        edited = editor.edit(
            video, case.instruction, references, sampling=sampling, max_pixels=options.max_pixels, seed=0
        )
        write_video(path, edited.frames_FHWC, suite.fps)

    return generate


def _generate_part(tasks: Sequence[Task], generate: Generate | None) -> int:
    missing = [task for task in tasks if not task.edited.is_file()]
    for task in console.progress(missing, "generating"):
        assert generate is not None  # there is one where a video is missing
        generate(task.case, task.edited)
    console.print(
        f"{len(missing)} videos generated; judge when all parts are done, with the same command without --part"
    )
    return 0
