"""What a video looks like when it is displayed: colours, transparency, rotation and the shape of its pixels.

This is the only place that decides it: `probe`, `read_video` and all that is built on them show the same picture.
Interlaced and HDR videos are read as they are, with a warning, because deinterlacing and tone mapping are choices that
the user should make.
"""

import logging
from fractions import Fraction
from functools import cache
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.reformatter import ColorRange, ColorTrc, Interpolation
from PIL import Image

from kiwi.errors import MediaError
from kiwi.media.container import too_large_for_memory
from kiwi.media.image import MediaSource

log = logging.getLogger(__name__)

# Without these flags swscale has errors of up to two grey levels, which differ between CPUs.
EXACT_SCALING = (
    Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.BITEXACT
)

# ITU-T H.273 MatrixCoefficients that swscale does not support, and the nearest supported ones: reserved -> unspecified,
# BT.2020 constant luminance -> non-constant luminance.
_SUPPORTED_MATRICES = {3: 2, 10: 9}
_HDR_TRANSFERS = {ColorTrc.SMPTE2084: "PQ", ColorTrc.ARIB_STD_B67: "HLG"}
# Larger pixel aspect ratios (and smaller ones than its inverse) are treated as a damaged header.
_MAX_PIXEL_ASPECT = 8


def to_rgb(frame: Any, size: tuple[int, int], pixel_aspect: Fraction, source: MediaSource) -> np.ndarray:
    """Convert a decoded frame to uint8 RGB `[H, W, 3]` as displayed, with transparency on white.

    Args:
        frame: decoded frame.
        size: (width, height) in stored pixels; a frame of another size is scaled, because the size may change within a
            stream.
        pixel_aspect: width of a stored pixel divided by its height.
        source: video that an error names.

    Raises:
        MediaError: the pixel format cannot be converted, or the frame does not fit into memory.
    """
    frame.colorspace = _SUPPORTED_MATRICES.get(frame.colorspace, frame.colorspace)
    has_alpha = any(component.is_alpha for component in frame.format.components)
    try:
        image = frame.to_ndarray(
            format="rgba" if has_alpha else "rgb24",
            width=size[0],
            height=size[1],
            interpolation=EXACT_SCALING,
            dst_color_range=ColorRange.JPEG,
        )
    except MemoryError:
        raise too_large_for_memory(source, *size) from None
    except (av.error.FFmpegError, ValueError) as error:
        raise MediaError(
            f"{source} has colours that cannot be converted to RGB",
            code="unsupported-colours",
            got=f"{frame.format.name}, matrix {frame.colorspace} ({error})",
            fix="convert it to yuv420p with BT.709 colours first",
        ) from None
    if has_alpha:
        opacity = image[..., 3:].astype(np.uint16)
        image = ((image[..., :3] * opacity + 255 * (255 - opacity) + 127) // 255).astype(np.uint8)
    shape = _square_pixel_shape(*size, pixel_aspect)
    if shape != size:
        image = np.asarray(Image.fromarray(image).resize(shape, Image.Resampling.BICUBIC))
    orientation = read_orientation(frame)
    if orientation.transpose:
        image = image.transpose(1, 0, 2)
    return image[:: -1 if orientation.mirror_y else 1, :: -1 if orientation.mirror_x else 1]


def displayed_size(frame: Any, pixel_aspect: Fraction) -> tuple[int, int]:
    """(height, width) of a decoded frame as displayed."""
    width, height = _square_pixel_shape(frame.width, frame.height, pixel_aspect)
    return (width, height) if read_orientation(frame).transpose else (height, width)


def pixel_aspect_ratio(stream: Any) -> Fraction:
    """Width divided by height of a stored pixel; 1 if the file does not say, or says what cannot be."""
    ratio = stream.sample_aspect_ratio
    return ratio if ratio and Fraction(1, _MAX_PIXEL_ASPECT) <= ratio <= _MAX_PIXEL_ASPECT else Fraction(1)


def warn_of_unusual_frames(frame: Any, source: MediaSource) -> None:
    """Log a warning if a frame is interlaced or HDR, once per file."""
    if frame.interlaced_frame:
        warn_once(f"{source} is interlaced: each frame mixes the lines of two moments; deinterlace it first")
    if (transfer := _HDR_TRANSFERS.get(frame.color_trc)) is not None:
        warn_once(
            f"{source} is an HDR video ({transfer}): it is read without tone mapping and looks dull; convert to SDR"
        )


@cache
def warn_once(message: str) -> None:
    """Log a warning, but not a second time."""
    log.warning(message)


def _square_pixel_shape(width: int, height: int, pixel_aspect: Fraction) -> tuple[int, int]:
    """(width, height) with square pixels; one side grows and the other stays, as the HTML standard has it."""
    if pixel_aspect >= 1:
        return round(width * pixel_aspect), height
    return width, round(height / pixel_aspect)


class Orientation(NamedTuple):
    """How to display a decoded frame: whether to exchange x and y, and then whether to mirror x and y."""

    transpose: bool
    mirror_x: bool
    mirror_y: bool

    @property
    def rotation(self) -> int:
        """Clockwise rotation in degrees; of a mirrored orientation, 90 if it transposes and else 0."""
        rotations = {(True, True, False): 90, (False, True, True): 180, (True, False, True): 270}
        return rotations.get(self, 90 if self.transpose else 0)


def read_orientation(frame: Any) -> Orientation:
    """Read the orientation of a decoded frame, with rotations rounded to multiples of 90 degrees."""
    matrix = next((data for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), None)
    if matrix is None:
        return Orientation(False, False, False)
    # The 3x3 matrix maps x to a x + c y and y to b x + d y.
    a, b, _, c, d = (int(value) for value in np.frombuffer(bytes(matrix), np.int32)[:5])
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(True, c < 0, b < 0)
    return Orientation(False, a < 0, d < 0)
