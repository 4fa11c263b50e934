"""Export of the sandbox as videos, images and manifests, and a preview of it as one image.

Every write is atomic, and existing media are decoded before they count as complete, because a full disk, a copy or
another program may have cut them. So an interrupted export can be resumed.
"""

import csv
import io
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from kiwi.console import progress
from kiwi.errors import InputError, MediaError
from kiwi.media.contact_sheet import contact_sheet
from kiwi.media.files import make_folder, write_json, write_text
from kiwi.media.image import write_image
from kiwi.media.run_dir import open_run_dir, read_record
from kiwi.media.video import read_video, write_video
from kiwi.options import positional
from kiwi.sandbox.options import WorldOptions
from kiwi.sandbox.pairs import CATEGORIES, EditPair
from kiwi.sandbox.world import Pixels

log = logging.getLogger(__name__)

# Increased whenever the same seed and index give other pixels, words or files than before.
WORLD_VERSION = 4
# Quality of the videos for x264. With the usual values, 18 to 23, tiny videos lose their colours.
CRF = 10

_PREVIEW_COLUMNS = ["reference", "source, first", "source, last", "target, first", "target, last", "mask, last"]
# Approximate height of the preview's cells, which are enlarged so that single pixels are visible.
_CELL_HEIGHT = 144
# Grey levels of the cell of a missing reference, and of the border of every cell.
_EMPTY_GREY, _BORDER_GREY = 232, 160


@dataclass(frozen=True, kw_only=True)
class SandboxExportOptions(WorldOptions):
    """Write items of the sandbox as videos, reference images, masks and manifests.

    Files in the folder OUT:
    world.json        settings, written first
    videos/           <id>_source.mp4, <id>_target.mp4
    references/       <id>.png
    images/           <id>_source.png, <id>_target.png: first frames of the items without reference
    masks/            <id>.mp4 (lossless) and <id>.png of the first frame: white where the edit may be visible
    video.csv, image.csv, reference.csv
                      manifests, written last, with the columns src_video, tgt_video, prompt, iid, edited_type, mask,
                      caption and (in reference.csv) ref_image; a manifest without rows is omitted
    benchmark_videos.csv, refvie_bench.yaml
                      the same items in the layouts of OpenVE-Bench and RefVIE-Bench

    Rerun the same command to resume. With more items the export is extended, because the first items do not depend on
    their number; a folder that holds an export with more items, or with other options, is rejected.

    Args:
        out: folder to write to
        fps: frames per second of the videos
    """

    out: Path = positional()
    fps: float = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.1 <= self.fps <= 1000:
            raise InputError("--fps is out of range", code="out-of-range", got=self.fps, expected="0.1 to 1000")


@dataclass(frozen=True, kw_only=True)
class PreviewOptions(WorldOptions):
    """Draw items of the sandbox into one image.

    Each row shows an item: its reference image, the first and last frames of source and target, and the mask of the
    last frame.

    Args:
        out: PNG file to write
    """

    out: Path = positional(metavar="OUT.png")
    items: int = len(CATEGORIES)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out.suffix.lower() != ".png":
            raise InputError(
                "the preview must be a PNG file", code="wrong-suffix", got=self.out, expected="a path that ends in .png"
            )


def export_sandbox(options: SandboxExportOptions) -> dict[str, int]:
    """Write items of the sandbox as videos, images and manifests.

    Returns:
        Number of rows by name of the manifest, such as "video.csv".

    Raises:
        InputError: if no item can be rendered with the settings, or the folder has an export with other settings, with
            more items or other files.
    """
    out, record = options.out, options.out / "world.json"
    settings = {
        "world": WORLD_VERSION,
        "seed": options.seed,
        **options.pair_settings,
        "fps": options.fps,
        "crf": CRF,
        "categories": list(options.categories or CATEGORIES),
    }
    options.pair(0)  # raises before the folder is created if no item can be rendered with the settings
    earlier = read_record(record) if record.exists() else {"items": options.items}
    count = earlier.get("items", 0)  # the previous release did not record it
    if isinstance(count, int) and count > options.items:
        problem, fix = f"{out} holds an export of {count} items", f"set --items {count} or more, or another folder"
        raise InputError(problem, code="changed-settings", got=f"--items {options.items}", fix=fix)
    items_then = {"items": count} if "items" in earlier else {}
    open_run_dir(record, settings | items_then, "an export of the sandbox")
    if count != options.items:
        write_json(record, settings | {"items": options.items})
    for name in ("videos", "references", "images", "masks"):
        make_folder(out / name)
    rows: dict[str, list[dict[str, str]]] = {"video.csv": [], "image.csv": [], "reference.csv": []}
    for index in progress(range(options.items), f"exporting to {out}", total=options.items):
        pair = options.pair(index)
        row = _write_media(out, pair, options.fps)
        if pair.reference is None:
            rows["video.csv"].append(row)
            rows["image.csv"].append(_write_media(out, pair, fps=None))
        else:
            reference = f"references/{pair.id}.png"
            if not _is_whole(out / reference, 1):
                write_image(out / reference, pair.reference)
            rows["reference.csv"].append({**row, "ref_image": reference})
    manifests = {name: records for name, records in rows.items() if records}
    lists = {name: _to_csv(records) for name, records in manifests.items()}
    lists |= _format_benchmark_lists(rows["video.csv"], rows["reference.csv"])
    for name, text in lists.items():
        write_text(out / name, text)
    return {name: len(records) for name, records in manifests.items()}


def write_preview(options: PreviewOptions) -> None:
    """Render the items and write the image. Raises InputError like `make_pair`."""
    write_image(options.out, draw_preview(options.pairs()))


def draw_preview(pairs: list[EditPair]) -> Pixels:
    """Draw one image (HWC) with a row per pair: reference, source, target and mask."""
    rows, labels = [], []
    for pair in pairs:
        mask = mask_frames(pair.mask[-1:])[0]
        reference = np.full_like(pair.source[0], _EMPTY_GREY) if pair.reference is None else pair.reference
        cells = [reference, pair.source[0], pair.source[-1], pair.target[0], pair.target[-1], mask]
        rows.append([_enlarge(cell) for cell in cells])
        labels.append(f"{pair.instruction}\n{pair.category}\n{pair.id}")
    return contact_sheet(rows, labels, _PREVIEW_COLUMNS)


def mask_frames(mask_FHW: np.ndarray) -> Pixels:
    """Convert a mask (FHW bool) to frames (FHWC uint8), white where it is true and black elsewhere."""
    return np.repeat(mask_FHW[..., None], 3, axis=-1).astype(np.uint8) * 255


def _write_media(out: Path, pair: EditPair, fps: float | None) -> dict[str, str]:
    """Write the missing media of a pair: videos, or images of the first frame if `fps` is None; return its row."""
    folder, suffix = ("images", "png") if fps is None else ("videos", "mp4")
    source, target = f"{folder}/{pair.id}_source.{suffix}", f"{folder}/{pair.id}_target.{suffix}"
    mask = f"masks/{pair.id}.{suffix}"
    media = ((source, pair.source, CRF), (target, pair.target, CRF), (mask, mask_frames(pair.mask), 0))
    for name, frames, crf in media:
        if _is_whole(out / name, len(frames) if fps is not None else 1):
            continue
        if fps is None:
            write_image(out / name, frames[0])
        else:
            write_video(out / name, frames, fps, crf=crf)
    return {
        "src_video": source,
        "tgt_video": target,
        "prompt": pair.instruction,
        "iid": pair.id,
        "edited_type": pair.category,
        "mask": mask,
        "caption": pair.caption,
    }


def _is_whole(path: Path, frames: int) -> bool:
    """Whether a file of an earlier export exists and can be decoded; a damaged one is written again."""
    if not path.exists():
        return False
    try:
        is_whole = read_video(path).frame_count == frames
    except MediaError:
        is_whole = False
    if not is_whole:
        log.warning("%s is damaged and is written again", path)
    return is_whole


def _format_benchmark_lists(edits: list[dict[str, str]], references: list[dict[str, str]]) -> dict[str, str]:
    """Format the rows like the lists of OpenVE-Bench (CSV) and RefVIE-Bench (YAML); the texts by file name."""
    lists = {}
    if edits:
        videos = [
            {"edited_type": row["edited_type"], "prompt": row["prompt"], "original_video": row["src_video"]}
            for row in edits
        ]
        lists["benchmark_videos.csv"] = _to_csv(videos)
    if references:
        items = [
            {
                "src_video": row["src_video"],
                "ref_img": row["ref_image"],
                "instruction": row["prompt"],
                "edit_type": row["edited_type"].removesuffix("_reference"),
            }
            for row in references
        ]
        lists["refvie_bench.yaml"] = yaml.safe_dump(items, sort_keys=False, allow_unicode=True, width=1000)
    return lists


def _to_csv(rows: list[dict[str, str]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _enlarge(image: Pixels) -> Pixels:
    """Enlarge an image and add a thin border, because masks and references can be white like the sheet."""
    factor = max(1, round(_CELL_HEIGHT / image.shape[0]))
    enlarged = image.repeat(factor, axis=0).repeat(factor, axis=1)
    return np.pad(enlarged, ((1, 1), (1, 1), (0, 0)), constant_values=_BORDER_GREY)
