"""The world on disk: mp4 pairs, reference pictures, masks, and manifests with the published columns and `mask`.

    OUT/world.json        the settings, written first
        videos/           <id>_source.mp4, <id>_target.mp4
        references/       <id>.png
        images/           <id>_source.png, <id>_target.png: the first frames of the pairs without reference
        masks/            <id>.mp4, lossless, and <id>.png for the first frame: white where the edit shows
        video.csv, image.csv, reference.csv    written last; a manifest without rows is left out
        benchmark_videos.csv, refvie_bench.yaml    the same items in the layouts of OpenVE-Bench and RefVIE-Bench

Media that are there are whole, because every write is atomic, so an export that was cut off goes on where it was.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from kiwi.console import progress
from kiwi.errors import InputError
from kiwi.media.files import make_folder, write_text
from kiwi.media.image import write_image
from kiwi.media.run_dir import open_run_dir
from kiwi.media.video import write_video
from kiwi.sandbox.pairs import EditPair, check_categories, make_pair

# Changes when the same (seed, index) no longer gives the same pixels, words or files.
WORLD_VERSION = 4
# Tiny videos lose their colours at the qualities that are usual for large ones.
CRF = 10

_LISTS = ("video.csv", "image.csv", "reference.csv", "benchmark_videos.csv", "refvie_bench.yaml")
_COLUMNS = ("src_video", "tgt_video", "prompt", "iid", "edited_type", "mask", "caption")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export left in its folder: items in all, and the manifests by name with their rows."""

    folder: Path
    items: int
    manifests: dict[str, int]


def export(
    out: str | Path,
    items: int,
    seed: int,
    frames: int,
    height: int,
    width: int,
    fps: float = 8,
    categories: Sequence[str] | None = None,
    level: str = "full",
    split: str = "train",
) -> Exported:
    """Write items 0 .. items-1 of the world `seed` as videos, pictures and manifests.

    A folder that holds an export of the same settings is completed, or extended to more items; with fewer, its lists
    name those alone, and the files of the others stay.

    Args:
        out: the folder, made if it is not there.
        height, width: in pixels.
        fps: frames a second of the videos.
        categories, level, split: as `make_pair`.

    Raises:
        InputError: settings that cannot be used; a folder with an export of other settings, or with other things in it.
    """
    out = Path(out)
    for name, value in {"items": items, "frames": frames, "height": height, "width": width, "fps": fps}.items():
        if not value > 0:
            raise InputError(f"An export needs {name} above 0", got=value)
    if not 0.1 <= fps <= 1000:
        raise InputError("The videos cannot be played", got=f"fps {fps}", wanted="0.1 to 1000")
    settings = {
        "world": WORLD_VERSION,
        "seed": seed,
        "frames": frames,
        "height": height,
        "width": width,
        "fps": fps,
        "crf": CRF,
        "categories": list(check_categories(categories)),
        "level": level,
        "split": split,
    }
    make = partial(
        make_pair,
        seed,
        frames=frames,
        height=height,
        width=width,
        categories=categories,
        level=level,
        split=split,
    )
    make(0)  # settings that no item can be made with leave no folder behind
    open_run_dir(out / "world.json", settings, "an export of the sandbox")
    for name in ("videos", "references", "images", "masks"):
        make_folder(out / name)
    rows: dict[str, list[dict[str, str]]] = {"video": [], "image": [], "reference": []}
    for index in progress(range(items), f"exporting to {out}", total=items):
        pair = make(index)
        row = _write_videos(out, pair, fps)
        if pair.reference is None:
            rows["video"].append(row)
            rows["image"].append(_write_first_frames(out, pair))
        else:
            rows["reference"].append({**row, "ref_image": _write_reference(out, pair, pair.reference)})
    lists = {f"{name}.csv": _csv(listed) for name, listed in rows.items() if listed}
    lists |= _benchmarks(rows["video"], rows["reference"])
    for name in _LISTS:
        if name in lists:
            write_text(out / name, lists[name])
        else:
            (out / name).unlink(missing_ok=True)  # of an export of more items: all lists are of the same
    return Exported(folder=out, items=items, manifests={f"{k}.csv": len(v) for k, v in rows.items() if v})


def _write_videos(out: Path, pair: EditPair, fps: float) -> dict[str, str]:
    source, target = f"videos/{pair.id}_source.mp4", f"videos/{pair.id}_target.mp4"
    for path, video in ((out / source, pair.source), (out / target, pair.target)):
        if not path.exists():
            write_video(path, video, fps, crf=CRF)
    mask = f"masks/{pair.id}.mp4"
    if not (out / mask).exists():
        write_video(out / mask, white(pair.mask), fps, crf=0)
    return _row(pair, source, target, mask)


def _write_first_frames(out: Path, pair: EditPair) -> dict[str, str]:
    source, target = f"images/{pair.id}_source.png", f"images/{pair.id}_target.png"
    for path, video in ((out / source, pair.source), (out / target, pair.target)):
        if not path.exists():
            write_image(path, video[0])
    mask = f"masks/{pair.id}.png"
    if not (out / mask).exists():
        write_image(out / mask, white(pair.mask)[0])
    return _row(pair, source, target, mask)


def _write_reference(out: Path, pair: EditPair, reference: Any) -> str:
    path = f"references/{pair.id}.png"
    if not (out / path).exists():
        write_image(out / path, reference)
    return path


def white(mask_FHW: np.ndarray) -> np.ndarray:
    """A mask as frames: white where it holds, else black; FHW bool -> FHWC uint8."""
    return np.repeat(mask_FHW[..., None], 3, axis=-1).astype(np.uint8) * 255


def _row(pair: EditPair, source: str, target: str, mask: str) -> dict[str, str]:
    values = (source, target, pair.instruction, pair.id, pair.category, mask, pair.caption)
    return dict(zip(_COLUMNS, values, strict=True))


def _benchmarks(edits: Sequence[dict[str, str]], references: Sequence[dict[str, str]]) -> dict[str, str]:
    """The same items as the published benchmarks list theirs: OpenVE-Bench as CSV, RefVIE-Bench as YAML, by name."""
    found = {}
    if edits:
        columns = {"edited_type": "edited_type", "prompt": "prompt", "original_video": "src_video"}
        listed = [{theirs: row[ours] for theirs, ours in columns.items()} for row in edits]
        found["benchmark_videos.csv"] = _csv(listed)
    if references:
        columns = {"src_video": "src_video", "ref_img": "ref_image", "instruction": "prompt"}
        items = [
            {theirs: row[ours] for theirs, ours in columns.items()}
            | {"edit_type": row["edited_type"].removesuffix("_reference")}
            for row in references
        ]
        found["refvie_bench.yaml"] = yaml.safe_dump(items, sort_keys=False, allow_unicode=True, width=1000)
    return found


def _csv(rows: Iterable[dict[str, str]]) -> str:
    rows = list(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
