"""Options of the benchmark commands; what they name (data, judge, rubrics) is resolved where it is used."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kiwi import shipped
from kiwi.bench.rate_limit import RateLimit
from kiwi.errors import InputError
from kiwi.options import DeviceOptions, Options, option, positional
from kiwi.sandbox.sampling import LevelName

SuiteName = Literal["openve", "refvie", "sandbox"]


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions(DeviceOptions):
    """Score an editor, or a folder of edited videos, on a benchmark.

    Edited videos that are missing are generated, each is scored by a judge, and a table with confidence intervals is
    written. Rerun the same command to resume.

    Args:
        suite: the benchmark.
        data: folder in the published layout, or 'sandbox' to render items with known answers (default: data/SUITE; of
            the suite sandbox: sandbox)
        model: editor to score: a model folder or hub id (default with --data sandbox: sandbox)
        videos: folder of edited videos to score, named SOURCE_edited.mp4
        judge: oracle, or replay:LEDGER (default: the judge of the published table; with --data sandbox: oracle)
        rubrics: official rubrics, written by `bench rubrics import` (default: the built-in ones)
        out: folder of the run (default: runs/bench/SUITE-TIME)
        name: of the editor in the table (default: the model's or the folder's name)
        repeats: answers to each question; an item's score is their median
        concurrency: questions to the judge in flight
        per_minute: most questions to the judge a minute (default: no limit)
        tries: attempts at each question
        controls: bad edits of each kind that the judge must score below the real ones
        anchors: items to judge again, to detect drift of the judge
        allow_partial: report an overall score even if items are missing
        part: generate only this share of the videos, such as 2/4, and judge nothing
        steps: denoising steps (default: the model's own)
        max_pixels: height x width to edit at (default: the model's own)
        items: number of items of --data sandbox (default: twenty a category)
        level: difficulty of --data sandbox (default: full)
        metrics: metrics beside the judge's scores: PSNR, SSIM and flicker against the source; LPIPS (lpips=alex, vgg or
            squeeze); similarities of CLIP or DINO features
        gallery: do not write gallery.html
    """

    suite: SuiteName = positional()
    data: str | None = None
    model: str | None = None
    videos: Path | None = None
    judge: str | None = None
    rubrics: Path | None = None
    out: Path | None = None
    name: str | None = None
    repeats: int = 1
    concurrency: int = 8
    per_minute: float | None = None
    tries: int = 4
    controls: int = 12
    anchors: int = 0
    allow_partial: bool = False
    part: str = "1/1"
    steps: int | None = None
    max_pixels: int | None = None
    items: int | None = None
    level: LevelName | None = None
    metrics: tuple[str, ...] | None = option(None, metavar="basic|lpips|clip=FOLDER|dino=FOLDER", empty=True)
    gallery: bool = True

    def __post_init__(self) -> None:
        """Raises InputError for a number out of range, or an option that has no effect beside the others."""
        for field, least in (("repeats", 1), ("controls", 0), ("anchors", 0)):
            if (value := getattr(self, field)) < least:
                raise InputError(f"--{field} must be at least {least}", code="out-of-range", got=value)
        _ = self.rate_limit, self.part_index  # out of range?
        if self.model is not None and self.videos is not None:
            raise InputError("--model and --videos exclude each other", code="conflicting-options")
        generation = {"steps": self.steps, "max-pixels": self.max_pixels, "part": None if self.part == "1/1" else 1}
        rendering = {"items": self.items, "level": self.level}
        for group, requirement, is_met in (
            (generation, "videos that are generated, not to --videos", self.videos is None),
            (rendering, "--data sandbox only", self.renders_data),
        ):
            if unused := [f"--{name}" for name, value in group.items() if value is not None and not is_met]:
                raise InputError(f"{unused[0]} applies to {requirement}", code="unused-option", fix="leave it out")

    @property
    def data_name(self) -> str:
        """`data`, or the suite's default."""
        return self.data or ("sandbox" if self.suite == "sandbox" else f"data/{self.suite}")

    @property
    def renders_data(self) -> bool:
        """Whether the items are rendered by the sandbox."""
        return self.data_name == "sandbox"

    @property
    def editor(self) -> str | None:
        """`model`, or the shipped editor for items of the sandbox; None if videos are scored or nothing is given."""
        return self.model or (shipped.EDITOR if self.videos is None and self.renders_data else None)

    @property
    def rate_limit(self) -> RateLimit:
        """How fast the judge may be asked."""
        return RateLimit(concurrency=self.concurrency, per_minute=self.per_minute, tries=self.tries)

    @property
    def part_index(self) -> tuple[int, int]:
        """`part` as (which, of how many), from 1."""
        match = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", self.part)
        if match is None or int(match[1]) > int(match[2]):
            raise InputError("--part must be I/N with I from 1 to N", code="out-of-range", got=self.part)
        return int(match[1]), int(match[2])


@dataclass(frozen=True, kw_only=True)
class CompareOptions(Options):
    """Compare two runs item by item.

    The table has the differences B - A with confidence intervals and paired permutation tests.

    Args:
        a: folder of a run
        b: folder of another run on the same benchmark, with the same judge
        capped: compare capped scores (default: raw)
        allow_partial: report an overall difference even if items are missing
        out: Markdown file to write the table to
    """

    a: Path = positional()
    b: Path = positional()
    capped: bool = False
    allow_partial: bool = False
    out: Path | None = None


@dataclass(frozen=True, kw_only=True)
class AgreementOptions(Options):
    """Measure how well a judge agrees with people, or with another judge.

    Args:
        runs: folders of runs on the same videos
        labels: CSV file with the columns item, dimension, score and, if there are several people, rater
        out: Markdown file to write the table to
    """

    runs: tuple[Path, ...] = positional(metavar="RUN")
    labels: Path | None = None
    out: Path | None = None


@dataclass(frozen=True, kw_only=True)
class ShowRubricsOptions(Options):
    """Print the built-in rubrics of a benchmark as the judge reads them.

    Args:
        suite: the benchmark
    """

    suite: SuiteName = positional()


@dataclass(frozen=True, kw_only=True)
class ImportRubricsOptions(Options):
    """Extract the official rubrics from a local copy of the published script.

    The script is parsed and never run.

    Args:
        script: the published script
        suite: the benchmark that it belongs to
        out: file to write (default: SUITE-official.json)
    """

    script: Path = positional(metavar="FILE.py")
    suite: SuiteName = "openve"
    out: Path | None = None
