"""Suites: a benchmark's definition (benchmarks/NAME), its items, read from a folder of data, and published results."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from kiwi.errors import InputError, ManifestError, format_choices
from kiwi.media.files import resolve_inside
from kiwi.spec import Spec, from_dict

SUITES = ("openve", "refvie", "sandbox")

DEFINITIONS = Path(__file__).parent
"""Folder of the definitions: benchmarks/ of the source tree is linked into the package, so that it is installed too."""


@dataclass(frozen=True, kw_only=True)
class Category(Spec):
    """Items that are judged by the same rubric.

    Args:
        dimensions: names of the three scores; the first caps the others.
        items: number of items of the published benchmark; 0 if the data decides.
        rubrics: the suite whose built-in rubric is used; this one if empty.
    """

    dimensions: tuple[str, str, str]
    items: int = 0
    rubrics: str = ""


@dataclass(frozen=True, kw_only=True)
class Suite(Spec):
    """A benchmark's definition.

    Args:
        name: as on the command line.
        title: as in the paper.
        lists: layouts in which its items may be listed.
        judge: that gave the published scores.
        inputs: what a judge sees, in order.
        frames, fps: of videos that are generated for it, frames at most.
        columns: what the overall score is the mean of.
        categories: by name, in the order of the published table.
        excluded: categories that are in the data but not scored, each with the reason.
    """

    name: str
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
    def expected_items(self) -> int:
        """Number of scored items of the published benchmark; 0 if the data decides."""
        return sum(category.items for category in self.categories.values())

    @property
    def dimensions(self) -> dict[str, tuple[str, str, str]]:
        """Names of the three scores, by category."""
        return {name: category.dimensions for name, category in self.categories.items()}


def read_suite(name: str) -> Suite:
    """A suite by its name. Raises InputError if there is none of that name."""
    if name not in SUITES:
        raise InputError(f"there is no benchmark {name!r}", code="unknown-suite", expected=format_choices(SUITES, name))
    definition = yaml.safe_load((DEFINITIONS / name / "bench.yaml").read_text(encoding="utf-8"))
    suite: Suite = from_dict(Suite, {"name": name, **definition}, name)
    return suite


@dataclass(frozen=True, kw_only=True)
class BenchmarkItem:
    """A source video with an instruction.

    Args:
        id: unique in the benchmark; the source's name without its suffix, numbered where several items share a source.
        category: as the benchmark names it.
        instruction: describes the edit.
        source: the video.
        reference: the reference image, if any.
    """

    id: str
    category: str
    instruction: str
    source: Path
    reference: Path | None = None

    @property
    def edited_name(self) -> str:
        """File name of its edited video, as published: `<source stem>_edited.mp4`."""
        return f"{self.id}_edited.mp4"


@dataclass(frozen=True, kw_only=True)
class SuiteData:
    """Items in a folder of data: those that are scored, and how many are not, by category."""

    items: tuple[BenchmarkItem, ...]
    excluded: Mapping[str, int]


def read_items(suite: Suite, data: Path) -> SuiteData:
    """A benchmark's items from a folder in the published layout.

    Args:
        suite: the benchmark.
        data: with benchmark_videos.csv (edited_type, prompt, original_video), or refvie_bench.yaml (src_video, ref_img,
            instruction, edit_type); paths in them are relative to it.

    Raises:
        ManifestError: a list that is missing or malformed, with the line; files that are missing.
        InputError: a path that leaves the folder.
    """
    rows = [row for layout in suite.lists for row in _READERS[layout](data)]
    if not rows:
        raise ManifestError(
            f"{data} lists no items", code="no-items", expected=" or ".join(LISTS[layout] for layout in suite.lists)
        )
    known = {*suite.categories, *suite.excluded}
    items, stems, excluded = [], Counter[str](), Counter[str]()
    for row in rows:
        if row.category not in known:
            problem = f"{row.location} has an unknown category, {row.category!r}"
            raise ManifestError(problem, code="unknown-category", expected=format_choices(known, row.category))
        if row.category in suite.excluded:
            excluded[row.category] += 1
            continue
        stem = Path(row.source).stem
        stems[stem] += 1
        item = BenchmarkItem(
            id=stem if stems[stem] == 1 else f"{stem}_{stems[stem]}",
            category=row.category,
            instruction=row.instruction,
            source=resolve_inside(data, row.source, f"video of {row.location}"),
            reference=None
            if row.reference is None
            else resolve_inside(data, row.reference, f"image of {row.location}"),
        )
        items.append(item)
    if len({item.id for item in items}) < len(items):
        raise ManifestError(
            f"several items of {data} have the same name", code="duplicate-item", fix="rename the source videos"
        )
    files = [path for item in items for path in (item.source, item.reference) if path is not None]
    if missing := [path for path in files if not os.path.isfile(path)]:  # noqa: PTH113 (accepts names that are too long)
        problem = f"{len(missing)} of {len(files)} files of {data} are missing, such as {missing[0]}"
        raise ManifestError(problem, code="missing-file")
    return SuiteData(items=tuple(items), excluded=dict(excluded))


LISTS = {"openve": "benchmark_videos.csv", "refvie": "refvie_bench.yaml"}


class _Row(NamedTuple):
    location: str
    category: str
    instruction: str
    source: str
    reference: str | None = None


def _openve_rows(data: Path) -> Iterator[_Row]:
    if not (file := data / LISTS["openve"]).is_file():
        return
    try:
        reader = csv.DictReader(io.StringIO(file.read_text(encoding="utf-8-sig"), newline=""))
        lines = list(reader)
    except (csv.Error, UnicodeDecodeError) as problem:
        raise ManifestError(f"{file} cannot be read", code="unreadable-file", got=problem) from None
    columns = reader.fieldnames or []
    if duplicates := {name for name in columns if columns.count(name) > 1}:
        raise ManifestError(f"{file} has duplicate columns", code="duplicate-column", got=", ".join(sorted(duplicates)))
    for number, line in enumerate(lines, 2):
        yield _row(f"{file} line {number}", line, ("edited_type", "prompt", "original_video"))


def _refvie_rows(data: Path) -> Iterator[_Row]:
    if not (file := data / LISTS["refvie"]).is_file():
        return
    try:
        entries = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as problem:
        message = str(problem).replace("\n", " ")
        raise ManifestError(f"{file} cannot be read", code="unreadable-file", got=message) from None
    if not isinstance(entries, list):
        raise ManifestError(f"{file} is not a list of items", code="unreadable-file", got=type(entries).__name__)
    for number, entry in enumerate(entries, 1):
        yield _row(f"{file} item {number}", entry, ("edit_type", "instruction", "src_video", "ref_img"))


_READERS = {"openve": _openve_rows, "refvie": _refvie_rows}


def _row(location: str, entry: Any, fields: Sequence[str]) -> _Row:
    """A row from an entry's fields, in the row's order."""
    values = {name: entry.get(name) if isinstance(entry, dict) else None for name in fields}
    if missing := [name for name, value in values.items() if not isinstance(value, str) or not value.strip()]:
        raise ManifestError(f"{location} has no {', '.join(missing)}", code="missing-field", expected=", ".join(fields))
    return _Row(location, *(str(value).strip() for value in values.values()))


_ABOUT = ("method", "params", "judge", "overall", "doubt", "source")


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """A row of a published table.

    Args:
        method, params: name and size of the editor.
        judge: that gave the scores, which are not comparable with those of another.
        overall: as published.
        columns: by name, as published.
        doubt: why the row may be wrong; empty if nothing is known against it.
        source: where it was published.
    """

    method: str
    params: str
    judge: str
    overall: float
    columns: Mapping[str, float]
    doubt: str
    source: str


def published_rows(suite: Suite) -> list[PublishedRow]:
    """The published table of a suite; empty if there is none."""
    file = DEFINITIONS / suite.name / "published.csv"
    if not file.is_file():
        return []
    rows = []
    for line in csv.DictReader(file.read_text(encoding="utf-8").splitlines()):
        columns = {column: float(value) for column, value in line.items() if column not in _ABOUT}
        about = {key: line[key] for key in _ABOUT if key != "overall"}
        rows.append(PublishedRow(**about, overall=float(line["overall"]), columns=columns))
    return rows
