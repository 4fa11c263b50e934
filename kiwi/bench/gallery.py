"""The gallery: one HTML file that shows every item, its scores and the judge's words; it needs no other file."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from jinja2 import Environment, PackageLoader, select_autoescape

from kiwi import console
from kiwi.bench.case import Case
from kiwi.bench.ledger import Judgement
from kiwi.bench.scoring import ItemScore
from kiwi.errors import KiwiError
from kiwi.media.files import write_text
from kiwi.media.image import read_image, resize, write_image
from kiwi.media.video import read_video, write_video

HEIGHT, QUALITY = 200, 28
"""Pixels of a preview, at most, and its x264 quality."""

WORKERS = 4
"""Previews made at once: each holds a whole video in memory."""

SMALL = 96
"""Videos below this height are enlarged to a multiple near HEIGHT, so that single pixels can be seen."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """An item of the gallery.

    Args:
        case: the item.
        edited: its video; none if there is none.
        score: what it got; none if nothing.
        judgements: of it, all repeats.
        why: there is no score.
        control: of which kind, if it is no edit to be scored but a control; the instruction is the case's then.
    """

    case: Case
    edited: Path | None
    score: ItemScore | None
    judgements: Sequence[Judgement]
    why: str | None = None
    control: str = ""


def write_gallery(out: Path, title: str, about: Sequence[str], warnings: Sequence[str], items: Iterable[Shown]) -> None:
    """Write the page.

    Args:
        out: the file.
        title, about, warnings: what stands on top.
        items: in the order in which they are shown at first.
    """
    pages = Environment(loader=PackageLoader("kiwi.bench", "."), autoescape=select_autoescape(["html"]))
    items = list(items)
    videos = {path: _video for shown in items for path in (shown.case.source, shown.edited) if path is not None}
    pictures = {shown.case.reference: _picture for shown in items if shown.case.reference is not None}
    previews = _previews(videos | pictures)
    cards = [_card(shown, previews) for shown in items]
    categories = list(dict.fromkeys(str(card["category"]) for card in cards))
    controls = list(dict.fromkeys(str(card["control"]) for card in cards if card["control"]))
    page = pages.get_template("gallery.html").render(
        title=title, about=about, warnings=warnings, cards=cards, categories=categories, controls=controls
    )
    write_text(out, page)


def _previews(shrink: Mapping[Path, Callable[[Path, Path], str]]) -> dict[Path, str | None]:
    """Data URIs, of each file one, however often it is shown; none of what cannot be read."""

    def made(path: Path, small: Path) -> str | None:
        try:
            return shrink[path](path, small)
        except KiwiError:
            return None

    with TemporaryDirectory() as folder, ThreadPoolExecutor(WORKERS) as pool:
        waiting = {path: pool.submit(made, path, Path(folder) / str(number)) for number, path in enumerate(shrink)}
        return {path: one.result() for path, one in console.progress(list(waiting.items()), "gallery")}


def _card(shown: Shown, previews: Mapping[Path, str | None]) -> dict[str, object]:
    case, score = shown.case, shown.score
    return {
        "id": case.id,
        "category": case.category,
        "control": shown.control,
        "instruction": case.instruction,
        "reference": None if case.reference is None else previews.get(case.reference),
        "source": previews.get(case.source),
        "edited": None if shown.edited is None else previews.get(shown.edited),
        "mean": None if score is None else score.mean("raw"),
        "scores": [] if score is None else _scores(score),
        "replies": [
            {"repeat": one.asked.repeat, "text": one.reply or "", "why": one.reason or ""} for one in shown.judgements
        ],
        "why": shown.why,
    }


def _scores(score: ItemScore) -> list[Mapping[str, object]]:
    return [{"name": name, "raw": raw, "capped": score.capped[name]} for name, raw in score.raw.items()]


def _video(path: Path, small: Path) -> str:
    video = read_video(path)
    frames = resize(video.frames_FHWC, *_size(video.height, video.width))
    write_video(small.with_suffix(".mp4"), frames, video.fps, crf=QUALITY)
    return _uri("video/mp4", small.with_suffix(".mp4"))


def _picture(path: Path, small: Path) -> str:
    picture = read_image(path)
    write_image(small.with_suffix(".png"), resize(picture[None], *_size(*picture.shape[:2]))[0])
    return _uri("image/png", small.with_suffix(".png"))


def _uri(kind: str, file: Path) -> str:
    return f"data:{kind};base64," + base64.b64encode(file.read_bytes()).decode()


def _size(height: int, width: int) -> tuple[int, int]:
    """Of a preview: even, as video wants it, and at most HEIGHT high."""
    scale = max(1, HEIGHT // height) if height < SMALL else min(1.0, HEIGHT / height)
    even = [max(2, round(side * scale / 2) * 2) for side in (height, width)]
    return even[0], even[1]
