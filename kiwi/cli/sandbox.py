"""`python -m kiwi sandbox ACTION`: the world as files and pictures, its oracle, its words, editors measured in it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kiwi import console
from kiwi.cli import anchors, measure, parse, parser
from kiwi.errors import InputError
from kiwi.evaluation.options import AnchorOptions, SandboxMeasureOptions
from kiwi.media.image import contact_sheet, write_image
from kiwi.sandbox.export import export, white
from kiwi.sandbox.pairs import CATEGORIES, EditPair, make_pair
from kiwi.sandbox.sampling import LEVELS, Split

_COLUMNS = ["reference", "source, first", "source, last", "target, first", "target, last", "mask, last"]
# Cells of the preview are enlarged to about this height, so that single pixels can be seen.
_CELL = 144
# Grey levels: of the cell where an edit has no reference, and of the border of every cell.
_NOTHING, _BORDER = 232, 160


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Read a command line; `argv[0]` is the command's own name. Raises InputError for what it does not take."""
    commands = parser(argv[0], "The sandbox: a rendered world of video edits with exact ground truth.")
    names = "export | preview | anchors | measure | vocabulary"
    actions = commands.add_subparsers(dest="action", required=True, metavar=names)
    writing = actions.add_parser("export", help="write videos, pictures and manifests", description=_EXPORT)
    writing.add_argument("out", metavar="OUT", help="folder to write to; an export that was cut off is completed")
    _add_world(writing, items=64)
    writing.add_argument("--fps", type=float, default=8, help="frames a second")
    showing = actions.add_parser("preview", help="draw a picture of what the world holds", description=_PREVIEW)
    showing.add_argument("out", metavar="OUT.png", help="picture to write")
    _add_world(showing, items=len(CATEGORIES))
    speaking = actions.add_parser("vocabulary", help="write a tokenizer of the world's words", description=_VOCABULARY)
    speaking.add_argument("out", metavar="OUT", help="folder to write to")
    speaking.add_argument("--words", type=int, default=640, help="at most: with 256 bytes, without Qwen's own tokens")
    speaking.add_argument("--items", type=int, default=4000, help="questions and answers that are learned from")
    return commands.parse_args(argv[1:])


def world_of(options: argparse.Namespace) -> dict[str, Any]:
    """How items are drawn."""
    width = options.size if options.width is None else options.width
    kinds = None if options.categories is None else [name.strip() for name in options.categories.split(",")]
    size = {"frames": options.frames, "height": options.size, "width": width}
    return {**size, "categories": kinds, "level": options.level, "split": options.split}


def main(argv: list[str]) -> int:
    """Run one of the actions."""
    if argv[1:2] == ["measure"]:
        return measure.run(parse(SandboxMeasureOptions, "sandbox measure", argv[2:]))
    if argv[1:2] == ["anchors"]:
        return anchors.run(parse(AnchorOptions, "sandbox anchors", argv[2:]))
    options = arguments(argv)
    if options.action == "vocabulary":
        return _vocabulary(options)
    world = world_of(options)
    if options.action == "export":
        done = export(options.out, options.items, options.seed, fps=options.fps, **world)
        listed = ", ".join(f"{name} ({rows})" for name, rows in done.manifests.items())
        console.print(f"{done.items} items in {done.folder}: {listed}")
        return 0
    out = Path(options.out)
    if out.suffix.lower() != ".png":
        raise InputError("The preview is a PNG picture", got=options.out, wanted="a path that ends in .png")
    if options.items < 1:
        raise InputError("A preview shows at least one item", got=options.items)
    pairs = [make_pair(options.seed, index, **world) for index in range(options.items)]
    write_image(out, preview(pairs))
    console.print(f"{len(pairs)} items in {out}")
    return 0


def _vocabulary(options: argparse.Namespace) -> int:
    from kiwi.media.files import atomic_folder, make_folder, write_json
    from kiwi.models.mllm.new_qwen import train_tokenizer
    from kiwi.sandbox.questions import PROMPTS, sentences

    if options.words < 256 or options.items < 1:
        got = f"{options.words} words, {options.items} items"
        raise InputError("a vocabulary needs items, and at least the 256 bytes", got=got)
    make_folder(Path(options.out).parent)
    tokenizer = train_tokenizer(sentences(options.items), options.words)

    def foreign(folder: Path) -> list[str]:
        return sorted({item.name for item in folder.iterdir()} - _TOKENIZER)

    with atomic_folder(Path(options.out), foreign) as new:
        tokenizer.save_pretrained(new)
        write_json(new / "prompt.json", PROMPTS)
    console.print(f"{len(tokenizer)} words in {options.out}")
    return 0


_TOKENIZER = {"prompt.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}


def preview(pairs: list[EditPair]) -> np.ndarray:
    """The pairs as one picture (HWC uint8), a row each: reference, source, target and mask."""
    rows, labels = [], []
    for pair in pairs:
        mask = white(pair.mask[-1:])[0]
        reference = np.full_like(pair.source[0], _NOTHING) if pair.reference is None else pair.reference
        cells = [reference, pair.source[0], pair.source[-1], pair.target[0], pair.target[-1], mask]
        rows.append([_framed(cell) for cell in cells])
        labels.append(f"{pair.instruction}\n{pair.category}\n{pair.id}")
    return contact_sheet(rows, labels, _COLUMNS)


def _framed(image: np.ndarray) -> np.ndarray:
    """The image enlarged, with a thin border: white masks and references lie on a white sheet."""
    factor = max(1, round(_CELL / image.shape[0]))
    enlarged = image.repeat(factor, axis=0).repeat(factor, axis=1)
    return np.pad(enlarged, ((1, 1), (1, 1), (0, 0)), constant_values=_BORDER)


def _add_world(
    actions: argparse.ArgumentParser, items: int, frames: int = 9, size: int = 48, split: Split = Split.train
) -> None:
    actions.add_argument("--items", type=int, default=items, help="how many items, from the first of the world")
    actions.add_argument("--seed", type=int, default=0, help="which world")
    actions.add_argument("--frames", type=int, default=frames, help="frames of a video")
    actions.add_argument("--size", type=int, default=size, help="height in pixels")
    actions.add_argument("--width", type=int, help="width in pixels (default: as high)")
    actions.add_argument("--level", choices=list(LEVELS), default="full", help="how much a scene may hold")
    actions.add_argument(
        "--split",
        choices=[str(split) for split in Split],
        default=str(split),
        help="which things and wordings are drawn; new_things, new_words and new_both hold what train never does",
    )
    actions.add_argument("--categories", help=f"kinds of edit, comma separated: {', '.join(CATEGORIES)} (default: all)")


_EXPORT = """Write items of the world as videos, reference pictures, masks and manifests.

OUT/videos/<id>_source.mp4 and <id>_target.mp4, OUT/references/<id>.png, OUT/images/ (first frames), OUT/masks/
(white where the edit shows); video.csv, image.csv and reference.csv list them with the columns src_video,
tgt_video, prompt, iid, edited_type, mask, caption and ref_image; benchmark_videos.csv and refvie_bench.yaml list the
same items as OpenVE-Bench and RefVIE-Bench list theirs; world.json holds the settings. The same command again goes on
where it was cut off."""

_PREVIEW = """Draw items of the world into one picture.

A row is an item; the columns are the reference picture, the first and last frame of source and target,
and the mask of what changed in the last frame."""

_VOCABULARY = """Learn a byte-pair tokenizer from what is said in training, with Qwen's special tokens.

OUT is a folder that `NewQwen(tokenizer=OUT)` reads; text of other words is spelled in bytes. OUT/prompt.json is the
wording of prompts for a reader that knows no other words."""
