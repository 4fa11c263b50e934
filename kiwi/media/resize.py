"""Sizes for the models, and resizing of images and video frames, always with PIL bicubic as in the published pipeline.

Shape suffixes: F frames, H height, W width, C channels (3, RGB). All pixels are uint8.
"""

import math

import numpy as np
from PIL import Image

from kiwi.errors import InputError
from kiwi.media.image import WHITE, require_rgb, to_pil


def fit_size(height: int, width: int, *, max_pixels: int | None, multiple: int) -> tuple[int, int]:
    """Compute the size (height, width) to which a video is resized for the model, by the published rule.

    Above `max_pixels` both sides are divided by the same factor and rounded down. Then both are rounded down to
    multiples of `multiple`, but to at least `multiple` itself.

    Raises:
        InputError: a size, limit or multiple below 1.
    """
    _require_positive(height=height, width=width, multiple=multiple)
    if max_pixels is not None:
        _require_positive(max_pixels=max_pixels)
        if height * width > max_pixels:
            scale = math.sqrt(height * width / max_pixels)
            height, width = int(height / scale), int(width / scale)
    return max(multiple, height // multiple * multiple), max(multiple, width // multiple * multiple)


def smart_resize(height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Compute the size (height, width) of an image or frame for the MLLM, by Qwen-VL's rule.

    Both sides are rounded to multiples of `factor` (halves to even, as in Python). If the area is then outside
    [`min_pixels`, `max_pixels`], the original sides are scaled to bring it inside.

    Raises:
        InputError: a size or factor below 1, or `min_pixels` above `max_pixels`.
    """
    _require_positive(height=height, width=width, factor=factor)
    if min_pixels > max_pixels:
        raise InputError("min_pixels is above max_pixels", code="out-of-range", got=f"{min_pixels} and {max_pixels}")
    new_height = max(factor, round(height / factor) * factor)
    new_width = max(factor, round(width / factor) * factor)
    if new_height * new_width > max_pixels:
        scale = math.sqrt(height * width / max_pixels)
        new_height = max(factor, math.floor(height / scale / factor) * factor)
        new_width = max(factor, math.floor(width / scale / factor) * factor)
    elif new_height * new_width < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * scale / factor) * factor
        new_width = math.ceil(width * scale / factor) * factor
    return new_height, new_width


def snap_frames(count: int) -> int:
    """Round a number of frames down to 4k + 1, at least 1: a length that the causal VAE accepts."""
    return max(1, (count - 1) // 4 * 4 + 1)


def resize(frames_FHWC: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize every frame to `height` x `width` with PIL bicubic; frames of that size are returned unchanged.

    Raises:
        InputError: frames that are not uint8 RGB `[F, H, W, 3]`, or a size below 1.
    """
    require_rgb(frames_FHWC, "FHWC")
    _require_positive(height=height, width=width)
    if frames_FHWC.shape[1:3] == (height, width):
        return frames_FHWC
    result = np.empty((len(frames_FHWC), height, width, 3), np.uint8)
    for index, frame in enumerate(frames_FHWC):
        result[index] = np.asarray(to_pil(frame).resize((width, height), Image.Resampling.BICUBIC))
    return result


def crop_resize(frames_FHWC: np.ndarray, height: int, width: int) -> np.ndarray:
    """Crop the centre of every frame to the aspect ratio of `height` x `width`, then resize it (PIL bicubic).

    The crop is in whole pixels, so the remaining pixels are unchanged where no resizing is needed.

    Raises:
        InputError: frames that are not uint8 RGB `[F, H, W, 3]`, or a size below 1.
    """
    require_rgb(frames_FHWC, "FHWC")
    _require_positive(height=height, width=width)
    old_height, old_width = frames_FHWC.shape[1:3]
    crop_height = min(old_height, max(1, round(old_width * height / width)))
    crop_width = min(old_width, max(1, round(old_height * width / height)))
    top, left = (old_height - crop_height) // 2, (old_width - crop_width) // 2
    return resize(frames_FHWC[:, top : top + crop_height, left : left + crop_width], height, width)


def letterbox(image_HWC: np.ndarray, height: int, width: int, *, shrink: float = 1.0) -> np.ndarray:
    """Fit a whole image, scaled by `shrink`, into the centre of a white `height` x `width` canvas.

    `shrink=1` is how the published inference prepares reference images (PIL's `ImageOps.pad`, bicubic); in training
    `shrink` is drawn from [0.7, 1].

    Raises:
        InputError: an image that is not uint8 RGB `[H, W, 3]`, a size below 1, or `shrink` outside (0, 1].
    """
    image = to_pil(require_rgb(image_HWC, "HWC"))
    _require_positive(height=height, width=width)
    if not 0 < shrink <= 1:
        raise InputError("shrink is out of range", code="out-of-range", got=shrink, expected="above 0, at most 1")
    fitted = _fit_inside(image.size, (width, height))
    # Resampled once to the final size, because resampling twice would blur.
    new_width, new_height = (max(1, round(side * shrink)) for side in fitted)
    canvas = Image.new("RGB", (width, height), WHITE)
    offset = (round((width - new_width) * 0.5), round((height - new_height) * 0.5))
    canvas.paste(image.resize((new_width, new_height), Image.Resampling.BICUBIC), offset)
    return np.array(canvas)


def _fit_inside(size: tuple[int, int], box: tuple[int, int]) -> tuple[int, int]:
    """The largest (width, height) of the same aspect ratio inside `box`, rounded like PIL's `ImageOps.contain`."""
    (width, height), (box_width, box_height) = size, box
    if width / height > box_width / box_height:
        return box_width, round(height / width * box_width)
    return round(width / height * box_height), box_height


def _require_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise InputError(f"{name} must be at least 1", code="out-of-range", got=value)
