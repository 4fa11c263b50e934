"""Edit held-out sandbox items before and after training, and compare the edits."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from zipfile import BadZipFile

import lightning as L
import numpy as np

from kiwi import console
from kiwi.encoded import Pixels
from kiwi.errors import InputError
from kiwi.evaluation.sandbox_scores import (
    ORACLE_SCORES,
    SandboxScores,
    draw_edit_sheet,
    edit_pairs,
    format_mean,
    make_few_items_note,
    make_pair_editor,
    score_item,
)
from kiwi.media.files import atomic_path, make_folder, write_json, write_text
from kiwi.media.image import write_image
from kiwi.media.run_dir import open_run_dir
from kiwi.media.video import write_video
from kiwi.sandbox.pairs import EditPair, check_categories, make_pair
from kiwi.tables import Table
from kiwi.training.modules.editor import LitKiwi
from kiwi.training.run_log import METRICS_FILE

log = logging.getLogger(__name__)

SCORES = ("inside", "outside", *ORACLE_SCORES)
"""Fields of SandboxScores that scores.csv lists."""

SETTINGS_FILE, BEFORE_FILE = "settings.json", "before.npz"
"""Settings that determine the items, and the edits before training by item."""

FPS = 4
"""Frame rate of the written videos, lower than the sandbox's because its clips are short."""


class BeforeAfter(L.Callback):
    """Edits held-out sandbox items before and after training, and scores the edits.

    Writes before_after/ in the run folder: scores.md, scores.csv, edits.png (reference, source, edits before and after
    training, and target of some items), and a video of each of these items. A resumed run reads the edits before
    training from there.

    Args:
        items: number of items.
        shown: number of items in edits.png and as videos.
        categories: edit categories; by default all.
        level, split, seed: sandbox level, split and seed of the items; use a split that is not trained on.
        frames: number of frames per video.
        size: height and width of the videos, in pixels.
    """

    def __init__(
        self,
        items: int = 56,
        shown: int = 6,
        categories: list[str] | None = None,
        level: str = "full",
        split: str = "test",
        seed: int = 0,
        frames: int = 5,
        size: int = 32,
    ) -> None:
        if items < 1 or not 1 <= shown <= items:
            got = f"items {items}, shown {shown}"
            raise InputError("BeforeAfter needs items >= 1 and 1 <= shown <= items", code="out-of-range", got=got)
        kinds = check_categories(categories)
        self.make_pair = partial(
            make_pair, seed, frames=frames, height=size, width=size, categories=kinds, level=level, split=split
        )
        self.items, self.shown = items, shown
        self.settings = {"items": items, "seed": seed, **self.make_pair.keywords}
        self.make_pair(0)  # raises an error if no item can be drawn with these settings
        self.pairs: list[EditPair] = []

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        if not isinstance(module, LitKiwi):
            got = type(module).__name__
            raise InputError("BeforeAfter needs an editor", code="not-an-editor", got=got, expected="LitKiwi")

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Edit with the initial weights; a resumed run raises an InputError if its saved edits are of other items."""
        if not trainer.is_global_zero:
            return
        folder = _output_folder(trainer)
        if trainer.global_step > 0 and (folder / SETTINGS_FILE).exists():
            open_run_dir(folder / SETTINGS_FILE, self.settings, "edits from before training")
        if trainer.global_step == 0:
            make_folder(folder)
            for unfinished in folder.glob(f".{Path(BEFORE_FILE).stem}.*"):
                unfinished.unlink()  # left by a run that was killed while editing
            write_json(folder / SETTINGS_FILE, self.settings)
            with atomic_path(folder / BEFORE_FILE) as temporary, temporary.open("wb") as file:
                np.savez_compressed(file, **self._edit(module, "editing before training"))  # type: ignore[arg-type]
            console.note(f"training; its metrics are in {Path(trainer.default_root_dir) / METRICS_FILE}")

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Edit with the trained weights, then write and print the scores."""
        if not trainer.is_global_zero:
            return
        file = _output_folder(trainer) / BEFORE_FILE
        try:
            with np.load(file, allow_pickle=False) as arrays:
                before = dict(arrays)
        except (OSError, ValueError, EOFError, BadZipFile) as error:
            log.warning("no scores before and after training: %s cannot be read (%s)", file, error)
            return
        with module.averaged():
            after = self._edit(module, "editing after training")
        self._write_report(_output_folder(trainer), {"before": before, "after": after})

    def _edit(self, module: L.LightningModule, description: str) -> dict[str, Pixels]:
        assert isinstance(module, LitKiwi)
        self.pairs = self.pairs or [self.make_pair(index) for index in range(self.items)]
        console.note(f"{description}: {len(self.pairs)} held-out items")
        return edit_pairs(self.pairs, make_pair_editor(module.editor, module.sampling))

    def _write_report(self, folder: Path, edits: Mapping[str, Mapping[str, Pixels]]) -> None:
        """Write tables, an image and videos; print a short table."""
        scores = {when: [score_item(pair, videos[pair.id]) for pair in self.pairs] for when, videos in edits.items()}
        table = self._make_table(scores, SCORES)
        write_text(folder / "scores.md", table.to_markdown())
        write_text(folder / "scores.csv", table.to_csv())
        shown_pairs = self.pairs[: self.shown]
        write_image(folder / "edits.png", draw_edit_sheet(shown_pairs, edits))
        for pair in shown_pairs:
            frames = np.stack([draw_edit_sheet([pair], edits, frame=frame) for frame in range(len(pair.source))])
            write_video(folder / f"{pair.id}.mp4", frames, FPS)
        console.table(self._make_table(scores, ("inside", "outside", "overall")))
        console.print(f"picture: {folder / 'edits.png'}; videos: {folder}/*.mp4; table: {folder / 'scores.md'}")

    def _make_table(self, scores: Mapping[str, Sequence[SandboxScores]], names: Sequence[str]) -> Table:
        categories = [*dict.fromkeys(pair.category for pair in self.pairs), "mean"]
        rows: list[Sequence[object]] = []
        for category in categories:
            for when, items in scores.items():
                group = [item for item in items if category in (item.category, "mean")]
                rows.append((category, when, len(group), *(format_mean(group, name) for name in names)))
        return Table(
            "Held-out items before and after training: dB inside and outside the mask, oracle's scores (1 to 5)",
            ("category", "training", "items", *names),
            rows,
            "Means with 95% intervals over items (bootstrap); the last rows are means over categories."
            + make_few_items_note(row[2] for row in rows),  # type: ignore[misc]
        )


def _output_folder(trainer: L.Trainer) -> Path:
    return Path(trainer.default_root_dir) / "before_after"
