"""Before and after: what training did to an editor, on items of the sandbox that it never saw."""

from __future__ import annotations

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
    edit_pairs,
    edit_sheet,
    few_items_note,
    format_mean,
    pair_editor,
    score_edit,
)
from kiwi.media.files import atomic_path, make_folder, write_json, write_text
from kiwi.media.image import write_image
from kiwi.media.run_dir import open_run_dir
from kiwi.media.video import write_video
from kiwi.sandbox.pairs import EditPair, check_categories, make_pair
from kiwi.tables import Table
from kiwi.training.modules.editor import LitKiwi

log = logging.getLogger(__name__)

MEASURES = ("inside", "outside", *ORACLE_SCORES)
"""What is written of each item's edits."""

_SETTINGS = "settings.json"

FPS = 4
"""Of the videos: slower than the world's, whose clips are short."""


class BeforeAfter(L.Callback):
    """Edits held-out items before training and after it, and tells what the edits are worth.

    The run's folder then has before_after/ with scores.md and scores.csv, edits.png (reference, source, before, after
    and target of some items) and a video of each of these. A resumed run takes what was before from there.

    Args:
        items: how many, from the first of the world.
        shown: of these, in the picture and as videos.
        categories: kinds of edit; all for none.
        level, split, seed: which items, of a split that training does not draw from.
        frames, size: of their videos; size is height and width.
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
            raise InputError("before and after needs items, some of them shown", got=f"items {items}, shown {shown}")
        kinds = check_categories(categories)
        self.drawn = partial(
            make_pair, seed, frames=frames, height=size, width=size, categories=kinds, level=level, split=split
        )
        self.items, self.shown = items, shown
        self.settings = {"items": items, "seed": seed, **self.drawn.keywords}
        self.drawn(0)  # settings that nothing can be drawn with are told at once
        self.pairs: list[EditPair] = []

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        """Refuse what does not edit."""
        if not isinstance(module, LitKiwi):
            raise InputError("before and after is of editors", got=type(module).__name__, wanted="LitKiwi")

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Edit with what training starts from.

        Raises:
            InputError: a run that goes on, whose edits from before are of other items.
        """
        folder = _folder(trainer)
        if trainer.is_global_zero and trainer.global_step > 0 and (folder / _SETTINGS).exists():
            open_run_dir(folder / _SETTINGS, self.settings, "edits from before training")
        if trainer.is_global_zero and trainer.global_step == 0:
            make_folder(folder)
            for left in folder.glob(f".{_kept(trainer).stem}.*"):
                left.unlink()  # of a run that was killed here
            write_json(folder / _SETTINGS, self.settings)
            with atomic_path(_kept(trainer)) as temporary, temporary.open("wb") as file:
                np.savez_compressed(file, **self._edited(module, "editing before training"))  # type: ignore[arg-type]

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Edit with what was learned, and tell."""
        if not trainer.is_global_zero:
            return
        try:
            with np.load(_kept(trainer), allow_pickle=False) as kept:
                before = dict(kept)
        except (OSError, ValueError, EOFError, BadZipFile) as problem:
            log.warning("%s cannot be read (%s): what was before training is not known", _kept(trainer), problem)
            return
        with module.averaged():  # type: ignore[operator]
            after = self._edited(module, "editing after training")
        self._tell(_folder(trainer), {"before": before, "after": after})

    def _edited(self, module: L.LightningModule, what: str) -> dict[str, Pixels]:
        assert isinstance(module, LitKiwi)
        self.pairs = self.pairs or [self.drawn(index) for index in range(self.items)]
        console.note(f"{what}: {len(self.pairs)} items that training does not see")
        return edit_pairs(self.pairs, pair_editor(module.editor, module.sampling))

    def _tell(self, folder: Path, made: Mapping[str, Mapping[str, Pixels]]) -> None:
        """Write and print scores; write a picture and videos."""
        scored = {when: [score_edit(pair, videos[pair.id]) for pair in self.pairs] for when, videos in made.items()}
        table = self._table(scored, MEASURES)
        write_text(folder / "scores.md", table.markdown())
        write_text(folder / "scores.csv", table.csv())
        shown = self.pairs[: self.shown]
        write_image(folder / "edits.png", edit_sheet(shown, made))
        for pair in shown:
            frames = np.stack([edit_sheet([pair], made, frame=frame) for frame in range(len(pair.source))])
            write_video(folder / f"{pair.id}.mp4", frames, FPS)
        seen = self._table(scored, ("inside", "outside", "overall"))
        console.table(seen.title, seen.header, seen.rows, seen.note)
        console.print(f"picture: {folder / 'edits.png'}; videos: {folder}/*.mp4; table: {folder / 'scores.md'}")

    def _table(self, scored: Mapping[str, Sequence[SandboxScores]], names: Sequence[str]) -> Table:
        categories = [*dict.fromkeys(pair.category for pair in self.pairs), "mean"]
        rows: list[Sequence[object]] = []
        for category in categories:
            for when, found in scored.items():
                own = [one for one in found if category in (one.category, "mean")]
                rows.append((category, when, len(own), *(format_mean(own, name) for name in names)))
        return Table(
            "Held-out items before and after training: dB inside and outside the mask, oracle's scores (1 to 5)",
            ("category", "training", "items", *names),
            rows,
            "Means with 95% intervals over items (bootstrap); the last rows are means over categories."
            + few_items_note(row[2] for row in rows),  # type: ignore[misc]
        )


def _folder(trainer: L.Trainer) -> Path:
    return Path(trainer.default_root_dir) / "before_after"


def _kept(trainer: L.Trainer) -> Path:
    return _folder(trainer) / "before.npz"
