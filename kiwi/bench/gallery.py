"""The gallery: one self-contained HTML file with every item's videos, scores and the judge's answers."""

import base64
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from jinja2 import Environment, PackageLoader, select_autoescape

from kiwi import console
from kiwi.bench.controls import get_control_kind
from kiwi.bench.ledger import Judgement
from kiwi.bench.runner import JudgingTask
from kiwi.bench.scoring import ItemScore
from kiwi.errors import KiwiError
from kiwi.media.files import write_text
from kiwi.media.image import read_image, resize, write_image
from kiwi.media.video import read_video, write_video

PREVIEW_HEIGHT, PREVIEW_CRF = 200, 28
"""Maximum height of a preview in pixels, and its x264 CRF."""

WORKERS = 4
"""Number of previews that are encoded concurrently; each holds a whole video in memory."""

ENLARGED_BELOW = 96
"""Videos below this height are enlarged by a whole factor, so that single pixels are visible."""


@dataclass(frozen=True, kw_only=True)
class GalleryCard:
    """An edited video in the gallery.

    Args:
        task: the edited video, its item and the instruction it was judged by.
        score: score of the video; None if it has none.
        judgements: the judge's answers, one for each repeat.
        reason: reason for a missing score.
        control: kind of control, an edit that is known to be bad; empty for a real edit.
    """

    task: JudgingTask
    score: ItemScore | None
    judgements: Sequence[Judgement]
    reason: str | None = None
    control: str = ""


def make_gallery_cards(
    tasks: Sequence[JudgingTask],
    judgements: Sequence[Judgement],
    scored: Sequence[ItemScore],
    failures: Mapping[str, str],
) -> list[GalleryCard]:
    """Make a card for each judged task."""
    scores = {score.item.id: score for score in scored}
    by_task: dict[str, list[Judgement]] = {}
    for judgement in judgements:
        by_task.setdefault(judgement.key.item, []).append(judgement)
    return [
        GalleryCard(
            task=task,
            score=scores.get(task.id),
            judgements=by_task.get(task.id, []),
            reason=failures.get(task.id),
            control=get_control_kind(task.id),
        )
        for task in tasks
    ]


def write_gallery(
    out: Path, title: str, about: Sequence[str], warnings: Sequence[str], cards: Sequence[GalleryCard]
) -> None:
    """Write the HTML page: title, lines about the run, warnings, and the cards in their initial order."""
    pages = Environment(loader=PackageLoader("kiwi.bench", "."), autoescape=select_autoescape(["html"]))
    videos = {path: _encode_video for card in cards for path in (card.task.item.source, card.task.edited)}
    images = {path: _encode_image for card in cards if (path := card.task.item.reference) is not None}
    previews = _encode_previews(videos | images)
    page = pages.get_template("gallery.html").render(
        title=title,
        about=about,
        warnings=warnings,
        cards=cards,
        previews=previews,
        categories=list(dict.fromkeys(card.task.item.category for card in cards)),
        controls=list(dict.fromkeys(card.control for card in cards if card.control)),
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
