"""KiwiEditor: a video, an instruction and reference images in, the edited video out, of the same size and length."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kiwi.checkpoints.folder import from_pretrained, save_pretrained
from kiwi.data.dataset import letterboxed
from kiwi.data.sample import pixels, video_tensor
from kiwi.encoded import TaskKind
from kiwi.errors import InputError
from kiwi.media.image import fit_size, read_image, resize
from kiwi.media.video import Video, read_video
from kiwi.models.device import usable_device
from kiwi.models.kiwi import KiwiEdit
from kiwi.models.sampling import EditingDefaults, Sampling, denoise, eval_mode, make_noise

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]


class KiwiEditor:
    """A model with its defaults, ready to edit.

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
        """Load a model folder, or a hub repository that holds one, onto the accelerator if there is one.

        Raises:
            CheckpointError: not a model folder, or weights that do not fit its configuration.
        """
        device = usable_device(device)
        return cls(*from_pretrained(folder), device=device)

    def save_pretrained(self, folder: Path | str, *, self_contained: bool = True) -> None:
        """Write the model with its defaults as a model folder; what stood there before is replaced as a whole.

        Args:
            folder: made if need be; its parent must exist.
            self_contained: copy pretrained parts that lie in local folders, so that it can be moved; else name them.
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
        on_step: Callable[[int, Tensor], None] = lambda step, latents: None,
    ) -> Video:
        """Edit a video.

        The model works at its own size: frames are shrunk to `max_pixels` and to its multiple, the length is
        filled up to 4k + 1 by repeating the last frame, and the result is brought back to the source's size and
        length. All frames are edited at once.

        Args:
            video: a file, or decoded frames; an image is a video of one frame.
            instruction: what to do.
            references: images, files or (H, W, 3) uint8 arrays.
            sampling: steps and solver; the model's own unless given.
            max_pixels: height x width to work at; the model's own unless given.
            seed: of the starting noise.
            on_step: told the latents after each denoising step.

        Returns:
            The edited video, of the source's size, frame count and frame rate.

        Raises:
            InputError: an empty instruction, or `max_pixels` below 1.
            MediaError: a file that cannot be read.
        """
        if not instruction.strip():
            raise InputError("the instruction is empty", fix="say in words what to change")
        video = video if isinstance(video, Video) else read_video(video)
        pictures = [read_image(r) if isinstance(r, (str, Path)) else r for r in references]
        frames = self.working_frames(video, max_pixels)
        self._tell(video, frames)
        edited = self._run(frames, instruction, pictures, sampling or self.defaults.sampling, seed, on_step)
        return Video(resize(edited[: video.frame_count], video.height, video.width), Fraction(video.fps))

    def working_frames(self, video: Video, max_pixels: int | None = None) -> Pixels:
        """The source at the model's size and 4k + 1 frames, (F, H, W, 3); `max_pixels` as of `edit`."""
        max_pixels = self.defaults.max_pixels if max_pixels is None else max_pixels
        height, width = fit_size(video.height, video.width, max_pixels=max_pixels, multiple=self.model.size_multiple)
        padding = -(video.frame_count - 1) % self.model.vae.temporal_factor
        # Resized, not cropped: the result must cover all of the source.
        frames = resize(video.frames_FHWC, height, width)
        return np.concatenate([frames, np.repeat(frames[-1:], padding, axis=0)])

    def _tell(self, video: Video, frames: Pixels) -> None:
        """Say what is not worked on as it is."""
        count, height, width = frames.shape[:3]
        if video.frame_count > self.defaults.max_frames:
            log.warning(
                "the video has %d frames, the model was trained on at most %d: expect a weaker edit, and more memory",
                video.frame_count,
                self.defaults.max_frames,
            )
        if (count, height, width) != (video.frame_count, video.height, video.width):
            log.info(
                "working at %dx%d, %d frames (the video: %dx%d, %d)",
                height, width, count, video.height, video.width, video.frame_count,
            )  # fmt: skip

    def _run(
        self,
        frames: Pixels,
        instruction: str,
        pictures: Sequence[Pixels],
        sampling: Sampling,
        seed: int,
        on_step: Callable[[int, Tensor], None],
    ) -> Pixels:
        model, (height, width) = self.model, frames.shape[1:3]
        task = TaskKind.of(len(frames), len(pictures))
        source = video_tensor(frames[None]).to(self.device)
        references = video_tensor(letterboxed(pictures, height, width)[None]).transpose(1, 2).to(self.device)
        with eval_mode(model):
            conditions = model.encode(task, [frames], [instruction], [pictures], source, references)
            noise = make_noise(tuple(conditions.source_BCFHW.shape), seed, ["edit"], self.device)
            latents = denoise(model, conditions, noise, sampling, on_step)
            return pixels(model.vae.decode(latents)[0])
