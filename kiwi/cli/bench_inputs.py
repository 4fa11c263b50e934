"""What the commands of `kiwi bench` take: options, and what they name."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from kiwi.bench.suites import LISTS, Suite, own_rubrics
from kiwi.errors import InputError
from kiwi.media.files import require_file

if TYPE_CHECKING:
    from kiwi.bench.judges import JudgeSpec
    from kiwi.bench.metrics import Measures
    from kiwi.bench.rubric import Rubric

SANDBOX_ITEMS = {"openve": 100, "refvie": 40, "sandbox": 140}
"""Items of `--data sandbox`: twenty a category."""

LEVEL = "full"
"""Of `--data sandbox`, unless another is asked for."""

SANDBOX_CATEGORIES = {
    "openve": ["local_change", "local_remove", "local_add", "background_change", "global_style"],
    "refvie": ["subject_reference", "background_reference"],
    "sandbox": None,
}


def add_options(options: argparse.ArgumentParser, suite: str) -> None:
    """What the benchmark's command takes."""
    options.add_argument(
        "--data",
        default="sandbox" if suite == "sandbox" else f"data/{suite}",
        help="folder in the published layout, or 'sandbox' to render one with known answers (default: %(default)s)",
    )
    who = options.add_mutually_exclusive_group()
    who.add_argument("--model", help="editor to judge: model folder or hub id (default with --data sandbox: sandbox)")
    who.add_argument("--videos", type=Path, help="folder of edited videos to judge, named SOURCE_edited.mp4")
    options.add_argument(
        "--judge", help="oracle, or replay:LEDGER (default: the published judge; with --data sandbox: oracle)"
    )
    options.add_argument("--rubrics", type=Path, help="official rubrics, of `bench rubrics import` (default: ours)")
    options.add_argument("--out", type=Path, help="folder of the run (default: runs/bench/SUITE-TIME)")
    options.add_argument("--name", help="of what is judged, in the table (default: the model's or the folder's name)")
    options.add_argument("--repeats", type=int, default=1, help="answers to each question; the median counts")
    options.add_argument("--concurrency", type=int, default=8, help="questions to the judge at once")
    options.add_argument("--per-minute", type=float, help="questions a minute, at most (default: no limit)")
    options.add_argument("--tries", type=int, default=4, help="of each question")
    options.add_argument("--controls", type=int, default=12, help="bad edits of each kind that the judge must tell")
    options.add_argument("--anchors", type=int, default=0, help="items judged before that are asked again")
    options.add_argument("--allow-partial", action="store_true", help="an overall score although items are missing")
    options.add_argument("--part", default="1/1", help="of the videos to generate, such as 2/4: then judges nothing")
    options.add_argument("--steps", type=int, help="denoising steps (default: the model's own)")
    options.add_argument("--max-pixels", type=int, help="height x width to edit at (default: the model's own)")
    options.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda if there is one)")
    options.add_argument("--items", type=int, help="of --data sandbox (default: twenty a category)")
    options.add_argument("--level", help=f"of --data sandbox (default: {LEVEL})")
    options.add_argument(
        "--metrics",
        nargs="*",
        metavar="basic|lpips|clip=FOLDER|dino=FOLDER",
        help="computed beside the judge: PSNR, SSIM and flicker against the source; LPIPS (lpips=alex, vgg or squeeze);"
        " similarities by given models",
    )
    options.add_argument("--no-gallery", action="store_true", help="leave out gallery.html")


def require_fitting(options: argparse.Namespace) -> None:
    """Raises InputError for options that would have no effect beside the others, or numbers that are none."""
    for option, least in (("repeats", 1), ("controls", 0), ("anchors", 0)):
        if (value := getattr(options, option)) < least:
            raise InputError(f"--{option} must be at least {least}", got=value)
    if options.videos is not None and not options.videos.is_dir():
        raise InputError(f"there is no folder {options.videos}", wanted="edited videos, named SOURCE_edited.mp4")
    generating = {"steps": options.steps, "max-pixels": options.max_pixels}
    generating["part"] = None if options.part == "1/1" else options.part
    rendering = {"items": options.items, "level": options.level}
    for given, where, fits in (
        (generating, "videos that are generated: not with --videos", options.videos is None),
        (rendering, "--data sandbox", options.data == "sandbox"),
    ):
        if unfit := [f"--{name}" for name, value in given.items() if value is not None and not fits]:
            raise InputError(f"{unfit[0]} is of {where}", fix="leave it out")


def part_of(text: str) -> tuple[int, int]:
    """Which of how many, from I/N."""
    read = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", text)
    if read is None or int(read[1]) > int(read[2]):
        raise InputError("--part takes I/N", got=text, wanted="such as 2/4")
    return int(read[1]), int(read[2])


def require_data(options: argparse.Namespace, suite: Suite) -> None:
    """Raises InputError if the benchmark's data is not there."""
    data = Path(options.data)
    if options.data != "sandbox" and not any((data / LISTS[layout]).is_file() for layout in suite.lists):
        lists = " or ".join(LISTS[layout] for layout in suite.lists)
        raise InputError(
            f"the data of {suite.title} is not at {data}",
            wanted=f"a folder with {lists} and the videos that it names; and, to score it, --judge",
            fix="download the published data there, name its folder with --data, or try --data sandbox, which needs "
            "nothing else",
        )


def data_of(options: argparse.Namespace, name: str, suite: Suite, out: Path) -> Path:
    """The benchmark's folder, rendered if it is the sandbox."""
    if options.data != "sandbox":
        return Path(options.data)
    from kiwi.sandbox.export import SandboxExportOptions, export_sandbox

    items = SANDBOX_ITEMS[name] if options.items is None else options.items
    export_sandbox(
        SandboxExportOptions(
            out=out / "data",
            items=items,
            frames=suite.frames if name == "sandbox" else 5,
            size=32,
            categories=tuple(SANDBOX_CATEGORIES[name] or ()),
            level=options.level or LEVEL,
            split="test",
        )
    )
    return out / "data"


def judge_of(options: argparse.Namespace, suite: Suite) -> JudgeSpec:
    """The judge that is named, or the published one."""
    from kiwi.bench.judges import Oracle, Replay

    named = options.judge or ("oracle" if options.data == "sandbox" else suite.judge)
    kind, _, ledger = named.partition(":")
    if kind == "oracle" and not ledger:
        return Oracle()
    if kind == "replay" and ledger:
        return Replay(ledger=str(require_file(ledger, what="ledger")))
    raise InputError(
        f"there is no judge {named!r}"
        + ("" if options.judge else f", by whom the published table of {suite.title} was scored"),
        wanted="--judge oracle (for --data sandbox), or replay:LEDGER, a judgements.jsonl of an earlier run",
    )


def rubrics_of(options: argparse.Namespace, name: str, suite: Suite) -> dict[str, Rubric]:
    """Ours, or official ones that were kept."""
    from kiwi.bench.rubric import read_rubrics

    if options.rubrics is None:
        return own_rubrics(name, suite)
    return read_rubrics(options.rubrics, {category: of.dimensions for category, of in suite.categories.items()})


def measures_of(options: argparse.Namespace) -> Measures | None:
    """What is computed beside the judge; loaded before anything is judged, since a folder may be wrong."""
    if options.metrics is None:
        return None
    from kiwi.bench.metrics import load_measures
    from kiwi.models.device import usable_device

    return load_measures(options.metrics, usable_device(options.device))


def name_of(folder: Path) -> str:
    """A folder's name, with the one above it where its own says what every such folder is called."""
    if folder.name == "model" and folder.parent.name:
        return folder.parent.name
    return f"{folder.parent.name}/{folder.name}" if folder.name in ("edited", "videos") else folder.name
