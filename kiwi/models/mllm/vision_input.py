"""Preprocessing of images and videos for the MLLM's vision tower: sampling of frames, resizing, patches.

F frames, H height, W width.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kiwi.encoded import IMAGE, VIDEO, Pixels, Size
from kiwi.errors import SpecError
from kiwi.media.resize import resize, smart_resize
from kiwi.spec import Spec, require_positive


@dataclass(frozen=True, kw_only=True)
class VisionLimits(Spec):
    """Limits on the size of the MLLM's images and videos; the defaults are the published ones.

    Args:
        max_frames: largest number of frames; longer videos are sampled evenly.
        max_pixels_per_frame: largest height x width of a frame.
        min_pixels_per_frame: smallest height x width of a frame; smaller videos are enlarged.
        max_reference_tokens: largest number of visual tokens of a reference image (28 x 28 pixels each in Qwen2.5-VL).
    """

    max_frames: int = 16
    max_pixels_per_frame: int = 512 * 512
    min_pixels_per_frame: int = 128 * 28 * 28
    max_reference_tokens: int = 768

    def __post_init__(self) -> None:
        require_positive(self, "max_frames", "min_pixels_per_frame", "max_reference_tokens")
        if self.max_pixels_per_frame < 1.05 * self.min_pixels_per_frame:
            message = "max_pixels_per_frame must be at least 1.05 times min_pixels_per_frame"
            raise SpecError(message, code="out-of-range", got=self)


class VisionInput(NamedTuple):
    """An image or video, resized for the vision tower."""

    kind: int
    """`IMAGE` or `VIDEO`."""
    frames: Pixels

    @property
    def size(self) -> Size:
        """Number of frames, height and width."""
        frames, height, width = self.frames.shape[:3]
        return frames, height, width


class VisionPreprocessor:
    """Resizes images and videos as the published code does; processors of transformers cut them into patches."""

    def __init__(self, image_processor: Any, video_processor: Any, limits: VisionLimits) -> None:
        self.image_processor, self.video_processor, self.limits = image_processor, video_processor, limits
        self.token_side: int = image_processor.patch_size * image_processor.merge_size  # in pixels

    def prepare_source(self, frames: Pixels) -> VisionInput:
        """Resize a source video; one frame is an image."""
        if len(frames) == 1:
            return VisionInput(IMAGE, self.resize_image(frames[0])[None])
        return VisionInput(VIDEO, self.resize_video(frames))

    def prepare_reference(self, image: Pixels) -> VisionInput:
        """Resize a reference image (H, W, 3)."""
        return VisionInput(IMAGE, self.resize_image(image, self.limits.max_reference_tokens * self.token_side**2)[None])

    def num_tokens(self, size: Size) -> int:
        """Number of visual tokens of an image or video of this size."""
        frames, rows, columns = self.patch_grid(size)
        return frames * rows * columns // int(self.image_processor.merge_size) ** 2

    def patch_grid(self, size: Size) -> Size:
        """Number of temporal patches, rows and columns of an image or video of this size."""
        frames, height, width = size
        patch = int(self.image_processor.patch_size)
        return -(-frames // int(self.video_processor.temporal_patch_size)), height // patch, width // patch

    def to_patches(self, vision_input: VisionInput) -> Tensor:
        """Cut an image or video into patches, in the vision tower's order."""
        options: dict[str, Any] = {"return_tensors": "pt", "do_resize": False}
        if vision_input.kind == IMAGE:
            return self.image_processor(images=[vision_input.frames[0]], **options)["pixel_values"]
        videos = [torch.from_numpy(vision_input.frames).permute(0, 3, 1, 2)]
        return self.video_processor(videos=videos, do_sample_frames=False, **options)["pixel_values_videos"]

    def resize_image(self, image: Pixels, max_pixels: int | None = None) -> Pixels:
        """Resize an image (H, W, 3) to at least 4 whole visual tokens."""
        area = self.token_side**2
        limit = 16384 * area if max_pixels is None else max_pixels
        size = smart_resize(*image.shape[:2], factor=self.token_side, min_pixels=4 * area, max_pixels=limit)
        return resize(image[None], *size)[0]

    def resize_video(self, frames: Pixels) -> Pixels:
        """Sample at most `max_frames` frames evenly, and resize them in two steps, as the published code does."""
        if len(frames) > self.limits.max_frames:
            frames = frames[np.linspace(0, len(frames) - 1, self.limits.max_frames).round().astype(int)]
        limits, side = self.limits, self.token_side
        coarse = smart_resize(
            *frames.shape[1:3],
            factor=2 * side,
            min_pixels=min(4 * (2 * side) ** 2, limits.min_pixels_per_frame),
            max_pixels=limits.max_pixels_per_frame,
        )
        # The published limit: 768 visual tokens per frame, or fewer if many frames share the total of 115200.
        frame_pixels = min(768 * side**2, 115200 * side**2 / len(frames) * 2)
        frame_pixels = max(frame_pixels, int(1.05 * limits.min_pixels_per_frame))
        fine = smart_resize(
            *coarse,
            factor=side,
            min_pixels=limits.min_pixels_per_frame,
            max_pixels=int(min(limits.max_pixels_per_frame, frame_pixels)),
        )
        return _resize_in_float32(resize(frames, *coarse), *fine)


def _resize_in_float32(frames: Pixels, height: int, width: int) -> Pixels:
    """Resize frames bicubically in float32, as the published code does in its second step (Pillow does the first)."""
    if frames.shape[1:3] == (height, width):
        return frames
    pixels_FCHW = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    resized = torch.nn.functional.interpolate(pixels_FCHW, (height, width), mode="bicubic", antialias=True)
    return resized.clamp(0, 255).round().byte().permute(0, 2, 3, 1).numpy()
