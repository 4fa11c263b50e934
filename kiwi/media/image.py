"""Reading of images to 8-bit RGB, writing, and resizing of images and video frames.

`fit_size` and `smart_resize` compute sizes; `crop_resize`, `resize` and `letterbox` resample to them, always with PIL
bicubic as in the published pipeline.

Shape suffixes: F frames, H height, W width, C channels (3, RGB). All pixels are uint8.
"""

import io
import math
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from kiwi.errors import InputError, MediaError
from kiwi.media.files import atomic_path

# Raster formats only: Pillow detects EPS files by content and would run Ghostscript on them.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA", "ICO")
_WRITERS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
MAX_IMAGE_PIXELS = 89_478_485  # Pillow's own limit against decompression bombs
_WHITE = (255, 255, 255)


def read_image(source: Path | str | bytes, *, name: str | None = None) -> np.ndarray:
    """Read an image (a path, or the encoded bytes) as uint8 RGB `[H, W, 3]`.

    EXIF orientation is applied, transparency is composited on white, 16-bit grey is scaled to 8 bits, and only the
    first frame of an animation is read. Error messages call the image `name`, by default its path.

    Raises:
        MediaError: the file does not exist, is not an image, is damaged or is too large.
    """
    title = _describe_source(source, name)
    with _open_image(source, title) as image:
        try:
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image), title)
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            raise MediaError(f"{title} is truncated or corrupt", code="damaged-image", got=error) from None


def check_image(source: Path | str | bytes, *, name: str | None = None) -> None:
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
    image = _to_pil(require_rgb(image_HWC, "HWC"))
    options = {"quality": 95, "subsampling": 0} if file_format == "JPEG" else {}
    with atomic_path(path) as temporary:
        image.save(temporary, file_format, **options)


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
        result[index] = np.asarray(_to_pil(frame).resize((width, height), Image.Resampling.BICUBIC))
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
    image = _to_pil(require_rgb(image_HWC, "HWC"))
    _require_positive(height=height, width=width)
    if not 0 < shrink <= 1:
        raise InputError("shrink is out of range", code="out-of-range", got=shrink, expected="above 0, at most 1")
    fitted = _fit_inside(image.size, (width, height))
    # Resampled once to the final size, because resampling twice would blur.
    new_width, new_height = (max(1, round(side * shrink)) for side in fitted)
    canvas = Image.new("RGB", (width, height), _WHITE)
    offset = (round((width - new_width) * 0.5), round((height - new_height) * 0.5))
    canvas.paste(image.resize((new_width, new_height), Image.Resampling.BICUBIC), offset)
    return np.array(canvas)


def contact_sheet(
    rows: list[list[np.ndarray]], labels: list[str] | None = None, column_titles: list[str] | None = None, gap: int = 4
) -> np.ndarray:
    """Arrange images in a grid `[H, W, 3]`, with a label to the left of each row and a title above each column.

    Every cell has the size of the largest image; smaller ones are letterboxed. Rows may differ in length.

    Raises:
        ValueError: there is no image, or the number of labels differs from the number of rows.
    """
    columns = max(len(row) for row in rows)
    images = [image for row in rows for image in row]
    cell_height = max(require_rgb(image, "HWC").shape[0] for image in images)
    cell_width = max(image.shape[1] for image in images)

    label_images = [None] * len(rows) if labels is None else [_render_text(label, 160) for label in labels]
    title_images = [_render_text(title, cell_width) for title in column_titles or ()]
    left = gap + max(label.width + gap if label else 0 for label in label_images)
    top = gap + max((title.height + gap for title in title_images), default=0)
    row_height = max([cell_height, *(label.height for label in label_images if label)])
    size = (left + columns * (cell_width + gap), top + len(rows) * (row_height + gap))
    sheet = Image.new("RGB", size, _WHITE)
    for column, title in enumerate(title_images):
        sheet.paste(title, (left + column * (cell_width + gap), gap))
    for index, (row, label) in enumerate(zip(rows, label_images, strict=True)):
        y = top + index * (row_height + gap)
        if label:
            sheet.paste(label, (gap, y))
        for column, image in enumerate(row):
            sheet.paste(_to_pil(letterbox(image, cell_height, cell_width)), (left + column * (cell_width + gap), y))
    return np.array(sheet)


def _describe_source(source: Path | str | bytes, name: str | None) -> str:
    """Describe an image for error messages."""
    if isinstance(source, bytes):
        return f"the image bytes of {name}" if name else "the image given as bytes"
    return name or str(source)


def _open_image(source: Path | str | bytes, title: str) -> Image.Image:
    """Open an image of an accepted format and size; its pixels are not decoded."""
    problem = f"{title} has more than {MAX_IMAGE_PIXELS / 1e6:.0f} megapixels"
    too_large = MediaError(problem, code="image-too-large", fix="downscale it first")
    try:
        Image.init()  # registers every reader that this build of Pillow has; a second call is free
        stream = io.BytesIO(source) if isinstance(source, bytes) else source
        image = Image.open(stream, formats=[name for name in _FORMATS if name in Image.OPEN])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise too_large from None
    except UnidentifiedImageError:
        expected = "PNG, JPEG, WebP or another raster format"
        raise MediaError(f"{title} is not an image", code="unreadable-image", expected=expected) from None
    except FileNotFoundError:
        raise MediaError(f"the image {title} does not exist", code="missing-file", fix="check the path") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise MediaError(f"{title} cannot be read as an image", code="unreadable-image", got=error) from None
    if image.width * image.height > MAX_IMAGE_PIXELS:
        image.close()
        raise too_large
    return image


def _to_rgb(image: Image.Image, title: str) -> np.ndarray:
    values = np.asarray(image).astype(np.int64) if image.mode.startswith("I") else None
    if image.mode == "F" or (values is not None and (values.min() < 0 or values.max() > 65535)):
        problem = f"{title} has 32-bit or floating-point pixels, whose range is unknown"
        raise MediaError(problem, code="unsupported-colours", expected="8 or 16 bits per channel")
    if values is not None:
        grey = ((values + 128) // 257).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*_WHITE, 255)), image)
    return np.array(image.convert("RGB"))


def _fit_inside(size: tuple[int, int], box: tuple[int, int]) -> tuple[int, int]:
    """The largest (width, height) of the same aspect ratio inside `box`, rounded like PIL's `ImageOps.contain`."""
    (width, height), (box_width, box_height) = size, box
    if width / height > box_width / box_height:
        return box_width, round(height / width * box_width)
    return round(width / height * box_height), box_height


def _render_text(text: str, width: int) -> Image.Image:
    """Render text in PIL's default font, black on white, wrapped to about `width` pixels."""
    font = ImageFont.load_default()
    per_line = max(1, int(width / font.getlength("n")))
    wrapped = "\n".join(line for part in text.splitlines() for line in textwrap.wrap(part, per_line)) or " "
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    _, _, right, bottom = measure.multiline_textbbox((0, 0), wrapped, font=font)
    image = Image.new("RGB", (math.ceil(min(right, width)) + 1, math.ceil(bottom) + 2), _WHITE)
    ImageDraw.Draw(image).multiline_text((0, 0), wrapped, fill=(0, 0, 0), font=font)
    return image


def _to_pil(image_HWC: np.ndarray) -> Image.Image:
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


def _require_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise InputError(f"{name} must be at least 1", code="out-of-range", got=value)
