"""Suites: what a benchmark asks, from its definition (benchmarks/NAME/bench.yaml) and its data."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from kiwi.bench.case import Case
from kiwi.bench.rubric import Rubric, own_rubric
from kiwi.errors import InputError, ManifestError
from kiwi.media.files import resolve_inside
from kiwi.spec import Spec, from_dict

SUITES = ("openve", "refvie", "sandbox")


@dataclass(frozen=True, kw_only=True)
class Category(Spec):
    """Items that are judged by the same rubric.

    Args:
        dimensions: names of the three scores; the first caps the others.
        items: how many the published benchmark has; 0 where the data decides.
        rubrics: the suite whose rubric it is, where it is not this one.
    """

    dimensions: tuple[str, str, str]
    items: int = 0
    rubrics: str = ""


@dataclass(frozen=True, kw_only=True)
class Suite(Spec):
    """A benchmark's definition.

    Args:
        title: its name.
        lists: layouts in which its items are listed.
        judge: who the published scores are from.
        inputs: what a judge sees, in order.
        frames, fps: of videos that are generated for it, frames at most.
        columns: what the overall score is the mean of.
        categories: by name, in the order of the published table.
        excluded: categories that are in the data and not in the scores, and why.
    """

    title: str
    lists: tuple[Literal["openve", "refvie"], ...]
    judge: str
    inputs: tuple[Literal["reference", "source", "edited"], ...]
    frames: int
    fps: float
    columns: Literal["categories", "dimensions"]
    categories: dict[str, Category]
    excluded: dict[str, str]

    @property
    def expected(self) -> int:
        """Items of the published benchmark that are scored; 0 where the data decides."""
        return sum(category.items for category in self.categories.values())


DEFINITIONS = Path(__file__).parent
"""Where they lie: benchmarks/ of the source tree, linked into the package so that an installed one has them too."""


def read_suite(name: str) -> Suite:
    """A suite by its name. Raises InputError for a name that is none."""
    if name not in SUITES:
        raise InputError(f"there is no benchmark {name!r}", wanted=f"one of {', '.join(SUITES)}")
    said = yaml.safe_load((DEFINITIONS / name / "bench.yaml").read_text(encoding="utf-8"))
    suite: Suite = from_dict(Suite, said, name)
    return suite


def own_rubrics(name: str, suite: Suite) -> dict[str, Rubric]:
    """Our rubric of each category."""
    return {
        category: own_rubric(
            DEFINITIONS / (what.rubrics or name) / "rubrics" / f"{category}.md", category, what.dimensions
        )
        for category, what in suite.categories.items()
    }


@dataclass(frozen=True, kw_only=True)
class Cases:
    """What was found in a folder of data: the items that are scored, and how many are not, by category."""

    scored: tuple[Case, ...]
    excluded: Mapping[str, int]

    def counts(self) -> dict[str, int]:
        """Items that are scored, by category."""
        return dict(Counter(case.category for case in self.scored))


def read_cases(suite: Suite, data: Path) -> Cases:
    """A benchmark's items from a folder in the published layout.

    Args:
        suite: whose.
        data: with benchmark_videos.csv (edited_type, prompt, original_video), or refvie_bench.yaml (src_video, ref_img,
            instruction, edit_type); paths in them are relative to it.

    Raises:
        ManifestError: a list that is not there or cannot be read, with the line; files that are not there.
        InputError: a path that leaves the folder.
    """
    rows = [row for layout in suite.lists for row in _READERS[layout](data)]
    if not rows:
        raise ManifestError(f"{data} lists no items", wanted=" or ".join(LISTS[layout] for layout in suite.lists))
    known = {*suite.categories, *suite.excluded}
    seen: Counter[str] = Counter()
    scored, excluded = [], Counter[str]()
    for row in rows:
        if row.category not in known:
            raise ManifestError(f"{row.where} is of an unknown category", got=row.category, wanted=", ".join(known))
        if row.category in suite.excluded:
            excluded[row.category] += 1
            continue
        stem = Path(row.source).stem
        seen[stem] += 1
        case = Case(
            id=stem if seen[stem] == 1 else f"{stem}_{seen[stem]}",
            category=row.category,
            instruction=row.instruction,
            source=resolve_inside(data, row.source, f"video of {row.where}"),
            reference=None if row.reference is None else resolve_inside(data, row.reference, f"image of {row.where}"),
        )
        scored.append(case)
    if len({case.id for case in scored}) < len(scored):
        raise ManifestError(f"items of {data} would be edited into the same file", fix="give the videos other names")
    files = [path for case in scored for path in (case.source, case.reference) if path is not None]
    if missing := [path for path in files if not os.path.isfile(path)]:  # noqa: PTH113 (it takes names that are too long)
        raise ManifestError(
            f"{len(missing)} of {len(files)} files of {data} are missing", got=", ".join(map(str, missing[:3]))
        )
    return Cases(scored=tuple(scored), excluded=dict(excluded))


LISTS = {"openve": "benchmark_videos.csv", "refvie": "refvie_bench.yaml"}


@dataclass(frozen=True, kw_only=True)
class _Row:
    where: str
    category: str
    instruction: str
    source: str
    reference: str | None = None


def _openve(data: Path) -> Iterator[_Row]:
    if not (file := data / LISTS["openve"]).is_file():
        return
    try:
        reader = csv.DictReader(io.StringIO(file.read_text(encoding="utf-8-sig"), newline=""))
        lines = list(reader)
    except (csv.Error, UnicodeDecodeError) as problem:
        raise ManifestError(f"{file} cannot be read", got=problem) from None
    columns = reader.fieldnames or []
    if twice := {name for name in columns if columns.count(name) > 1}:
        raise ManifestError(f"{file} has columns that are there twice", got=", ".join(sorted(twice)))
    for number, line in enumerate(lines, 2):
        yield _row(f"{file} line {number}", line, ("edited_type", "prompt", "original_video"))


def _refvie(data: Path) -> Iterator[_Row]:
    if not (file := data / LISTS["refvie"]).is_file():
        return
    try:
        items = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as problem:
        raise ManifestError(f"{file} cannot be read", got=str(problem).replace("\n", " ")) from None
    if not isinstance(items, list):
        raise ManifestError(f"{file} is no list of items", got=type(items).__name__)
    for number, item in enumerate(items, 1):
        yield _row(f"{file} item {number}", item, ("edit_type", "instruction", "src_video", "ref_img"))


_READERS = {"openve": _openve, "refvie": _refvie}


def _row(where: str, item: Any, names: Sequence[str]) -> _Row:
    values = [item.get(name) if isinstance(item, dict) else None for name in names]
    if wrong := [
        name for name, value in zip(names, values, strict=True) if not isinstance(value, str) or not value.strip()
    ]:
        raise ManifestError(f"{where} has no {', '.join(wrong)}", wanted=", ".join(names))
    category, instruction, source, *reference = (str(value).strip() for value in values)
    return _Row(
        where=where, category=category, instruction=instruction, source=source, reference=next(iter(reference), None)
    )
