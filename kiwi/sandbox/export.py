"""Export of the sandbox: mp4 pairs, reference images, masks, and manifests with the published columns and `mask`.

    OUT/world.json        settings, written first
        videos/           <id>_source.mp4, <id>_target.mp4
        references/       <id>.png
        images/           <id>_source.png, <id>_target.png: first frames of the pairs without reference
        masks/            <id>.mp4 (lossless) and <id>.png of the first frame: white where the edit is visible
        video.csv, image.csv, reference.csv    written last; a manifest without rows is omitted
        benchmark_videos.csv, refvie_bench.yaml    the same items in the layouts of OpenVE-Bench and RefVIE-Bench

Every write is atomic, so existing media are complete, and an interrupted export can be resumed.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
from kiwi.options import positional
from kiwi.sandbox.options import WorldOptions
from kiwi.sandbox.pairs import CATEGORIES, EditPair

# Increased whenever the same seed and index give other pixels, words or files than before.
WORLD_VERSION = 4
# Quality of the videos for x264. With the usual values, 18 to 23, tiny videos lose their colours.
CRF = 10

_LIST_FILES = ("video.csv", "image.csv", "reference.csv", "benchmark_videos.csv", "refvie_bench.yaml")
_COLUMNS = ("src_video", "tgt_video", "prompt", "iid", "edited_type", "mask", "caption")


@dataclass(frozen=True, kw_only=True)
class SandboxExportOptions(WorldOptions):
    """Write items of the sandbox as videos, reference images, masks and manifests.

    OUT/videos/<id>_source.mp4 and <id>_target.mp4, OUT/references/<id>.png, OUT/images/ (first frames), OUT/masks/
    (white where the edit is visible); video.csv, image.csv and reference.csv list them with the columns src_video,
    tgt_video, prompt, iid, edited_type, mask, caption and ref_image; benchmark_videos.csv and refvie_bench.yaml list
    the same items in the layouts of OpenVE-Bench and RefVIE-Bench; world.json records the settings. Rerun the same
    command to resume. With more items the export is extended; with fewer, the lists are shortened and no file is
    deleted.

    Args:
        out: folder to write to.
        fps: frames per second of the videos.
    """

    out: Path = positional()
    fps: float = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.1 <= self.fps <= 1000:
            raise InputError(
                "--fps is out of range", code="out-of-range", got=self.fps, expected="a number from 0.1 to 1000"
            )


@dataclass(frozen=True, kw_only=True)
class ExportSummary:
    """Result of an export: its folder, number of items, and number of rows by manifest."""

    folder: Path
    items: int
    manifests: dict[str, int]


def export_sandbox(options: SandboxExportOptions) -> ExportSummary:
    """Write items of the sandbox as videos, images and manifests.

    Raises:
        InputError: if no item can be rendered with the settings, or the folder has an export with other settings or
            other files.
    """
    out = options.out
    settings = {
        "world": WORLD_VERSION,
        "seed": options.seed,
        **options.world,
        "fps": options.fps,
        "crf": CRF,
        "categories": list(options.categories or CATEGORIES),
    }
    options.pair(0)  # raises before the folder is created if no item can be rendered with the settings
    open_run_dir(out / "world.json", settings, "an export of the sandbox")
    for name in ("videos", "references", "images", "masks"):
        make_folder(out / name)
    rows: dict[str, list[dict[str, str]]] = {"video": [], "image": [], "reference": []}
    for index in progress(range(options.items), f"exporting to {out}", total=options.items):
        pair = options.pair(index)
        row = _write_videos(out, pair, options.fps)
        if pair.reference is None:
            rows["video"].append(row)
            rows["image"].append(_write_first_frames(out, pair))
        else:
            rows["reference"].append({**row, "ref_image": _write_reference(out, pair, pair.reference)})
    manifests = {f"{name}.csv": records for name, records in rows.items() if records}
    lists = {name: _to_csv(records) for name, records in manifests.items()}
    lists |= _format_benchmark_lists(rows["video"], rows["reference"])
    for name in _LIST_FILES:
        if name in lists:
            write_text(out / name, lists[name])
        else:
            (out / name).unlink(missing_ok=True)  # from an export of more items; all lists must have the same items
    counts = {name: len(records) for name, records in manifests.items()}
    return ExportSummary(folder=out, items=options.items, manifests=counts)


def _write_videos(out: Path, pair: EditPair, fps: float) -> dict[str, str]:
    source, target = f"videos/{pair.id}_source.mp4", f"videos/{pair.id}_target.mp4"
    for path, video in ((out / source, pair.source), (out / target, pair.target)):
        if not path.exists():
            write_video(path, video, fps, crf=CRF)
    mask = f"masks/{pair.id}.mp4"
    if not (out / mask).exists():
        write_video(out / mask, mask_frames(pair.mask), fps, crf=0)
    return _make_manifest_row(pair, source, target, mask)


def _write_first_frames(out: Path, pair: EditPair) -> dict[str, str]:
    source, target = f"images/{pair.id}_source.png", f"images/{pair.id}_target.png"
    for path, video in ((out / source, pair.source), (out / target, pair.target)):
        if not path.exists():
            write_image(path, video[0])
    mask = f"masks/{pair.id}.png"
    if not (out / mask).exists():
        write_image(out / mask, mask_frames(pair.mask)[0])
    return _make_manifest_row(pair, source, target, mask)


def _write_reference(out: Path, pair: EditPair, reference: Any) -> str:
    path = f"references/{pair.id}.png"
    if not (out / path).exists():
        write_image(out / path, reference)
    return path


def mask_frames(mask_FHW: np.ndarray) -> np.ndarray:
    """Convert a mask (FHW bool) to frames (FHWC uint8), white where it is true and black elsewhere."""
    return np.repeat(mask_FHW[..., None], 3, axis=-1).astype(np.uint8) * 255


def _make_manifest_row(pair: EditPair, source: str, target: str, mask: str) -> dict[str, str]:
    values = (source, target, pair.instruction, pair.id, pair.category, mask, pair.caption)
    return dict(zip(_COLUMNS, values, strict=True))


def _format_benchmark_lists(edits: Sequence[dict[str, str]], references: Sequence[dict[str, str]]) -> dict[str, str]:
    """Format the rows like the lists of OpenVE-Bench (CSV) and RefVIE-Bench (YAML); the texts by file name."""
    lists = {}
    if edits:
        columns = {"edited_type": "edited_type", "prompt": "prompt", "original_video": "src_video"}
        lists["benchmark_videos.csv"] = _to_csv(
            {published: row[column] for published, column in columns.items()} for row in edits
        )
    if references:
        columns = {"src_video": "src_video", "ref_img": "ref_image", "instruction": "prompt"}
        items = [
            {published: row[column] for published, column in columns.items()}
            | {"edit_type": row["edited_type"].removesuffix("_reference")}
            for row in references
        ]
        lists["refvie_bench.yaml"] = yaml.safe_dump(items, sort_keys=False, allow_unicode=True, width=1000)
    return lists


def _to_csv(rows: Iterable[dict[str, str]]) -> str:
    rows = list(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
