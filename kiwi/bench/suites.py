"""Suites: definitions of benchmarks (benchmarks/NAME), their items in a data folder, and their published results."""

import csv
import io
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from kiwi.errors import InputError, ManifestError, format_choices
from kiwi.media.files import resolve_inside
from kiwi.reading import read_yaml, require_text
from kiwi.spec import Spec, from_dict

SuiteName = Literal["openve", "refvie", "sandbox"]
SUITES: tuple[str, ...] = get_args(SuiteName)
"""Names of all suites."""

DEFINITIONS = Path(__file__).parent
"""Folder of the definitions; the package links to benchmarks/ of the source tree so that they are installed too."""


@dataclass(frozen=True, kw_only=True)
class Category(Spec):
    """Items that are judged by the same rubric.

    Args:
        dimensions: names of the three scores; the first caps the others.
        items: number of items of the published benchmark; 0 for any number.
        rubrics: suite whose built-in rubric is used; empty for this suite.
    """

    dimensions: tuple[str, str, str]
    items: int = 0
    rubrics: str = ""


@dataclass(frozen=True, kw_only=True)
class Suite(Spec):
    """A benchmark's definition.

    Args:
        name: name on the command line.
        title: name in the paper.
        lists: layouts that the list of items may have, keys of LIST_FILES.
        judge: judge of the published scores.
        inputs: files that a judge sees, in order.
        frames: maximum number of frames of generated videos.
        fps: frame rate of generated videos.
        columns: kind of the table's columns, over which the overall score is the mean.
        categories: scored categories by name, in the order of the published table.
        excluded: reason for each category of the data that is not scored.
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
        """Number of scored items of the published benchmark; 0 for any number."""
        return sum(category.items for category in self.categories.values())

    @property
    def dimensions(self) -> dict[str, tuple[str, str, str]]:
        """Names of the three scores of each category."""
        return {name: category.dimensions for name, category in self.categories.items()}


def read_suite(name: str) -> Suite:
    """Read a suite's definition. Raises InputError for an unknown name."""
    if name not in SUITES:
        raise InputError(f"unknown benchmark {name!r}", code="unknown-suite", expected=format_choices(SUITES, name))
    definition = read_yaml(DEFINITIONS / name / "bench.yaml")
    suite: Suite = from_dict(Suite, {"name": name, **definition}, name)
    return suite


@dataclass(frozen=True, kw_only=True)
class BenchmarkItem(Spec):
    """A source video with an instruction.

    Args:
        id: stem of the source's file name; later items of the same source get a number ("clip_2").
        category: name of the category in the benchmark.
        instruction: description of the edit.
        source: file of the source video.
        reference: file of the reference image, if any.
    """

    id: str
    category: str
    instruction: str
    source: Path
    reference: Path | None = None

    @property
    def edited_name(self) -> str:
        """File name of the edited video as in the published code: `<source stem>_edited.mp4`."""
        return f"{self.id}_edited.mp4"


@dataclass(frozen=True, kw_only=True)
class SuiteData:
    """The scored items of a data folder, and the number of items of each excluded category."""

    items: tuple[BenchmarkItem, ...]
    excluded: Mapping[str, int]


def read_items(suite: Suite, data: Path) -> SuiteData:
    """Read a benchmark's items from a folder in the published layout.

    The folder has benchmark_videos.csv (edited_type, prompt, original_video) or refvie_bench.yaml (src_video, ref_img,
    instruction, edit_type); paths in them are relative to the folder.

    Raises:
        ManifestError: the list is missing or malformed (the message names the line), or files are missing.
        InputError: a path leaves the folder.
    """
    rows = [row for layout in suite.lists for row in _READERS[layout](data)]
    if not rows:
        expected = "items in " + " or ".join(LIST_FILES[layout] for layout in suite.lists)
        raise ManifestError(f"{data} lists no items", code="no-items", expected=expected, fix="check --data")
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
        stems[key := stem.lower()] += 1  # some file systems do not distinguish upper and lower case
        image = row.reference
        item = BenchmarkItem(
            id=stem if stems[key] == 1 else f"{stem}_{stems[key]}",
            category=row.category,
            instruction=row.instruction,
            source=resolve_inside(data, row.source, f"video of {row.location}"),
            reference=None if image is None else resolve_inside(data, image, f"image of {row.location}"),
        )
        items.append(item)
    if len({item.id.lower() for item in items}) < len(items):
        fix = "rename the source videos"
        raise ManifestError(f"several items of {data} have the same id", code="duplicate-item", fix=fix)
    files = [path for item in items for path in (item.source, item.reference) if path is not None]
    if missing := [path for path in files if not os.path.isfile(path)]:  # noqa: PTH113 (Path.is_file raises for names that are too long)
        problem = f"{len(missing)} of {len(files)} files of {data} are missing, such as {missing[0]}"
        raise ManifestError(problem, code="missing-file", fix="download them, or check --data")
    return SuiteData(items=tuple(items), excluded=dict(excluded))


LIST_FILES = {"openve": "benchmark_videos.csv", "refvie": "refvie_bench.yaml"}
"""File that lists the items, by layout."""


class _Row(NamedTuple):
    location: str
    category: str
    instruction: str
    source: str
    reference: str | None = None


def _read_openve_rows(data: Path) -> Iterator[_Row]:
    if not (file := data / LIST_FILES["openve"]).is_file():
        return
    try:
        reader = csv.DictReader(io.StringIO(file.read_text(encoding="utf-8-sig"), newline=""))
        lines = list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ManifestError(f"{file} cannot be read", code="unreadable-file", got=error) from None
    columns = reader.fieldnames or []
    if duplicates := {name for name in columns if columns.count(name) > 1}:
        raise ManifestError(f"{file} has duplicate columns", code="duplicate-column", got=", ".join(sorted(duplicates)))
    for number, line in enumerate(lines, 2):
        yield _parse_row(f"{file} line {number}", line, ("edited_type", "prompt", "original_video"))


def _read_refvie_rows(data: Path) -> Iterator[_Row]:
    if not (file := data / LIST_FILES["refvie"]).is_file():
        return
    entries = read_yaml(file, ManifestError, what="list of items")
    if not isinstance(entries, list):
        raise ManifestError(f"{file} is not a list of items", code="unreadable-file", got=type(entries).__name__)
    for number, entry in enumerate(entries, 1):
        yield _parse_row(f"{file} item {number}", entry, ("edit_type", "instruction", "src_video", "ref_img"))


_READERS = {"openve": _read_openve_rows, "refvie": _read_refvie_rows}


def _parse_row(location: str, entry: Any, fields: Sequence[str]) -> _Row:
    """Make a row from the named fields of an entry, given in the order of _Row's fields."""
    values = {name: entry.get(name) if isinstance(entry, dict) else None for name in fields}
    if missing := [name for name, value in values.items() if not isinstance(value, str) or not value.strip()]:
        raise ManifestError(f"{location} has no {', '.join(missing)}", code="missing-field", expected=", ".join(fields))
    for name, value in values.items():
        require_text(str(value), f"{name} of {location}")
    return _Row(location, *(str(value).strip() for value in values.values()))


_DESCRIPTIVE_COLUMNS = ("method", "params", "judge", "overall", "doubt", "source")


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """A row of a published table.

    Args:
        method: name of the editor.
        judge: judge of the scores, which are not comparable with those of another judge.
        overall: published overall score.
        columns: published score of each column.
        doubt: reason to doubt the row; empty if there is none.
    """

    method: str
    judge: str
    overall: float
    columns: Mapping[str, float]
    doubt: str


def read_published_rows(suite: Suite) -> list[PublishedRow]:
    """Read the published table of a suite; empty if there is none."""
    file = DEFINITIONS / suite.name / "published.csv"
    if not file.is_file():
        return []
    rows = []
    for line in csv.DictReader(file.read_text(encoding="utf-8").splitlines()):
        columns = {column: float(value) for column, value in line.items() if column not in _DESCRIPTIVE_COLUMNS}
        about = {name: line[name] for name in ("method", "judge", "doubt")}
        rows.append(PublishedRow(**about, overall=float(line["overall"]), columns=columns))
    return rows
