"""KiwiEditor: edits a video by an instruction and reference images, keeping its size and length."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Self

import numpy as np

from kiwi.checkpoints.folder import describe_folder, from_pretrained, save_pretrained
from kiwi.data.dataset import letterbox_references
from kiwi.data.sample import EditBatch, EditSample, collate, to_pixels
from kiwi.encoded import Pixels, TaskKind
from kiwi.errors import InputError
from kiwi.flow.solvers import OnStep, ignore_step
from kiwi.media.image import read_image
from kiwi.media.resize import fit_size, resize
from kiwi.media.video import Video, read_video
from kiwi.models.device import resolve_device
from kiwi.models.kiwi import KiwiEdit
from kiwi.models.sampling import EditingDefaults, Sampling, sample_edits

log = logging.getLogger(__name__)


class KiwiEditor:
    """A model with its recommended settings, ready to edit.

    Args:
        model: the editing model.
        defaults: frame size, length and sampling settings that the model was trained for.
        device: device to run on.
    """

    def __init__(self, model: KiwiEdit, defaults: EditingDefaults, device: str = "cpu") -> None:
        self.model = model.to(device).eval()
        self.defaults, self.device = defaults, device

    @classmethod
    def from_pretrained(cls, folder: Path | str, *, device: str | None = None) -> Self:
        """Load a model folder or a hub repository, by default on the GPU if there is one.

        Raises:
            CheckpointError: this is not a model folder, or its weights do not match its configuration.
            InputError: the device cannot be used.
        """
        device = resolve_device(device)
        return cls(*from_pretrained(folder), device=device)

    @staticmethod
    def describe(folder: Path | str) -> tuple[str, EditingDefaults]:
        """Compute the fingerprint of a model folder and read its defaults, in a moment (`describe_folder`)."""
        return describe_folder(folder)

    def save_pretrained(self, folder: Path | str, *, self_contained: bool = True) -> None:
        """Write the model and its defaults as a model folder, replacing an existing one completely.

        Args:
            folder: created if missing; its parent must exist.
            self_contained: copy pretrained parts from local folders, so that the model folder can be moved; otherwise
                it refers to them by path.
        """
        save_pretrained(self.model, folder, self.defaults, self_contained=self_contained)

    def edit(
        self,
        video: Video | Path | str,
        instruction: str,
        references: Sequence[Pixels | Path | str] = (),
        *,
        sampling: Sampling | None = None,
        max_pixels: int | None = None,
        seed: int = 0,
        on_step: OnStep = ignore_step,
    ) -> Video:
        """Edit a video, all frames at once.

        Frames are resized to at most `max_pixels`, with height and width that are multiples of the model's
        `size_multiple`. The last frame is repeated up to a length of 4k + 1. The edited video is resized and cut to the
        source's size and length.

        Args:
            video: a file, or decoded frames; an image is a video of one frame.
            instruction: the edit instruction.
            references: reference images as files or uint8 arrays (H, W, 3).
            sampling: steps and solver; the model's defaults if not given.
            max_pixels: largest height x width to edit at; the model's default if not given.
            seed: seed of the initial noise.
            on_step: called after each denoising step with its index and the latents.

        Raises:
            InputError: the instruction is empty or `max_pixels` is below 1.
            MediaError: a file cannot be read.
        """
        if not instruction.strip():
            raise InputError("the instruction is empty", code="empty-instruction", fix="describe the edit in words")
        video = video if isinstance(video, Video) else read_video(video)
        images = tuple(read_image(image) if isinstance(image, (str, Path)) else image for image in references)
        frames = self.resize_and_pad(video, max_pixels)
        self._log_resizing(video, frames)
        batch = self._make_batch(frames, instruction, images)
        (edited,) = sample_edits(self.model, batch, sampling or self.defaults.sampling, seed, on_step)
        return Video(resize(to_pixels(edited)[: video.frame_count], video.height, video.width), Fraction(video.fps))

    def resize_and_pad(self, video: Video, max_pixels: int | None = None) -> Pixels:
        """Resize a source for the model and pad it to 4k + 1 frames, (F, H, W, 3); `max_pixels` as in `edit`."""
        max_pixels = self.defaults.max_pixels if max_pixels is None else max_pixels
        height, width = fit_size(video.height, video.width, max_pixels=max_pixels, multiple=self.model.size_multiple)
        padding = -(video.frame_count - 1) % self.model.vae.temporal_factor
        # Resized, not cropped, because the edited video must show the whole source.
        frames = resize(video.frames_FHWC, height, width)
        return np.concatenate([frames, np.repeat(frames[-1:], padding, axis=0)])

    def _log_resizing(self, video: Video, frames: Pixels) -> None:
        """Log how length and size of the model's input differ from the video's."""
        count, height, width = frames.shape[:3]
        if video.frame_count > self.defaults.max_frames:
            log.warning(
                "the video has %d frames, training clips had at most %d: the edit may be weaker and needs more memory",
                video.frame_count, self.defaults.max_frames,
            )  # fmt: skip
        if (count, height, width) != (video.frame_count, video.height, video.width):
            log.info(
                "editing %d frames of %dx%d (the video has %d frames of %dx%d)",
                count, height, width, video.frame_count, video.height, video.width,
            )  # fmt: skip

    def _make_batch(self, frames: Pixels, instruction: str, images: tuple[Pixels, ...]) -> EditBatch:
        sample = EditSample(
            id="edit",
            task=TaskKind.of(len(frames), len(images)),
            instruction=instruction,
            size=frames.shape[:3],
            source_FHWC=frames,
            target_FHWC=frames[:0],
            reference_images=images,
            references_RHWC=letterbox_references(images, *frames.shape[1:3]),
        )
        batch = collate([sample])
        source, references = batch.source_BCFHW.to(self.device), batch.references_BRCHW.to(self.device)
        return replace(batch, source_BCFHW=source, references_BRCHW=references)
