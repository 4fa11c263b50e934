"""Previews of fixed samples during training; `EditQuality` reuses their edits."""

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
from kiwi.errors import InputError
from kiwi.media.contact_sheet import contact_sheet
from kiwi.media.image import write_image
from kiwi.media.resize import resize
from kiwi.media.video import write_video
from kiwi.training.modules.base import Clips, LitModule, Preview, get_edit_data
from kiwi.training.trainer import EveryNSteps

FPS = 8
"""Frame rate of the written videos and GIFs."""


class Previews(L.Callback):
    """Runs the model on fixed samples during training; writes contact sheets and videos, and logs GIFs to TensorBoard.

    Args:
        every_n_steps: optimizer steps between previews; 0 for previews only at the end of training.
        items: number of samples, from every task of the validation set (or of the training set if that is empty).
        seed: seed of the initial noise, which is the same at every preview.
    """

    def __init__(self, every_n_steps: int = 500, items: int = 4, seed: int = 0) -> None:
        if items < 0:
            raise InputError("previews.items is negative", code="out-of-range", got=items, expected="0 or more")
        self.interval, self.items, self.seed = EveryNSteps(every_n_steps), items, seed
        self.last_step = -1

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        if self.interval.due(trainer.global_step):
            self._preview(trainer, module)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.last_step != trainer.global_step:
            self._preview(trainer, module)

    @L.pytorch.utilities.rank_zero_only
    def _preview(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, LitModule)
        self.last_step = trainer.global_step
        folder = Path(trainer.default_root_dir) / "previews"
        folder.mkdir(parents=True, exist_ok=True)
        for index in select_indices(get_preview_dataset(trainer), self.items):
            sample, preview = preview_sample(trainer, module, index, self.seed)
            stem = folder / f"step{trainer.global_step:06d}_{index:03d}"
            write_image(stem.with_suffix(".png"), _make_contact_sheet(sample, preview))
            video = concat_clips(preview.clips)
            if len(video) > 1:
                write_video(stem.with_suffix(".mp4"), video, Fraction(FPS))
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    _log_gif(logger, f"preview/{index}", video, trainer.global_step)


def get_preview_dataset(trainer: L.Trainer) -> EditDataset:
    """The dataset to preview: the validation set, or the training set if the former is empty."""
    sets = get_edit_data(trainer).datasets
    return sets["validation"] if len(sets["validation"]) else sets["train"]


def select_indices(dataset: EditDataset, items: int) -> list[int]:
    """Select up to `items` samples, taken in turn from every task and evenly spaced within each."""
    tasks: dict[TaskKind, list[int]] = {}
    for index, bucket in enumerate(dataset.buckets):
        tasks.setdefault(bucket.task, []).append(index)
    per_task = -(-items // max(1, len(tasks)))
    spaced = [
        [indices[round(i)] for i in np.linspace(0, len(indices) - 1, min(per_task, len(indices)))]
        for indices in tasks.values()
    ]
    return [index for turn in zip_longest(*spaced) for index in turn if index is not None][:items]


def preview_sample(trainer: L.Trainer, module: LitModule, index: int, seed: int) -> tuple[EditSample, Preview]:
    """Decode a sample of the preview dataset, and run the model on it with the averaged weights.

    A single process caches the result until the next step. Several processes always run the model: a cache in one of
    them would save no time, because it would wait for the others.
    """
    if (cached := module.preview_cache.get((index, seed))) is not None:
        return cached
    module.stop_at_sigterm()
    sample = get_preview_dataset(trainer).decode(index)
    with module.averaged():
        batch = module.transfer_batch_to_device(collate([sample]), module.device, 0)
        preview = module.preview(batch, seed)
    if trainer.world_size == 1:
        module.preview_cache[index, seed] = (sample, preview)
    return sample, preview


def concat_clips(clips: Clips) -> Pixels:
    """Concatenate clips from left to right; clips of one frame are repeated."""
    frames = max(map(len, clips.values()))
    whole = [clip if len(clip) == frames else clip[:1].repeat(frames, 0) for clip in clips.values()]
    return np.concatenate(whole, axis=2)


def _make_contact_sheet(sample: EditSample, preview: Preview) -> Pixels:
    """Draw the first and last frame of every clip, enlarged, with the caption."""
    frames, height, width = sample.size
    scale = max(1, round(192 / height))
    rows = {preview.caption: 0, "(last frame)": -1} if frames > 1 else {preview.caption: 0}
    cells = [
        [resize(clip[frame][None], height * scale, width * scale)[0] for clip in preview.clips.values()]
        for frame in rows.values()
    ]
    return contact_sheet(cells, labels=list(rows), column_titles=list(preview.clips))


def _log_gif(logger: TensorBoardLogger, tag: str, frames_FHWC: Pixels, step: int) -> None:
    """Log a GIF to TensorBoard as an image; `add_video` would need another package."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    data = io.BytesIO()
    images = [Image.fromarray(frame) for frame in frames_FHWC]
    images[0].save(data, "GIF", save_all=True, append_images=images[1:], duration=1000 // FPS, loop=0)
    height, width = frames_FHWC.shape[1:3]
    image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=data.getvalue())
    logger.experiment._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)
