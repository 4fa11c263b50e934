"""The gallery: one HTML file that shows every item, its scores and the judge's words; it needs no other file."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
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
    with TemporaryDirectory() as folder:
        cards = [_card(shown, Path(folder)) for shown in console.progress(list(items), "gallery")]
    categories = list(dict.fromkeys(str(card["category"]) for card in cards))
    controls = list(dict.fromkeys(str(card["control"]) for card in cards if card["control"]))
    page = pages.get_template("gallery.html").render(
        title=title, about=about, warnings=warnings, cards=cards, categories=categories, controls=controls
    )
    write_text(out, page)


def _card(shown: Shown, folder: Path) -> dict[str, object]:
    case, score = shown.case, shown.score
    return {
        "id": case.id,
        "category": case.category,
        "control": shown.control,
        "instruction": case.instruction,
        "reference": None if case.reference is None else _picture(case.reference, folder),
        "source": _video(case.source, folder),
        "edited": None if shown.edited is None or not shown.edited.is_file() else _video(shown.edited, folder),
        "mean": None if score is None else score.mean("raw"),
        "scores": [] if score is None else _scores(score),
        "replies": [
            {"repeat": one.asked.repeat, "text": one.reply or "", "why": one.reason or ""} for one in shown.judgements
        ],
        "why": shown.why,
    }


def _scores(score: ItemScore) -> list[Mapping[str, object]]:
    return [{"name": name, "raw": raw, "capped": score.capped[name]} for name, raw in score.raw.items()]


def _video(path: Path, folder: Path) -> str | None:
    """A preview as a data URI; none for what cannot be read."""
    try:
        video = read_video(path)
        frames = video.frames_FHWC
        height, width = _size(*frames.shape[1:3])
        write_video(made := folder / "preview.mp4", resize(frames, height, width), video.fps, crf=QUALITY)
    except KiwiError:
        return None
    return "data:video/mp4;base64," + base64.b64encode(made.read_bytes()).decode()


def _picture(path: Path, folder: Path) -> str | None:
    try:
        picture = read_image(path)
        height, width = _size(*picture.shape[:2])
        write_image(made := folder / "preview.png", resize(picture[None], height, width)[0])
    except KiwiError:
        return None
    return "data:image/png;base64," + base64.b64encode(made.read_bytes()).decode()


def _size(height: int, width: int) -> tuple[int, int]:
    """Of a preview: even, as video wants it, and at most HEIGHT high."""
    scale = max(1, HEIGHT // height) if height < SMALL else min(1.0, HEIGHT / height)
    even = [max(2, round(side * scale / 2) * 2) for side in (height, width)]
    return even[0], even[1]
