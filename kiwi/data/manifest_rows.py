"""Readers of CSV, JSONL and parquet manifests: they check the column names and yield rows with their locations."""

import csv
import logging
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from kiwi.errors import ManifestError, closest_match
from kiwi.reading import parse_json

log = logging.getLogger(__name__)

COLUMNS = [
    "src_video", "tgt_video", "prompt", "ref_image", "ref_image_bytes", "iid", "id", "edited_type", "mask", "caption",
]  # fmt: skip

# What programs write for a cell without a value, without its punctuation: "<NA>", "#N/A", "(null)", "-nan", "\\N".
_WORDS_FOR_NOTHING = {"", "nan", "none", "null", "na", "nil", "nat", "undefined", "n", "1ind", "1qnan"}
_SPREADSHEET_ERROR = re.compile(r"#[\w/]+[!?]")
_ASCII_PUNCTUATION = re.compile(r"[^0-9A-Za-z]+")
_BYTE_ORDER_MARKS = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a manifest: its cells by column, or the problem for which it could not be read."""

    location: str
    cells: dict[str, Any]
    problem: str | None = None


# Longer texts are not searched, because a cell may have millions of characters.
_LONGEST_WORDS_FOR_NOTHING = 200


def holds_nothing(value: Any) -> bool:
    """Whether a cell has no value: empty, null, NaN, or only words that programs write for it, such as "None"."""
    if isinstance(value, str):
        if len(value) > _LONGEST_WORDS_FOR_NOTHING and not value.isspace():
            return False
        text = unicodedata.normalize("NFKC", value).casefold().strip()
        # Only dots and slashes are a path.
        is_path = bool(text) and set(text) <= set("./\\")
        return not is_path and all(_is_word_for_nothing(word) for word in text.split())
    return value is None or value == b"" or value != value  # NaN


def _is_word_for_nothing(word: str) -> bool:
    if word.isascii():  # as most are; the same, but faster
        kept = _ASCII_PUNCTUATION.sub("", word)
    else:
        kept = "".join(c for c in word if unicodedata.category(c)[0] in "LMN" or unicodedata.category(c) == "So")
    return kept in _WORDS_FOR_NOTHING or _SPREADSHEET_ERROR.fullmatch(word) is not None


def require_utf8(path: Path) -> None:
    """Raise ManifestError if a text file is in another encoding; the message has the first line that is not UTF-8."""
    fix = "save it as UTF-8"
    with path.open("rb") as stream:
        start = stream.read(64)
        mark = next((name for mark, name in _BYTE_ORDER_MARKS.items() if start.startswith(mark)), None)
        if mark or b"\0" in start:
            message = f"The manifest {path} is not UTF-8 text but {mark or 'binary data or UTF-16'}"
            raise ManifestError(message, code="unreadable-file", fix=fix)
        stream.seek(0)
        for number, line in enumerate(stream, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                message = f"The manifest {path} is not UTF-8 text (line {number}: {error.reason})"
                got = f"{line[max(0, error.start - 20) : error.start + 20]!r}, perhaps Latin-1 or Windows-1252"
                raise ManifestError(message, code="unreadable-file", got=got, fix=fix) from None


def _read_csv_rows(path: Path, required: tuple[str, ...]) -> Iterator[Row]:
    require_utf8(path)
    _require_commas(path)
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


def _require_commas(path: Path) -> None:
    """Raise ManifestError if the header is separated by semicolons, tabs or bars, as some programs write CSV."""
    with path.open(encoding="utf-8-sig") as stream:
        header = next((line for line in stream if line.strip()), "").strip("\r\n ")
    for delimiter, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "|")):
        names = {cell.strip(" \"'") for cell in re.split(f"[,{delimiter}]", header)}
        if delimiter in header and (names & set(COLUMNS) or header.lower().startswith("sep=")):
            message = f"The columns of the manifest {path} are separated by {name}"
            fix = "save it with commas; in Python: pandas.read_csv(FILE, sep=...).to_csv(FILE, index=False)"
            raise ManifestError(message, code="wrong-delimiter", got=header[:200], expected="commas", fix=fix)


def _reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"the column {repeated[0]!r} occurs twice")
    return dict(pairs)


def _read_jsonl_rows(path: Path, required: tuple[str, ...]) -> Iterator[Row]:
    require_utf8(path)
    valid_names: set[tuple[str, ...]] = set()
    with path.open(encoding="utf-8-sig") as stream:
        for line, text in enumerate(stream, start=1):
            location = f"{path.name}, line {line}"
            if not text.strip():
                continue
            try:
                row = parse_json(text, allow_nan=True, object_pairs_hook=_reject_duplicates)
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
        leaves = pyarrow.parquet.read_metadata(path).schema
        texts = [leaves.column(i).path for i in range(len(leaves)) if leaves.column(i).physical_type == "BYTE_ARRAY"]
        # A small file may repeat a large cell many times: as a dictionary, it is in memory once.
        table = pyarrow.parquet.ParquetFile(path, read_dictionary=texts)
        header = list(table.schema_arrow.names)
        _check_columns(path, f"{path.name}, schema", header, required)
        columns = [name for name in header if name in COLUMNS]
        number = 0
        for batch in table.iter_batches(batch_size=256, columns=columns):
            for cells in zip(*map(_to_values, batch.columns), strict=True):
                number += 1
                row = dict(zip(batch.schema.names, cells, strict=True))
                yield Row(location=f"{path.name}, row {number}", cells=row)
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        message = f"The manifest {path} cannot be read as parquet ({error})"
        raise ManifestError(message, code="unreadable-file") from None


def _to_values(array: Any) -> list[Any]:
    """Convert an Arrow array to Python objects; a value that a dictionary repeats is one object."""
    from pyarrow import types

    if types.is_dictionary(array.type):
        values = array.dictionary.to_pylist()
        return [None if index is None else values[index] for index in array.indices.to_pylist()]
    is_valid = array.is_valid().to_pylist()
    if types.is_struct(array.type):
        names = [field.name for field in array.type]
        fields = zip(*(_to_values(array.field(index)) for index in range(len(names))), strict=True)
        return [dict(zip(names, v, strict=True)) if ok else None for v, ok in zip(fields, is_valid, strict=True)]
    if types.is_list(array.type) or types.is_large_list(array.type):
        elements = iter(_to_values(array.flatten()))
        lengths = array.value_lengths().to_pylist()
        return [None if length is None else list(islice(elements, length)) for length in lengths]
    return list(array.to_pylist())


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
