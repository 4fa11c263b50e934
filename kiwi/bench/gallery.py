"""The gallery: one self-contained HTML file with every item's videos, scores and the judge's answers."""

import base64
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from jinja2 import Environment, PackageLoader, select_autoescape

from kiwi import console
from kiwi.bench.controls import get_control_kind
from kiwi.bench.scoring import JudgedTask
from kiwi.errors import KiwiError
from kiwi.media.files import write_text
from kiwi.media.image import read_image, write_image
from kiwi.media.resize import resize
from kiwi.media.video import read_video, write_video
from kiwi.printable import escape_controls

PREVIEW_HEIGHT, PREVIEW_CRF = 200, 28
"""Maximum height of a preview in pixels, and its x264 CRF."""

WORKERS = 4
"""Number of previews that are encoded concurrently; each holds a whole video in memory."""

ENLARGED_BELOW = 96
"""Videos below this height are enlarged by a whole factor, so that single pixels are visible."""


def write_gallery(
    out: Path, title: str, about: Sequence[str], warnings: Sequence[str], cards: Sequence[JudgedTask]
) -> None:
    """Write the HTML page: title, warnings, lines about the run, and a card for each edit and control."""
    environment = Environment(
        loader=PackageLoader("kiwi.bench", "."),
        autoescape=select_autoescape(["html"]),
        finalize=lambda value: escape_controls(value) if isinstance(value, str) else value,
    )
    videos = {path: _encode_video for card in cards for path in (card.task.item.source, card.task.edited)}
    images = {path: _encode_image for card in cards if (path := card.task.item.reference) is not None}
    kinds = dict.fromkeys(get_control_kind(card.task.id) for card in cards)
    page = environment.get_template("gallery.html").render(
        title=title,
        about=about,
        warnings=warnings,
        cards=cards,
        previews=_encode_previews(videos | images),
        categories=list(dict.fromkeys(card.task.item.category for card in cards)),
        get_control_kind=get_control_kind,
        controls=[kind for kind in kinds if kind],
    )
    write_text(out, page)


def _encode_previews(encoders: Mapping[Path, Callable[[Path, Path], str]]) -> dict[Path, str | None]:
    """Encode each file once as a data URI; None for a file that cannot be read."""

    def encode(path: Path, preview: Path) -> str | None:
        try:
            return encoders[path](path, preview)
        except KiwiError:
            return None

    with TemporaryDirectory() as folder, ThreadPoolExecutor(WORKERS) as pool:
        futures = {path: pool.submit(encode, path, Path(folder) / str(i)) for i, path in enumerate(encoders)}
        return {path: future.result() for path, future in console.progress(list(futures.items()), "gallery")}


def _encode_video(path: Path, preview: Path) -> str:
    video, file = read_video(path), preview.with_suffix(".mp4")
    frames_FHWC = resize(video.frames_FHWC, *_compute_preview_size(video.height, video.width))
    write_video(file, frames_FHWC, video.fps, crf=PREVIEW_CRF)
    return _make_data_uri("video/mp4", file)


def _encode_image(path: Path, preview: Path) -> str:
    image, file = read_image(path), preview.with_suffix(".png")
    write_image(file, resize(image[None], *_compute_preview_size(*image.shape[:2]))[0])
    return _make_data_uri("image/png", file)


def _make_data_uri(mime: str, file: Path) -> str:
    return f"data:{mime};base64," + base64.b64encode(file.read_bytes()).decode()


def _compute_preview_size(height: int, width: int) -> tuple[int, int]:
    """Height (at most PREVIEW_HEIGHT) and width of a preview, both even as x264 requires."""
    scale = max(1, PREVIEW_HEIGHT // height) if height < ENLARGED_BELOW else min(1.0, PREVIEW_HEIGHT / height)
    even = [max(2, round(side * scale / 2) * 2) for side in (height, width)]
    return even[0], even[1]
