"""Images and animated images: reading to 8-bit RGB as displayed, and writing.

Shape suffixes: F frames, H height, W width, C channels (3, RGB). All pixels are uint8.
"""

import hashlib
import io
import logging
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache, cached_property
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from kiwi.errors import InputError, MediaError
from kiwi.media.files import atomic_path

log = logging.getLogger(__name__)

# Raster formats only: Pillow detects EPS files by content and would run Ghostscript on them.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA", "ICO", "HEIF")
_ANIMATED_FORMATS = ("PNG", "WEBP", "GIF", "AVIF")  # the pages of a TIFF are not frames
# Browsers display frames of up to 10 ms, with which old programs mean "as fast as possible", for 100 ms.
_SHORTEST_FRAME, _DEFAULT_FRAME = Fraction(11, 1000), Fraction(100, 1000)
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_WRITERS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
MAX_IMAGE_PIXELS = 89_478_485  # Pillow's own limit against decompression bombs
MAX_IMAGE_SIDE = 65_535  # the limit of JPEG; a picture of 1 x 80,000,000 pixels is a bomb too
WHITE = (255, 255, 255)


@dataclass(frozen=True)
class EncodedMedia:
    """An encoded image or video (PNG, MP4, ...) in memory instead of a file; error messages call it `name`."""

    data: bytes
    name: str = field(compare=False)

    def __str__(self) -> str:
        return self.name

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of the content, as 64 hexadecimal digits."""
        return hashlib.sha256(self.data).hexdigest()


MediaSource = Path | EncodedMedia
"""Where an image or a video is read from; its text is what error messages call it."""


def read_image(source: MediaSource | str | bytes, *, name: str | None = None) -> np.ndarray:
    """Read an image (a path, or its encoded content) as uint8 RGB `[H, W, 3]`.

    EXIF orientation is applied, an embedded colour profile is converted to sRGB, transparency is composited on white
    and 16-bit grey is scaled to 8 bits. Only the first frame of an animation is read, with a warning. Error messages
    call the image `name`, by default its path.

    Raises:
        MediaError: the file does not exist, is not an image, is damaged or is too large.
    """
    title = _describe_source(source, name)
    with _open_image(source, title) as image:
        if _is_animated(image):
            log.warning("%s is an animation of %d frames; only the first one is used", title, _count_frames(image))
        return _decode(image, title)


def count_animation_frames(source: MediaSource) -> int | None:
    """The number of frames of an image file, more than 1 for an animation; None for other files, such as videos.

    The content decides, not the suffix.

    Raises:
        MediaError: an image that is damaged or too large.
    """
    try:
        image = _open_image(source, str(source))
    except MediaError as error:
        if error.code == "unreadable-image":
            return None
        raise
    with image:
        return _count_frames(image) - _is_default_image_apart(image) if _is_animated(image) else 1


def read_animation(source: MediaSource) -> Iterator[tuple[Fraction, np.ndarray, Fraction]]:
    """Yield the frames of an animated image: time in seconds, uint8 RGB `[H, W, 3]` and duration in seconds.

    Raises:
        MediaError: a damaged frame.
    """
    with _open_image(source, str(source)) as image:
        time = Fraction(0)
        for index in range(int(_is_default_image_apart(image)), _count_frames(image)):
            image.seek(index)
            pixels = _decode(image, str(source))  # sets the duration of some formats
            duration = Fraction(round(image.info.get("duration", 0)), 1000)
            duration = duration if duration >= _SHORTEST_FRAME else _DEFAULT_FRAME
            yield time, pixels, duration
            time += duration


def check_image(source: MediaSource | str | bytes, *, name: str | None = None) -> None:
    """Raise the MediaErrors of `read_image`, except for damage after the header: only the header is read."""
    _open_image(source, _describe_source(source, name)).close()


def write_image(path: Path | str, image_HWC: np.ndarray) -> None:
    """Write uint8 RGB `[H, W, 3]` as PNG or JPEG (quality 95, no chroma subsampling), atomically.

    Raises:
        InputError: an unsupported suffix, pixels that are not uint8 RGB, or a missing folder.
    """
    path = Path(path)
    file_format = _WRITERS.get(path.suffix.lower())
    if file_format is None:
        expected = f"a path that ends in {' or '.join(_WRITERS)}"
        raise InputError(f"cannot write the image {path}", code="wrong-suffix", expected=expected)
    image = to_pil(require_rgb(image_HWC, "HWC"))
    options = {"quality": 95, "subsampling": 0} if file_format == "JPEG" else {}
    with atomic_path(path) as temporary:
        image.save(temporary, file_format, **options)


def _describe_source(source: MediaSource | str | bytes, name: str | None) -> str:
    """Describe an image for error messages."""
    if isinstance(source, bytes):
        return f"the image bytes of {name}" if name else "the image given as bytes"
    return name or str(source)


def _open_image(source: MediaSource | str | bytes, title: str) -> Image.Image:
    """Open an image of an accepted format and size; its pixels are not decoded."""
    source = source.data if isinstance(source, EncodedMedia) else source
    problem = f"{title} has more than {MAX_IMAGE_PIXELS / 1e6:.0f} megapixels, or {MAX_IMAGE_SIDE} on a side"
    too_large = MediaError(problem, code="image-too-large", fix="downscale it first")
    try:
        _register_readers()
        stream = io.BytesIO(source) if isinstance(source, bytes) else _require_image_file(source)
        image = Image.open(stream, formats=[name for name in _FORMATS if name in Image.OPEN])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise too_large from None
    except UnidentifiedImageError:
        if _is_heif(source):
            problem = f"{title} is a HEIC image, which Pillow cannot read"
            fix = "convert it to PNG or JPEG, or pip install 'kiwi-video[heic]'"
            raise MediaError(problem, code="unsupported-image", fix=fix) from None
        expected = "PNG, JPEG, WebP or another raster format"
        raise MediaError(f"{title} is not an image", code="unreadable-image", expected=expected) from None
    except FileNotFoundError:
        raise MediaError(f"the image {title} does not exist", code="missing-file", fix="check the path") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise MediaError(f"{title} cannot be read as an image", code="unreadable-image", got=error) from None
    if not is_acceptable_size(image.width, image.height):
        image.close()
        raise too_large
    return image


def _require_image_file(path: Path | str) -> Path:
    """The path, unless it is a pipe or device, which may wait forever; errors are those of `open`."""
    mode = Path(path).stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ValueError("it is a device or pipe")
    return Path(path)


def is_acceptable_size(width: int, height: int) -> bool:
    """Whether a picture is small enough to decode; the headers of some small files announce enormous ones."""
    return width * height <= MAX_IMAGE_PIXELS and max(width, height) <= MAX_IMAGE_SIDE


def _decode(image: Image.Image, title: str) -> np.ndarray:
    """Decode the current frame of an image to RGB as displayed."""
    try:
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image), title)
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise MediaError(f"{title} is truncated or corrupt", code="damaged-image", got=error) from None


@cache
def _register_readers() -> None:
    """Register every reader of this build of Pillow, and the one of HEIC images if its package is installed."""
    Image.init()
    with suppress(ImportError):
        import pillow_heif  # an optional package

        pillow_heif.register_heif_opener()


def _is_heif(source: Path | str | bytes) -> bool:
    if not isinstance(source, bytes):
        with Path(source).open("rb") as file:
            source = file.read(12)
    return source[4:8] == b"ftyp" and source[8:12] in _HEIF_BRANDS


def _is_animated(image: Image.Image) -> bool:
    return image.format in _ANIMATED_FORMATS and _count_frames(image) > 1


def _count_frames(image: Image.Image) -> int:
    return int(getattr(image, "n_frames", 1))  # readers of still formats have no such attribute


def _is_default_image_apart(image: Image.Image) -> bool:
    """Whether the first picture of an animated PNG is only for programs that do not display animations."""
    return bool(getattr(image, "default_image", False))


def _convert_to_srgb(image: Image.Image, title: str) -> Image.Image:
    """Convert the colours of an image with an embedded profile to sRGB."""
    data = image.info.get("icc_profile")
    if not data or image.mode.startswith(("I", "F")):
        return image
    if image.mode == "P":
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    has_alpha = image.mode in ("RGBA", "LA")
    opaque = image.convert(image.mode[:-1]) if has_alpha else image
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), opaque.mode, "RGB")
        if opaque.mode == "RGB" and _is_identity(transform):
            return image  # a profile of sRGB itself, whose rounding would change pixels by one level
        converted = ImageCms.applyTransform(opaque, transform)
        assert converted is not None  # only a transform in place returns nothing
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        log.warning("%s has a colour profile that cannot be applied (%s); its colours are read as sRGB", title, error)
        return image
    if has_alpha:
        converted.putalpha(image.getchannel("A"))
    return converted


def _is_identity(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether a transform changes a grid of RGB colours by at most two levels."""
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(9, 81, 3)
    converted = np.asarray(ImageCms.applyTransform(to_pil(grid), transform))
    return int(np.abs(converted.astype(int) - grid).max()) <= 2


def _to_rgb(image: Image.Image, title: str) -> np.ndarray:
    values = np.asarray(image).astype(np.int64) if image.mode.startswith("I") else None
    if image.mode == "F" or (values is not None and (values.min() < 0 or values.max() > 65535)):
        problem = f"{title} has 32-bit or floating-point pixels, whose range is unknown"
        raise MediaError(problem, code="unsupported-colours", expected="8 or 16 bits per channel")
    if values is not None:
        grey = ((values + 128) // 257).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    image = _convert_to_srgb(image, title)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*WHITE, 255)), image)
    return np.array(image.convert("RGB"))


def to_pil(image_HWC: np.ndarray) -> Image.Image:
    """Convert uint8 RGB `[H, W, 3]` to a PIL image."""
    return Image.fromarray(np.ascontiguousarray(image_HWC))


def require_rgb(pixels: np.ndarray, axes: str) -> np.ndarray:
    """Return the pixels if they are uint8 RGB, not empty, and have the axes "HWC" or "FHWC", else raise InputError."""
    if pixels.dtype != np.uint8 or pixels.ndim != len(axes) or pixels.shape[-1] != 3 or not pixels.size:
        raise InputError(
            "not an RGB image" if axes == "HWC" else "not RGB frames",
            code="invalid-pixels",
            got=f"{pixels.dtype} {pixels.shape}",
            expected=f"uint8 [{', '.join(axes[:-1])}, 3], not empty",
            fix="convert floats in [-1, 1] with kiwi.media.video.to_uint8",
        )
    return pixels
