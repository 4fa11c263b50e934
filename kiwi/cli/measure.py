"""`python -m kiwi sandbox measure`: what an editor is worth on items that it never saw, as tables and a picture."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from math import isnan, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiwi import console
from kiwi.environment import environment
from kiwi.errors import InputError
from kiwi.media.files import write_json, write_text
from kiwi.media.image import write_image
from kiwi.media.run_dir import open_run_dir
from kiwi.sandbox.controls import swapped, with_reference_of, with_words_of
from kiwi.sandbox.pairs import EditPair, make_pair
from kiwi.tables import Table

if TYPE_CHECKING:
    from kiwi.evaluation.sandbox import Editor, Scored
    from kiwi.models.vae.wan import VideoVae

AS_ASKED, WORDS, REFERENCE, OLD_TARGET = "as asked", "other words", "other reference", "other reference, old target"
"""What is edited and what it is held against."""

SHOWN = 14
"""Items in the picture."""


def add_options(options: argparse.ArgumentParser) -> None:
    """What the action takes beside the world's options."""
    options.add_argument("out", metavar="OUT", help="folder to write to; what was cut off there is gone on with")
    options.add_argument("--model", default="sandbox", help="model folder or hub id (default: %(default)s, shipped)")
    options.add_argument("--steps", type=int, help="denoising steps (default: the model's own)")
    options.add_argument("--noise", type=int, default=0, help="seed of the starting noise")
    options.add_argument("--no-controls", action="store_true", help="leave out other words and other references")
    options.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda if there is one)")


def require_measurable(options: argparse.Namespace, world: dict[str, Any]) -> tuple[int, int]:
    """Height and width of the items. Raises InputError for what cannot be drawn or edited by any editor."""
    for name in ("items", "steps"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise InputError(f"--{name} must be at least 1", got=value)
    frames, height, width = make_pair(options.seed, 0, **world).source.shape[:3]  # what cannot be drawn is told at once
    if (frames - 1) % 4:
        raise InputError("the model cannot work at this length", got=f"{frames} frames", wanted="4k + 1")
    return height, width


def run(options: argparse.Namespace, world: dict[str, Any]) -> int:
    """Edit, judge, print, write."""
    height, width = require_measurable(options, world)
    from kiwi.editing.editor import KiwiEditor
    from kiwi.evaluation.sandbox import editor_of, edits, sheet, tables
    from kiwi.models.device import usable_device
    from kiwi.weights.strict import fingerprint

    editor = KiwiEditor.from_pretrained(options.model, device=usable_device(options.device))
    if height % (multiple := editor.model.size_multiple) or width % multiple:
        got, wanted = f"{width}x{height}", f"multiples of {multiple}"
        raise InputError("the model cannot work at this size", got=got, wanted=wanted)
    sampling = editor.defaults.sampling
    sampling = sampling if options.steps is None else sampling.replace(steps=options.steps)
    weights = fingerprint(editor.model.state_dict())
    settings = {"weights": weights, "noise": options.noise, "steps": sampling.steps, "seed": options.seed, **world}
    items = _Items(Path(options.out), settings)
    pairs = [make_pair(options.seed, index, **world) for index in console.progress(range(options.items), "drawing")]
    asked, edit = {pair.id: pair for pair in pairs}, editor_of(editor.model, sampling, options.noise)
    items.fill(AS_ASKED, asked, edit, {AS_ASKED: asked}, editor.model.vae)
    found = dict(zip(("fidelity", "oracle"), tables(items.of(AS_ASKED, asked)), strict=True))
    if not options.no_controls:
        told, shown = swapped(pairs, with_words_of), swapped(pairs, with_reference_of)
        items.fill(WORDS, told, edit, {WORDS: told})
        items.fill(REFERENCE, shown, edit, {REFERENCE: shown, OLD_TARGET: {name: asked[name] for name in shown}})
        found["controls"] = _controls(items, told, shown)
    out = Path(options.out)
    for name, table in found.items():
        write_text(out / f"{name}.csv", table.csv())
        kept = [
            index for index, column in enumerate(table.header) if name != "fidelity" or column != "items"
        ]  # 80 wide
        rows = [[row[index] for index in kept] for row in table.rows]
        console.table(table.title, [table.header[index] for index in kept], rows, table.note)
    write_text(out / "measured.md", "\n".join(table.markdown() for table in found.values()))
    write_image(out / "edits.png", sheet(pairs[:SHOWN], {"edit": edits(pairs[:SHOWN], edit)}))
    write_json(out / "environment.json", environment())
    console.print(f"{len(pairs)} items; tables, edits.png and the numbers of each item (items.jsonl) in {out}")
    return 0


def _written(scored: Scored) -> dict[str, Any]:
    """Numbers of an item for JSON, which has no NaN."""
    return {
        name: None if isinstance(value, float) and isnan(value) else value for name, value in asdict(scored).items()
    }


class _Items:
    """The numbers of each item, a line each, added to as they come: what a killed command did is not done again."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.file = open_run_dir(folder / "settings.json", settings, "a folder of measurements") / "items.jsonl"
        self.file.touch()
        self.found: dict[tuple[str, str], Scored] = {}
        from kiwi.evaluation.sandbox import Scored

        for line in self.file.read_text(encoding="utf-8").splitlines():
            try:
                numbers: dict[str, Any] = json.loads(line)
                what = numbers.pop("what")
                numbers |= {name: nan for name, value in numbers.items() if value is None}
                self.found[what, numbers["id"]] = Scored(**numbers)
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # cut short by a kill
        if self.file.stat().st_size and not self.file.read_bytes().endswith(b"\n"):
            with self.file.open("a", encoding="utf-8") as file:
                file.write("\n")

    def fill(
        self,
        what: str,
        pairs: Mapping[str, EditPair],
        edit: Editor,
        against: Mapping[str, Mapping[str, EditPair]],
        vae: VideoVae | None = None,
    ) -> None:
        """Edit what is missing, and hold each edit against one target or several.

        Args:
            what: is done, for the progress bar.
            pairs: to be edited, by id.
            edit: does it.
            against: items of the same ids, by the name that the numbers are kept under.
            vae: whose round trips are to stand beside the numbers.
        """
        from kiwi.evaluation.sandbox import in_batches, round_trips, score

        missing = [pair for name, pair in pairs.items() if any((kept, name) not in self.found for kept in against)]
        with (
            self.file.open("a", encoding="utf-8") as file,
            console.progress_bar(f"editing, {what}", len(missing)) as advance,
        ):
            for batch in in_batches(missing):
                trips: list[Any] = [None] * len(batch)
                if vae is not None:
                    both = ([pair.source for pair in batch], [pair.target for pair in batch])
                    trips = list(zip(*(round_trips(vae, clips) for clips in both), strict=True))
                for pair, video, trip in zip(batch, edit(batch), trips, strict=True):
                    for kept, targets in against.items():
                        scored = score(targets[pair.id], video, trip)
                        self.found[kept, pair.id] = scored
                        file.write(json.dumps({"what": kept, **_written(scored)}) + "\n")
                    advance()
                file.flush()

    def of(self, what: str, ids: Mapping[str, EditPair]) -> list[Scored]:
        """The numbers of items, in their order."""
        return [self.found[what, name] for name in ids]


def _controls(items: _Items, told: Mapping[str, EditPair], shown: Mapping[str, EditPair]) -> Table:
    """Overall scores as asked, and with something of another item, by category."""
    from kiwi.evaluation.sandbox import caution, cell

    columns = {
        "as asked": (AS_ASKED, {**told, **shown}),
        "other words": (WORDS, told),
        "other picture": (REFERENCE, shown),
        "by old target": (OLD_TARGET, shown),
    }
    numbers = {title: items.of(what, ids) for title, (what, ids) in columns.items()}
    groups: dict[str, list[list[Scored]]] = {
        category: [[one for one in scored if one.category == category] for scored in numbers.values()]
        for category in dict.fromkeys(one.category for one in numbers["as asked"])
    }
    rows = [
        (title, len(own[0]), *(cell(scored, "overall") for scored in own))
        for title, own in {**groups, "mean": list(numbers.values())}.items()
    ]
    return Table(
        "Controls: overall score with the words, or the reference picture, of another item",
        ("category", "items", *columns),
        rows,
        "Means with 95% intervals (bootstrap); the other item is of the same category. An editor that reads its words "
        "fails with others'. With another picture it is held against the target that belongs to that one, and against "
        "the old target, which it should miss. The last row is the mean over the categories that a column has."
        + caution(len(own[0]) for own in groups.values()),
    )
