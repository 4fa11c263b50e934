"""`python -m kiwi bench openve | refvie | sandbox`: generate, judge, report."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from kiwi import console
from kiwi.bench.case import Case
from kiwi.bench.runner import Generate, Pace, Runner, Task
from kiwi.bench.suites import LISTS, Cases, Suite, own_rubrics, read_cases, read_suite
from kiwi.errors import InputError

if TYPE_CHECKING:
    from kiwi.bench.folder import Identity
    from kiwi.bench.gallery import Shown
    from kiwi.bench.judges import Judge, JudgeSpec
    from kiwi.bench.metrics import Measures
    from kiwi.bench.report import Found
    from kiwi.bench.rubric import Rubric
    from kiwi.tables import Table

SANDBOX_ITEMS = {"openve": 100, "refvie": 40, "sandbox": 140}
"""Items of `--data sandbox`: twenty a category."""

SANDBOX_CATEGORIES = {
    "openve": ["local_change", "local_remove", "local_add", "background_change", "global_style"],
    "refvie": ["subject_reference", "background_reference"],
    "sandbox": None,
}


def add_options(options: argparse.ArgumentParser, suite: str) -> None:
    """What the benchmark's command takes."""
    options.add_argument(
        "--data",
        default="sandbox" if suite == "sandbox" else f"data/{suite}",
        help="folder in the published layout, or 'sandbox' to render one with known answers (default: %(default)s)",
    )
    who = options.add_mutually_exclusive_group()
    who.add_argument("--model", help="editor to judge: model folder or hub id (default with --data sandbox: sandbox)")
    who.add_argument("--videos", type=Path, help="folder of edited videos to judge, named SOURCE_edited.mp4")
    options.add_argument(
        "--judge", help="oracle, or replay:LEDGER (default: the published judge; with --data sandbox: oracle)"
    )
    options.add_argument("--rubrics", type=Path, help="official rubrics, of `bench rubrics import` (default: ours)")
    options.add_argument("--out", type=Path, help="folder of the run (default: runs/bench/SUITE-TIME)")
    options.add_argument("--name", help="of what is judged, in the table (default: the model's or the folder's name)")
    options.add_argument("--repeats", type=int, default=1, help="answers to each question; the median counts")
    options.add_argument("--concurrency", type=int, default=8, help="questions to the judge at once")
    options.add_argument("--per-minute", type=float, help="questions a minute, at most (default: no limit)")
    options.add_argument("--tries", type=int, default=4, help="of each question")
    options.add_argument("--controls", type=int, default=12, help="bad edits of each kind that the judge must tell")
    options.add_argument("--anchors", type=int, default=0, help="items judged before that are asked again")
    options.add_argument("--allow-partial", action="store_true", help="an overall score although items are missing")
    options.add_argument("--part", default="1/1", help="of the videos to generate, such as 2/4: then judges nothing")
    options.add_argument("--steps", type=int, help="denoising steps (default: the model's own)")
    options.add_argument("--max-pixels", type=int, help="height x width to edit at (default: the model's own)")
    options.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda if there is one)")
    options.add_argument("--items", type=int, help="of --data sandbox (default: twenty a category)")
    options.add_argument("--level", default="full", help="of --data sandbox (default: %(default)s)")
    options.add_argument(
        "--metrics",
        nargs="*",
        metavar="basic|lpips|clip=FOLDER|dino=FOLDER",
        help="computed beside the judge: PSNR, SSIM and flicker against the source; LPIPS (lpips=alex, vgg or squeeze);"
        " similarities by given models",
    )
    options.add_argument("--no-gallery", action="store_true", help="leave out gallery.html")


def run(options: argparse.Namespace, name: str) -> int:
    """Judge a suite; 0 when every item has a score (or partial ones were allowed), else 1."""
    from kiwi.bench.folder import Identity, begin
    from kiwi.bench.ledger import FILE, Ledger, alone

    suite = read_suite(name)
    pace = Pace(concurrency=options.concurrency, per_minute=options.per_minute, tries=options.tries)
    if options.repeats < 1:
        raise InputError("--repeats must be at least 1", got=options.repeats)
    part, parts = _part(options.part)
    _require_data(options, suite)
    spec = _judge_spec(options, suite)
    out = options.out or Path("runs/bench") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    data = _data(options, name, suite, out)
    found = read_cases(suite, data)
    _tell_counts(suite, found)
    judge, rubrics = spec.build(data), _rubrics(options, name, suite)
    model = options.model or ("sandbox" if options.videos is None and options.data == "sandbox" else None)
    if model is None and options.videos is None:
        raise InputError("there is nothing to judge", wanted="--model to edit with, or --videos with edited videos")
    if options.videos is not None and not options.videos.is_dir():
        raise InputError(f"there is no folder {options.videos}", wanted="edited videos, named SOURCE_edited.mp4")
    identity = Identity(
        name=name,
        title=options.name or _name_of(options.videos.resolve() if options.videos else Path(str(model))),
        data=str(data),
        judge=judge.name,
        version=judge.version,
        rubrics={category: rubric.hash for category, rubric in rubrics.items()},
        origin=next(iter(rubrics.values())).origin,
    )
    measures = _measures(options)
    begin(out, identity, found.scored, {key: str(value) for key, value in vars(options).items() if value is not None})
    videos = options.videos or out / "videos"
    tasks = [_task(case, videos, range(options.repeats)) for case in found.scored]
    if parts > 1:
        return _generate_part(tasks[part - 1 :: parts], _generator(options, str(model), suite, out))
    with alone(out):
        runner = Runner(suite, rubrics, judge, Ledger(out / FILE), pace)
        waiting, missing = runner.waiting(tasks)
        _estimate(judge, pace, waiting, missing if model else 0)
        generate = _generator(options, model, suite, out) if model and missing else None
        return _judge_all(options, out, identity, runner, tasks, generate, found, measures)


def _judge_all(
    options: argparse.Namespace, out: Path, identity: Identity, runner: Runner, tasks: Sequence[Task],
    generate: Generate | None, data: Cases, measures: Measures | None,
) -> int:  # fmt: skip
    from kiwi.bench.controls import anchor_tasks, control_tasks, controls_of, drift_of, unjudged
    from kiwi.bench.folder import as_item, write_reports
    from kiwi.bench.ledger import read_ledger
    from kiwi.bench.published import published_rows
    from kiwi.bench.report import Found
    from kiwi.bench.scoring import item_scores, result_of

    suite, edited = runner.suite, {task.case.id: task.edited for task in tasks}
    anchors = anchor_tasks(data.scored, edited, runner.ledger, options.anchors) if options.anchors else []
    earlier = read_ledger(runner.ledger.file)
    judged, why = runner.run(tasks, generate)
    scored, unscored = item_scores(suite, data.scored, judged)
    controls = list(control_tasks(data.scored, edited, options.controls, out / "controls")) if scored else []
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
        unjudged=unjudged(controls, bad, unread | unanswered),
        drift=drift_of(again, earlier),
        published=published_rows(identity.name, suite),
        excluded=dict(data.excluded),
        partial=options.allow_partial,
        metrics=_measured(measures, data, edited),
    )
    write_reports(out, found, [] if options.no_gallery else _shown(out, data, found, edited))
    _tell(found, out)
    return 0 if found.result.complete or options.allow_partial else 1


def _shown(out: Path, data: Cases, found: Found, edited: dict[str, Path]) -> list[Shown]:
    """Every item for the gallery, with all that was ever answered about it."""
    from kiwi.bench.folder import read_run
    from kiwi.bench.gallery import Shown

    by_item, held = {item.case.id: item for item in found.scored}, read_run(out).judgements
    return [
        Shown(
            case=case,
            edited=edited[case.id],
            score=by_item.get(case.id),
            judgements=[one for one in held if one.asked.item == case.id],
            why=found.result.unscored.get(case.id),
        )
        for case in data.scored
    ]


def _tell(found: Found, out: Path) -> None:
    from kiwi.bench.report import column_table, controls_table, notes, warnings

    table = column_table(found)
    console.table(table.title, table.header, table.rows)
    if found.controls:
        controls = controls_table(found.controls)
        console.table(controls.title, controls.header, controls.rows)
    for line in notes(found):
        console.note(line)
    for warning in warnings(found):
        console.say(f"Warning: {warning}")
    console.say(f"{out}: report.md, report.tex, scores.csv, gallery.html, judgements.jsonl")


def _measures(options: argparse.Namespace) -> Measures | None:
    """What is computed beside the judge; loaded before anything is judged, since a folder may be wrong."""
    if options.metrics is None:
        return None
    from kiwi.bench.metrics import load_measures
    from kiwi.editing.editor import usable_device

    return load_measures(options.metrics, usable_device(options.device))


def _measured(measures: Measures | None, data: Cases, edited: dict[str, Path]) -> Table | None:
    if measures is None:
        return None
    from kiwi.bench.metrics import measure_all

    return measure_all(data.scored, edited, measures)


def _task(case: Case, videos: Path, repeats: Sequence[int]) -> Task:
    return Task(
        item=case.id, case=case, instruction=case.instruction, edited=videos / case.edited_name, repeats=list(repeats)
    )


def _name_of(folder: Path) -> str:
    """A folder's name; a run's for its folder `model`."""
    return folder.parent.name if folder.name == "model" and folder.parent.name else folder.name


def _part(text: str) -> tuple[int, int]:
    read = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", text)
    if read is None or int(read[1]) > int(read[2]):
        raise InputError("--part takes I/N", got=text, wanted="such as 2/4")
    return int(read[1]), int(read[2])


def _judge_spec(options: argparse.Namespace, suite: Suite) -> JudgeSpec:
    from kiwi.bench.judges import Oracle, Replay

    named = options.judge or ("oracle" if options.data == "sandbox" else suite.judge)
    kind, _, ledger = named.partition(":")
    if kind == "oracle" and not ledger:
        return Oracle()
    if kind == "replay" and ledger:
        return Replay(ledger=ledger)
    raise InputError(
        f"there is no judge {named!r}"
        + ("" if options.judge else f", by whom the published table of {suite.title} was scored"),
        wanted="--judge oracle (for --data sandbox), or replay:LEDGER, a judgements.jsonl of an earlier run",
    )


def _require_data(options: argparse.Namespace, suite: Suite) -> None:
    data = Path(options.data)
    if options.data != "sandbox" and not any((data / LISTS[layout]).is_file() for layout in suite.lists):
        lists = " or ".join(LISTS[layout] for layout in suite.lists)
        raise InputError(
            f"the data of {suite.title} is not at {data}",
            wanted=f"a folder with {lists} and the videos that it names; and, to score it, --judge",
            fix="download the published data there, name its folder with --data, or try --data sandbox, which needs "
            "nothing else",
        )


def _data(options: argparse.Namespace, name: str, suite: Suite, out: Path) -> Path:
    """The benchmark's folder, rendered if it is the sandbox."""
    if options.data != "sandbox":
        return Path(options.data)
    from kiwi.sandbox.export import export

    items = SANDBOX_ITEMS[name] if options.items is None else options.items
    export(
        out / "data", items, 0, suite.frames if name == "sandbox" else 5, 32, 32, fps=8,
        categories=SANDBOX_CATEGORIES[name], level=options.level, split="test",
    )  # fmt: skip
    return out / "data"


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


def _rubrics(options: argparse.Namespace, name: str, suite: Suite) -> dict[str, Rubric]:
    from kiwi.bench.rubric import read_rubrics

    if options.rubrics is None:
        return own_rubrics(name, suite)
    return read_rubrics(options.rubrics, {category: of.dimensions for category, of in suite.categories.items()})


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


def _generator(options: argparse.Namespace, model: str, suite: Suite, out: Path) -> Generate:
    """Edits with a model, at the benchmark's length and rate."""
    from kiwi.editing.editor import KiwiEditor, usable_device
    from kiwi.media.files import make_folder
    from kiwi.media.image import read_image
    from kiwi.media.video import read_video, write_video

    editor = KiwiEditor.from_pretrained(model, device=usable_device(options.device))
    sampling = editor.defaults.sampling
    if options.steps is not None:
        sampling = sampling.replace(steps=options.steps)
    make_folder(out / "videos")

    def generate(case: Case, path: Path) -> None:
        video = read_video(case.source)
        video = replace(video, frames_FHWC=video.frames_FHWC[: suite.frames])
        references = [] if case.reference is None else [read_image(case.reference)]
        edited = editor.edit(
            video, case.instruction, references, sampling=sampling, max_pixels=options.max_pixels, seed=0
        )
        write_video(path, edited.frames_FHWC, suite.fps)

    return generate


def _generate_part(tasks: Sequence[Task], generate: Generate) -> int:
    missing = [task for task in tasks if not task.edited.is_file()]
    for task in console.progress(missing, "generating"):
        generate(task.case, task.edited)
    console.say(f"{len(missing)} videos generated; judge when all parts are done, with the same command without --part")
    return 0
