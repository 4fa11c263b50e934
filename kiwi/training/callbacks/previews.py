"""What a run leaves behind while it trains: model folders and previews of fixed samples."""

from __future__ import annotations

import io
import logging
from fractions import Fraction
from itertools import zip_longest
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from numpy.typing import NDArray
from PIL import Image

from kiwi.data.datamodule import EditData
from kiwi.data.dataset import EditDataset
from kiwi.data.sample import collate
from kiwi.encoded import TaskKind
from kiwi.media.image import contact_sheet, resize, write_image
from kiwi.media.video import write_video
from kiwi.training.modules.base import Clips, LitModule, Look, made_a_step

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]


class Previews(L.Callback):
    """Runs the model on fixed samples while training: a contact sheet and an mp4 each, also in TensorBoard.

    Args:
        every_n_steps: optimizer steps between previews; 0 makes them at the end only.
        items: samples of the validation set (of the training set when there is none), from every kind of task.
        seed: of the starting noise, the same at every preview.
    """

    def __init__(self, every_n_steps: int = 500, items: int = 4, seed: int = 0) -> None:
        self.every_n_steps, self.items, self.seed = every_n_steps, items, seed
        self.last_step = -1

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        """Preview at the interval."""
        if self.every_n_steps and made_a_step(trainer, self) and trainer.global_step % self.every_n_steps == 0:
            self._preview(trainer, module)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Preview the result."""
        if self.last_step != trainer.global_step:
            self._preview(trainer, module)

    @L.pytorch.utilities.rank_zero_only
    def _preview(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, LitModule)
        self.last_step = trainer.global_step
        folder = Path(trainer.default_root_dir) / "previews"
        folder.mkdir(parents=True, exist_ok=True)
        for index in chosen(looked_at(trainer), self.items):
            look = edited(trainer, module, index, self.seed)
            stem = folder / f"step{trainer.global_step:06d}_{index:03d}"
            write_image(stem.with_suffix(".png"), _sheet(look))
            strip = side_by_side(look.clips)
            if len(strip) > 1:
                write_video(stem.with_suffix(".mp4"), strip, Fraction(8))
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    _add_gif(logger, f"preview/{index}", strip, trainer.global_step)


def looked_at(trainer: L.Trainer) -> EditDataset:
    """The samples that a run is shown on: those of validation, or of training when there are none."""
    sets = _data(trainer).sets
    return sets["validation"] if len(sets["validation"]) else sets["train"]


def edited(trainer: L.Trainer, module: LitModule, index: int, seed: int) -> Look:
    """A sample that is looked at, and what the average of the weights makes of it (`LitModule.preview`).

    Between two steps a single process makes it once, however often it is asked for. Several processes make it each
    time: what one of them remembers would save no time, since it waits for the others.
    """
    if (kept := module.shown.get((index, seed))) is not None:
        return kept
    sample = looked_at(trainer).decode(index)
    with module.averaged():
        batch = module.transfer_batch_to_device(collate([sample]), module.device, 0)
        made = Look(sample, module.preview(batch, seed), module.caption(batch))
    if trainer.world_size == 1:
        module.shown[index, seed] = made
    return made


def side_by_side(clips: Clips) -> Pixels:
    """Clips as one, left to right; a single image stands still."""
    frames = max(len(clip) for clip in clips.values())
    return np.concatenate(
        [clip if len(clip) == frames else clip[:1].repeat(frames, 0) for clip in clips.values()], axis=2
    )


def _sheet(look: Look) -> Pixels:
    """First and last frame of every clip, with the caption, enlarged to be seen."""
    frames, height, width = look.sample.size
    scale = max(1, round(192 / height))
    rows = {look.caption: 0, "(last frame)": -1} if frames > 1 else {look.caption: 0}
    cells = [
        [resize(clip[at][None], height * scale, width * scale)[0] for clip in look.clips.values()]
        for at in rows.values()
    ]
    return contact_sheet(cells, labels=list(rows), column_titles=list(look.clips))


def _add_gif(logger: TensorBoardLogger, tag: str, frames_FHWC: Pixels, step: int) -> None:
    """An animated preview in TensorBoard, which shows GIFs as images; its own add_video needs another package."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    data = io.BytesIO()
    pictures = [Image.fromarray(frame) for frame in frames_FHWC]
    pictures[0].save(data, "GIF", save_all=True, append_images=pictures[1:], duration=125, loop=0)
    height, width = frames_FHWC.shape[1:3]
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=data.getvalue())
    logger.experiment._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)


def chosen(dataset: EditDataset, items: int) -> list[int]:
    """Up to `items` samples, taken in turn from every kind of task, and evenly over each kind."""
    kinds: dict[TaskKind, list[int]] = {}
    for index, bucket in enumerate(dataset.buckets):
        kinds.setdefault(bucket.task, []).append(index)
    each = -(-items // max(1, len(kinds)))
    spread = [[m[round(i)] for i in np.linspace(0, len(m) - 1, min(each, len(m)))] for m in kinds.values()]
    return [index for turn in zip_longest(*spread) for index in turn if index is not None][:items]


def _data(trainer: L.Trainer) -> EditData:
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, EditData)
    return data
