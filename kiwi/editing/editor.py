"""KiwiEditor: from a video, an instruction and reference images to the edited video, of the same size and length."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Self

import numpy as np

from kiwi.checkpoints.folder import from_pretrained, save_pretrained
from kiwi.data.dataset import letterbox_references
from kiwi.data.sample import EditBatch, EditSample, collate, to_pixels
from kiwi.encoded import Pixels, TaskKind
from kiwi.errors import InputError
from kiwi.flow.solvers import OnStep, ignore_step
from kiwi.media.image import fit_size, read_image, resize
from kiwi.media.video import Video, read_video
from kiwi.models.device import resolve_device
from kiwi.models.kiwi import KiwiEdit
from kiwi.models.sampling import EditingDefaults, Sampling, sample_edits

log = logging.getLogger(__name__)


class KiwiEditor:
    """A model with its recommended settings, ready to edit.

    Args:
        model: the editor.
        defaults: size, length and sampling that it was trained for.
        device: where it runs.
    """

    def __init__(self, model: KiwiEdit, defaults: EditingDefaults, device: str = "cpu") -> None:
        self.model = model.to(device).eval()
        self.defaults, self.device = defaults, device

    @classmethod
    def from_pretrained(cls, folder: Path | str, *, device: str | None = None) -> Self:
        """Load a model folder, or a hub repository that holds one; by default onto the accelerator if there is one.

        Raises:
            CheckpointError: not a model folder, or weights that do not fit its configuration.
            InputError: a device that cannot be used.
        """
        device = resolve_device(device)
        return cls(*from_pretrained(folder), device=device)

    def save_pretrained(self, folder: Path | str, *, self_contained: bool = True) -> None:
        """Write the model and its defaults as a model folder, which replaces an earlier one as a whole.

        Args:
            folder: created if missing; its parent must exist.
            self_contained: copy pretrained parts from local folders, so that the result can be moved; otherwise they
                are referenced by path.
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
        """Edit a video.

        The model works at its own size: frames are shrunk to `max_pixels` and to its size multiple, the last frame is
        repeated up to a length of 4k + 1, and the result is resized and cut to the source's size and length. All
        frames are edited at once.

        Args:
            video: a file, or decoded frames; an image is a video of one frame.
            instruction: what to change, in words.
            references: reference images, files or uint8 arrays (H, W, 3).
            sampling: steps and solver; the model's defaults if not given.
            max_pixels: height x width to work at; the model's default if not given.
            seed: of the starting noise.
            on_step: called after each denoising step with its index and the latents.

        Returns:
            The edited video, of the source's size, frame count and frame rate.

        Raises:
            InputError: an empty instruction, or `max_pixels` below 1.
            MediaError: a file that cannot be read.
        """
        if not instruction.strip():
            raise InputError("the instruction is empty", code="empty-instruction", fix="say in words what to change")
        video = video if isinstance(video, Video) else read_video(video)
        images = tuple(read_image(r) if isinstance(r, (str, Path)) else r for r in references)
        frames = self.working_frames(video, max_pixels)
        self._log_changes(video, frames)
        batch = self._batch(frames, instruction, images)
        (edited,) = sample_edits(self.model, batch, sampling or self.defaults.sampling, seed, on_step)
        return Video(resize(to_pixels(edited)[: video.frame_count], video.height, video.width), Fraction(video.fps))

    def working_frames(self, video: Video, max_pixels: int | None = None) -> Pixels:
        """The source at the model's size and 4k + 1 frames, (F, H, W, 3); `max_pixels` as in `edit`."""
        max_pixels = self.defaults.max_pixels if max_pixels is None else max_pixels
        height, width = fit_size(video.height, video.width, max_pixels=max_pixels, multiple=self.model.size_multiple)
        padding = -(video.frame_count - 1) % self.model.vae.temporal_factor
        # Resized, not cropped: the result must cover all of the source.
        frames = resize(video.frames_FHWC, height, width)
        return np.concatenate([frames, np.repeat(frames[-1:], padding, axis=0)])

    def _log_changes(self, video: Video, frames: Pixels) -> None:
        """Log how the frames that the model works on differ from the video."""
        count, height, width = frames.shape[:3]
        if video.frame_count > self.defaults.max_frames:
            log.warning(
                "the video has %d frames, but the model was trained on at most %d: expect a weaker edit, and more "
                "memory use",
                video.frame_count,
                self.defaults.max_frames,
            )
        if (count, height, width) != (video.frame_count, video.height, video.width):
            log.info(
                "editing at %dx%d, %d frames (the video is %dx%d, %d frames)",
                height, width, count, video.height, video.width, video.frame_count,
            )  # fmt: skip

    def _batch(self, frames: Pixels, instruction: str, images: tuple[Pixels, ...]) -> EditBatch:
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
        return replace(
            batch,
            source_BCFHW=batch.source_BCFHW.to(self.device),
            references_BRCHW=batch.references_BRCHW.to(self.device),
        )
