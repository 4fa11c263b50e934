"""Previews of fixed samples while training, which validation's edits share."""

from __future__ import annotations

import io
from fractions import Fraction
from itertools import zip_longest
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from kiwi.data.dataset import EditDataset
from kiwi.data.sample import EditSample, collate
from kiwi.encoded import Pixels, TaskKind
from kiwi.media.image import contact_sheet, resize, write_image
from kiwi.media.video import write_video
from kiwi.training.modules.base import Clips, LitModule, Preview, edit_data
from kiwi.training.trainer import EveryNSteps

FPS = 8


class Previews(L.Callback):
    """Runs the model on fixed samples while training: a contact sheet and an mp4 each, also in TensorBoard.

    Args:
        every_n_steps: optimizer steps between previews; 0 for previews at the end only.
        items: samples of the validation set (of the training set if there is none), from every task.
        seed: of the starting noise, the same at every preview.
    """

    def __init__(self, every_n_steps: int = 500, items: int = 4, seed: int = 0) -> None:
        self.interval, self.items, self.seed = EveryNSteps(every_n_steps), items, seed
        self.last_step = -1

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        """Preview at the interval."""
        if self.interval.due(trainer.global_step):
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
        for index in select_indices(preview_dataset(trainer), self.items):
            sample, preview = preview_sample(trainer, module, index, self.seed)
            stem = folder / f"step{trainer.global_step:06d}_{index:03d}"
            write_image(stem.with_suffix(".png"), _make_contact_sheet(sample, preview))
            video = side_by_side(preview.clips)
            if len(video) > 1:
                write_video(stem.with_suffix(".mp4"), video, Fraction(FPS))
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    _log_gif(logger, f"preview/{index}", video, trainer.global_step)


def preview_dataset(trainer: L.Trainer) -> EditDataset:
    """The samples to preview: those of validation, or of training if there are none."""
    sets = edit_data(trainer).datasets
    return sets["validation"] if len(sets["validation"]) else sets["train"]


def select_indices(dataset: EditDataset, items: int) -> list[int]:
    """Up to `items` samples, taken in turn from every task, and evenly spaced over each."""
    tasks: dict[TaskKind, list[int]] = {}
    for index, bucket in enumerate(dataset.buckets):
        tasks.setdefault(bucket.task, []).append(index)
    per_task = -(-items // max(1, len(tasks)))
    spread = [[m[round(i)] for i in np.linspace(0, len(m) - 1, min(per_task, len(m)))] for m in tasks.values()]
    return [index for turn in zip_longest(*spread) for index in turn if index is not None][:items]


def preview_sample(trainer: L.Trainer, module: LitModule, index: int, seed: int) -> tuple[EditSample, Preview]:
    """A sample of the preview dataset, and the output of the averaged weights for it.

    A single process caches it between two steps. Several processes run the model each time: a cache in one of them
    would save no time, since it waits for the others.
    """
    if (cached := module.preview_cache.get((index, seed))) is not None:
        return cached
    sample = preview_dataset(trainer).decode(index)
    with module.averaged():
        batch = module.transfer_batch_to_device(collate([sample]), module.device, 0)
        preview = module.preview(batch, seed)
    if trainer.world_size == 1:
        module.preview_cache[index, seed] = (sample, preview)
    return sample, preview


def side_by_side(clips: Clips) -> Pixels:
    """Clips as one, left to right; a single image is repeated."""
    frames = max(len(clip) for clip in clips.values())
    return np.concatenate(
        [clip if len(clip) == frames else clip[:1].repeat(frames, 0) for clip in clips.values()], axis=2
    )


def _make_contact_sheet(sample: EditSample, preview: Preview) -> Pixels:
    """First and last frame of every clip, enlarged, with the caption."""
    frames, height, width = sample.size
    scale = max(1, round(192 / height))
    rows = {preview.caption: 0, "(last frame)": -1} if frames > 1 else {preview.caption: 0}
    cells = [
        [resize(clip[at][None], height * scale, width * scale)[0] for clip in preview.clips.values()]
        for at in rows.values()
    ]
    return contact_sheet(cells, labels=list(rows), column_titles=list(preview.clips))


def _log_gif(logger: TensorBoardLogger, tag: str, frames_FHWC: Pixels, step: int) -> None:
    """Log an animation to TensorBoard, which shows GIFs as images; its own add_video needs another package."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    data = io.BytesIO()
    images = [Image.fromarray(frame) for frame in frames_FHWC]
    images[0].save(data, "GIF", save_all=True, append_images=images[1:], duration=1000 // FPS, loop=0)
    height, width = frames_FHWC.shape[1:3]
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=data.getvalue())
    logger.experiment._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)
