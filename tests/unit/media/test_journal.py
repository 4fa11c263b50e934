"""Records survive a kill at any byte; lines that are not records are skipped with a warning."""

import logging

import pytest

from kiwi.errors import InputError
from kiwi.media.journal import Journal

RECORDS = [{"a": 1}, {"b": "a\nb \ud800"}, {"c": None}]


@pytest.mark.parametrize("durable", [False, True])
def test_records_are_read_in_the_order_they_were_written(tmp_path, durable):
    journal = Journal(tmp_path / "x.jsonl", durable=durable)
    assert journal.read() == []
    for record in RECORDS:
        journal.append(record)
    assert Journal(tmp_path / "x.jsonl").read() == RECORDS


def test_after_truncation_at_any_byte_complete_and_later_records_are_read(tmp_path):
    path = tmp_path / "x.jsonl"
    for record in RECORDS:
        Journal(path).append(record)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        Journal(path).append({"new": length})
        lines = whole[:length].decode().split("\n")
        complete = sum(line.endswith("}") for line in lines)
        assert Journal(path).read() == [*RECORDS[:complete], {"new": length}]


def test_lines_that_are_not_json_objects_are_skipped_and_counted(tmp_path, caplog):
    (tmp_path / "x.jsonl").write_bytes(b'{"a": 1}\n[1]\n\xff\n\n3\n' + b"[" * 100_000 + b"\n")
    with caplog.at_level(logging.WARNING):
        assert Journal(tmp_path / "x.jsonl").read() == [{"a": 1}]
    assert "skipped 4 of 5 lines" in caplog.text


def test_reading_a_folder_is_an_error(tmp_path):
    with pytest.raises(InputError) as caught:
        Journal(tmp_path).read()
    assert caught.value.code == "unreadable-file"
