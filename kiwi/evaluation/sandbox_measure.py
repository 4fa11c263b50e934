"""Evaluation of an editor on held-out items of the sandbox: `python -m kiwi sandbox measure`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isnan, nan
from pathlib import Path
from typing import Any, ClassVar

from kiwi import console
from kiwi.checkpoints.folder import from_pretrained
from kiwi.environment import environment
from kiwi.errors import InputError
from kiwi.evaluation.measurement import Measurement, Metric, MetricValues, parse_options
from kiwi.evaluation.options import SandboxMeasureOptions
from kiwi.evaluation.sandbox_scores import (
    PairEditor,
    SandboxScores,
    draw_edit_sheet,
    edit_pairs,
    format_mean,
    group_batches,
    make_few_items_note,
    make_pair_editor,
    make_score_tables,
    reconstruct,
    score_item,
)
from kiwi.media.files import write_json, write_text
from kiwi.media.image import write_image
from kiwi.media.journal import Journal
from kiwi.media.run_dir import open_run_dir
from kiwi.models.device import resolve_device
from kiwi.models.vae.wan import VideoVae
from kiwi.sandbox.pairs import EditPair, count_by_category, make_controls, swap_instruction, swap_reference
from kiwi.spec import from_dict
from kiwi.tables import Table
from kiwi.weights.strict import fingerprint

SETTINGS_FILE, SCORES_FILE = "settings.json", "items.jsonl"
"""Files in the folder of an evaluation: its settings, and the scores of each item."""

AS_ASKED, WRONG_INSTRUCTION, OTHER_REFERENCE = "as asked", "other words", "other reference"
OLD_TARGET = "other reference, old target"
"""Values of `what` in SCORES_FILE. AS_ASKED edits have the item's own instruction and reference; the others are
controls, with those of another item. OLD_TARGET compares edits with another reference with the item's own target."""

METRICS = ("overall", "compliance", "consistency", "quality", "inside", "outside")
"""Scores that ablation studies compare."""

SHEET_ITEMS = 14
"""Number of items on the contact sheet."""


@dataclass(frozen=True, kw_only=True)
class SandboxMeasurement(Measurement):
    """Scores of a trained model's edits in the sandbox, against the exact targets.

    Args:
        settings: options of the command; the study sets model and out for each model.
    """

    section: ClassVar[str] = "sandbox"
    command: ClassVar[str] = "sandbox measure"

    settings: SandboxMeasureOptions

    @classmethod
    def from_study(cls, settings: Any) -> Sequence[SandboxMeasurement]:
        """Read the options; the controls are off unless the options turn them on."""
        fixed = {"model": "model", "out": "out"}
        options = parse_options(SandboxMeasureOptions, settings, "sandbox", defaults={"controls": False}, fixed=fixed)
        return (cls(settings=options),)

    @property
    def name(self) -> str:
        """Name of the folder that holds its results."""
        return self.section

    def list_metrics(self) -> Sequence[Metric]:
        """List the oracle's scores, and PSNR inside and outside the mask."""
        return [Metric(name=f"sandbox {score}") for score in METRICS]

    def check(self) -> None:
        """Raise an InputError if no item can be rendered with these options."""
        self.settings.pair(0)

    def count_items(self) -> Mapping[str, int]:
        """Count the items of each kind of edit."""
        return count_by_category(self.settings.items, self.settings.categories)

    def make_options(self, model: Path, out: Path) -> SandboxMeasureOptions:
        """Make the options of `kiwi sandbox measure` for one model."""
        return self.settings.replace(model=str(model), out=out)

    @classmethod
    def run(cls, options: Mapping[str, Any]) -> int:
        """Evaluate the model and print the tables; returns the exit code."""
        print_tables(measure_editor(from_dict(SandboxMeasureOptions, options)))
        return 0

    def collect(self, folder: Path) -> MetricValues:
        """Read the scores of the items, without the controls."""
        scores = {f"sandbox/{name}": item for (kind, name), item in read_scores(folder).items() if kind == AS_ASKED}
        items = {
            f"sandbox {metric}": {
                name: value for name, item in scores.items() if not isnan(value := getattr(item, metric))
            }
            for metric in METRICS
        }
        return MetricValues(
            items={metric: values for metric, values in items.items() if values},
            categories={name: item.category for name, item in scores.items()},
        )


def measure_editor(options: SandboxMeasureOptions) -> dict[str, Table]:
    """Edit the items, score the edits, and write the results to `options.out`.

    Returns:
        Tables by the name of their CSV file: fidelity, oracle and controls.

    Raises:
        InputError: no item can be rendered with these options, the model cannot edit videos of this size, or the
            folder holds an evaluation with other settings.
        CheckpointError: the model cannot be loaded.
    """
    height, width = options.pair(0).source.shape[1:3]  # raises if no item can be rendered
    device = resolve_device(options.device)
    model, defaults = from_pretrained(options.model)
    model.to(device).eval()
    if height % (multiple := model.size_multiple) or width % multiple:
        message, got = "the model cannot edit videos of this --size and --width", f"{width}x{height}"
        raise InputError(message, code="unsupported-video-size", got=got, expected=f"multiples of {multiple}")
    sampling = defaults.sampling if options.steps is None else defaults.sampling.replace(steps=options.steps)
    settings = {
        "weights": fingerprint(model.state_dict()),
        "noise": options.noise,
        "steps": sampling.steps,
        "seed": options.seed,
        **options.pair_settings,
    }
    scores = _ScoreFile(options.out, settings)
    pairs = options.pairs()
    by_id, editor = {pair.id: pair for pair in pairs}, make_pair_editor(model, sampling, options.noise)
    scores.complete("as asked", by_id, editor, {AS_ASKED: by_id}, model.vae)
    tables = dict(zip(("fidelity", "oracle"), make_score_tables(scores.select(AS_ASKED, by_id)), strict=True))
    if options.controls:
        instructions, references = make_controls(pairs, swap_instruction), make_controls(pairs, swap_reference)
        scores.complete("wrong instruction", instructions, editor, {WRONG_INSTRUCTION: instructions})
        old_targets = {name: by_id[name] for name in references}
        scores.complete("other reference", references, editor, {OTHER_REFERENCE: references, OLD_TARGET: old_targets})
        tables["controls"] = _make_controls_table(scores, instructions, references)
    for name, table in tables.items():
        write_text(options.out / f"{name}.csv", table.to_csv())
    write_text(options.out / "measured.md", "\n".join(table.to_markdown() for table in tables.values()))
    sheet_pairs = pairs[:SHEET_ITEMS]
    write_image(options.out / "edits.png", draw_edit_sheet(sheet_pairs, {"edit": edit_pairs(sheet_pairs, editor)}))
    write_json(options.out / "environment.json", environment())
    return tables


def print_tables(tables: Mapping[str, Table]) -> None:
    """Print the tables of `measure_editor`."""
    for name, table in tables.items():
        # The fidelity table fits into 80 characters without its column `items`, which the next table repeats.
        columns = [i for i, column in enumerate(table.header) if name != "fidelity" or column != "items"]
        rows = [[row[i] for i in columns] for row in table.rows]
        console.table(replace(table, header=[table.header[i] for i in columns], rows=rows))


def read_scores(folder: Path) -> dict[tuple[str, str], SandboxScores]:
    """Read all scores in the folder of an evaluation, by `what` (AS_ASKED, WRONG_INSTRUCTION ...) and item id."""
    scores = {}
    for record in Journal(folder / SCORES_FILE, checked=True).read():
        kind = record.pop("what")
        record |= {name: nan for name, value in record.items() if value is None}  # JSON has no NaN
        scores[kind, record["id"]] = SandboxScores(**record)
    return scores


class _ScoreFile:
    """SCORES_FILE, to which each item's scores are appended at once so that a killed command can resume."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        file = open_run_dir(folder / SETTINGS_FILE, settings, "a sandbox evaluation") / SCORES_FILE
        self.journal = Journal(file, checked=True)
        self.scores = read_scores(folder)

    def complete(
        self,
        description: str,
        pairs: Mapping[str, EditPair],
        editor: PairEditor,
        targets: Mapping[str, Mapping[str, EditPair]],
        vae: VideoVae | None = None,
    ) -> None:
        """Edit the items that have no scores yet, and score each edit against one target or several.

        Args:
            description: text of the progress bar.
            pairs: items to edit, by id.
            editor: editor of the items.
            targets: by `what`, items with the same ids whose targets the edits are scored against.
            vae: VAE whose round trips give the upper bounds of PSNR; None to skip them.
        """
        missing = [pair for name, pair in pairs.items() if any((kind, name) not in self.scores for kind in targets)]
        with console.progress_bar(f"editing, {description}", len(missing)) as advance:
            for batch in group_batches(missing):
                round_trips: list[Any] = [None] * len(batch)
                if vae is not None:
                    sources = reconstruct(vae, [pair.source for pair in batch])
                    round_trips = list(zip(sources, reconstruct(vae, [pair.target for pair in batch]), strict=True))
                for pair, video, round_trip in zip(batch, editor(batch), round_trips, strict=True):
                    for kind, items in targets.items():
                        self._append(kind, score_item(items[pair.id], video, round_trip))
                    advance()

    def select(self, kind: str, items: Mapping[str, EditPair]) -> list[SandboxScores]:
        """Select the scores of items, in their order."""
        return [self.scores[kind, name] for name in items]

    def _append(self, kind: str, scores: SandboxScores) -> None:
        self.scores[kind, scores.id] = scores
        fields = asdict(scores).items()
        self.journal.append({"what": kind, **{k: None if isinstance(v, float) and isnan(v) else v for k, v in fields}})


def _make_controls_table(
    scores: _ScoreFile, instructions: Mapping[str, EditPair], references: Mapping[str, EditPair]
) -> Table:
    """Compare the overall scores of edits as asked with those of the controls, by category."""
    columns = {
        "as asked": scores.select(AS_ASKED, {**instructions, **references}),
        "wrong instruction": scores.select(WRONG_INSTRUCTION, instructions),
        "other reference": scores.select(OTHER_REFERENCE, references),
        "old target": scores.select(OLD_TARGET, references),
    }
    groups: dict[str, list[list[SandboxScores]]] = {
        category: [[item for item in column if item.category == category] for column in columns.values()]
        for category in dict.fromkeys(item.category for item in columns["as asked"])
    }
    rows = [
        (title, len(group[0]), *(format_mean(column, "overall") for column in group))
        for title, group in {**groups, "mean": list(columns.values())}.items()
    ]
    return Table(
        "Controls: overall score with the instruction, or the reference image, of another item",
        ("category", "items", *columns),
        rows,
        "Means with 95% intervals (bootstrap); the other item is of the same category. wrong instruction: another "
        "item's instruction, scored against the original target (a good editor scores low). other reference: another "
        "item's reference image, scored against the target that follows from it (high); old target: the same edits "
        "against the original target (low). Last row: mean over the categories in a column."
        + make_few_items_note(len(group[0]) for group in groups.values()),
    )
