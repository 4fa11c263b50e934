"""Options of the benchmark commands. Files and names in them are checked where they are used."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from kiwi import shipped
from kiwi.bench.suites import SuiteName
from kiwi.errors import InputError
from kiwi.options import DeviceOptions, Options, option, positional
from kiwi.sandbox.sampling import LevelName

MIN_PER_MINUTE = 0.01
"""Smallest accepted rate limit, one question in 100 minutes."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkOptions(DeviceOptions):
    """Score an editor, or a folder of edited videos, on a benchmark.

    Generates missing edited videos, scores each with a judge, and writes a table with confidence intervals. Rerun the
    same command to resume.

    Args:
        suite: benchmark
        data: data folder in the published layout, or 'sandbox' to render items with exact targets (default: data/SUITE,
            or sandbox for the suite sandbox)
        model: editor to score: model folder or hub id (default with --data sandbox: the editor that kiwi ships)
        videos: folder of already edited videos to score, named SOURCE_edited.mp4
        judge: oracle, replay:LEDGER with the judgements.jsonl of a run, gemini:MODEL, openai:MODEL@URL for a server, or
            qwen:PATH (default with --data sandbox: oracle; else the judge of the published scores)
        judge_set: setting of a model judge, such as answer=json-scores-first or model.sampling.fps=2; may be repeated
        rubrics: file of official rubrics, written by `bench rubrics import` (default: the built-in rubrics)
        out: folder of the run (default: runs/bench/SUITE-TIME)
        name: name of the editor in the table (default: name of the model or of the folder of videos)
        repeats: number of answers to each question; an item's score is their median
        concurrency: number of questions that are sent to the judge at the same time
        per_minute: maximum number of questions to the judge per minute (default: no limit)
        tries: maximum number of attempts at each question
        budget: dollars after which the judge is asked no further question (default: no limit)
        prices: price table (YAML) of judges (default: the table that kiwi ships)
        controls: number of bad edits of each kind that the judge must score below the real edits
        anchors: number of already judged items to judge again, to detect drift of the judge
        allow_partial: report an overall score even if items are missing
        part: generate only this part of the videos, such as 2/4, and judge nothing
        steps: number of denoising steps (default: the model's)
        max_pixels: maximum height x width to edit at (default: the model's)
        items: number of items to render with --data sandbox (default: twenty per category)
        level: difficulty of the items with --data sandbox (default: full)
        metrics: automatic metrics to report: basic (PSNR, SSIM and flicker against the source), lpips (or lpips=vgg,
            lpips=squeeze), similarities of CLIP or DINO features
        gallery: write gallery.html
    """

    suite: SuiteName = positional()
    data: str | None = None
    model: str | None = None
    videos: Path | None = None
    judge: str | None = None
    judge_set: tuple[str, ...] = option((), metavar="PATH=VALUE", repeat=True)
    rubrics: Path | None = None
    out: Path | None = None
    name: str | None = None
    repeats: int = 1
    concurrency: int = 8
    per_minute: float | None = None
    tries: int = 4
    budget: float | None = None
    prices: Path | None = None
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
        """Raises InputError for a number out of range, or an option that has no effect with the others."""
        super().__post_init__()
        self.require_at_least(1, "repeats", "concurrency", "tries")
        self.require_at_least(0, "controls", "anchors")
        if self.per_minute is not None and not MIN_PER_MINUTE <= self.per_minute < math.inf:
            expected, got = f"a finite number of questions a minute, at least {MIN_PER_MINUTE}", self.per_minute
            raise InputError("--per-minute is out of range", code="out-of-range", got=got, expected=expected)
        if self.budget is not None and not 0 < self.budget < math.inf:
            raise InputError("--budget must be a positive number of dollars", code="out-of-range", got=self.budget)
        if self.model is not None and self.videos is not None:
            raise InputError("--model and --videos cannot be combined", code="conflicting-options")
        is_part = self.part_index != (1, 1)  # raises if out of range
        generation = {"--steps": self.steps, "--max-pixels": self.max_pixels, "--part": self.part if is_part else None}
        rendering = {"--items": self.items, "--level": self.level}
        for options, requirement, is_met in (
            (generation, "generated videos, not to --videos", self.videos is None),
            (rendering, "--data sandbox only", self.renders_data),
        ):
            if unused := [name for name, value in options.items() if value is not None and not is_met]:
                raise InputError(f"{unused[0]} applies to {requirement}", code="unused-option", fix="remove it")

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
        """`model`, or the shipped editor with `--data sandbox`; None with `videos`, or if neither is given."""
        return self.model or (shipped.EDITOR if self.videos is None and self.renders_data else None)

    @property
    def part_index(self) -> tuple[int, int]:
        """`part` as a pair: its index from 1, and the number of parts."""
        match = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", self.part)
        if match is None or int(match[1]) > int(match[2]):
            raise InputError("--part must be I/N with I from 1 to N", code="out-of-range", got=self.part)
        return int(match[1]), int(match[2])


@dataclass(frozen=True, kw_only=True)
class CompareOptions(Options):
    """Compare two runs item by item.

    Prints the differences B - A with confidence intervals and paired permutation tests.

    Args:
        a: folder of the first run
        b: folder of the second run, on the same benchmark with the same judge
        capped: compare capped scores (default: raw)
        allow_partial: report an overall difference even if items are missing
        out: Markdown file for the table
    """

    a: Path = positional()
    b: Path = positional()
    capped: bool = False
    allow_partial: bool = False
    out: Path | None = None


@dataclass(frozen=True, kw_only=True)
class AgreementOptions(Options):
    """Measure how well a judge agrees with human raters, or with another judge.

    Args:
        runs: folders of runs on the same videos
        labels: CSV file of human ratings with the columns item, dimension, score and, for several raters, rater
        out: Markdown file for the table
    """

    runs: tuple[Path, ...] = positional(metavar="RUN")
    labels: Path | None = None
    out: Path | None = None


@dataclass(frozen=True, kw_only=True)
class ShowRubricsOptions(Options):
    """Print the built-in rubrics of a benchmark as the judge reads them.

    Args:
        suite: benchmark
    """

    suite: SuiteName = positional()


@dataclass(frozen=True, kw_only=True)
class ImportRubricsOptions(Options):
    """Extract the official rubrics from a local copy of the published script.

    The script is parsed and never run.

    Args:
        script: local copy of the published evaluation script
        suite: benchmark that the script belongs to
        out: JSON file for the rubrics (default: SUITE-official.json)
    """

    script: Path = positional(metavar="FILE.py")
    suite: SuiteName = "openve"
    out: Path | None = None
