"""Readers of CSV, JSONL and parquet manifests: they check the column names and yield rows with their locations."""

import csv
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kiwi.errors import ManifestError, closest_match
from kiwi.reading import parse_json

log = logging.getLogger(__name__)

COLUMNS = [
    "src_video", "tgt_video", "prompt", "ref_image", "ref_image_bytes", "iid", "id", "edited_type", "mask", "caption",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a manifest: its cells by column, or the problem for which it could not be read."""

    location: str
    cells: dict[str, Any]
    problem: str | None = None


def _read_csv_rows(path: Path, required: tuple[str, ...]) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, strict=True)
        header: list[str] = []
        line = 1  # of the next row
        try:
            for cells in reader:
                location = f"{path.name}, line {line}"
                line = reader.line_num + 1  # a quoted cell may span lines
                if not cells:
                    continue
                if not header:
                    header = [name.strip() for name in cells]
                    _check_columns(path, location, header, required)
                elif len(cells) != len(header):
                    problem = f"it has {len(cells)} cells where the header has {len(header)} columns"
                    yield Row(location=location, cells={}, problem=problem)
                else:
                    row: dict[str, Any] = dict(zip(header, cells, strict=True))
                    if row.get("ref_image") and not row["ref_image"].lstrip().startswith("["):
                        row["ref_image"] = row["ref_image"].split("|")
                    yield Row(location=location, cells=row)
        except csv.Error as error:
            yield Row(location=f"{path.name}, line {line}", cells={}, problem=f"it is not valid CSV ({error})")


def _read_jsonl_rows(path: Path, required: tuple[str, ...]) -> Iterator[Row]:
    valid_names: set[tuple[str, ...]] = set()
    with path.open(encoding="utf-8-sig") as stream:
        for line, text in enumerate(stream, start=1):
            location = f"{path.name}, line {line}"
            if not text.strip():
                continue
            try:
                row = parse_json(text, allow_nan=True)
            except ValueError as error:
                problem = f"it is not valid JSON ({str(error).split(': line')[0]})"
                yield Row(location=location, cells={}, problem=problem)
                continue
            if not isinstance(row, dict):
                yield Row(location=location, cells={}, problem=f"it is not a JSON object but {type(row).__name__}")
                continue
            names = tuple(row)
            column_problem = None if names in valid_names else _find_column_problem(list(names), required)
            if column_problem is None:
                valid_names.add(names)
            yield Row(location=location, cells=row, problem=column_problem)


def _read_parquet_rows(path: Path, required: tuple[str, ...]) -> Iterator[Row]:
    import pyarrow  # heavy, and only this format needs it
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
        header = list(table.schema_arrow.names)
        _check_columns(path, f"{path.name}, schema", header, required)
        columns = [name for name in header if name in COLUMNS]
        number = 0
        for batch in table.iter_batches(batch_size=256, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield Row(location=f"{path.name}, row {number}", cells=row)
    except (pyarrow.ArrowException, OSError) as error:
        message = f"The manifest {path} cannot be read as parquet ({error})"
        raise ManifestError(message, code="unreadable-file") from None


def _check_columns(path: Path, location: str, columns: list[str], required: tuple[str, ...]) -> None:
    if problem := _find_column_problem(columns, required):
        message = f"The manifest {path} has wrong columns ({location}): {problem}"
        raise ManifestError(message, code="unknown-column", fix="rename the columns")
    if unused := [name for name in columns if name not in COLUMNS]:
        log.info("%s: columns that are not used: %s", path, ", ".join(unused))


def _find_column_problem(columns: list[str], required: tuple[str, ...]) -> str | None:
    """Describe what is wrong with the column names; unknown ones are accepted unless they resemble a known one."""
    problems = [f"the column {name!r} occurs twice" for name in sorted(set(columns)) if columns.count(name) > 1]
    misspelt: set[str] = set()
    for name in columns:
        meant = closest_match(name.strip().lower(), COLUMNS, cutoff=0.8)
        if name not in COLUMNS and meant and meant not in columns:
            problems.append(f"unknown column {name!r}, did you mean {meant!r}?")
            misspelt.add(meant)
    if missing := [name for name in required if name not in columns and name not in misspelt]:
        problems.insert(0, f"missing {', '.join(missing)}")
    return f"{'; '.join(problems)} (columns: {', '.join(map(str, columns))})" if problems else None


READERS = {".csv": _read_csv_rows, ".jsonl": _read_jsonl_rows, ".parquet": _read_parquet_rows}
"""Row readers by file suffix: `reader(path, required columns)` yields the rows of a file."""
