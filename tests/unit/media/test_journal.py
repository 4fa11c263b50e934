"""Records survive a kill at any byte; what is not a record is skipped and logged."""

import logging

import pytest

from kiwi.errors import InputError
from kiwi.media.journal import Journal

RECORDS = [{"a": 1}, {"b": "a\nb \ud800"}, {"c": None}]


@pytest.mark.parametrize("durable", [False, True])
def test_records_come_back_in_their_order(tmp_path, durable):
    journal = Journal(tmp_path / "x.jsonl", durable=durable)
    assert journal.read() == []
    for record in RECORDS:
        journal.append(record)
    assert Journal(tmp_path / "x.jsonl").read() == RECORDS


def test_cut_at_any_byte_all_whole_records_and_the_next_one_are_there(tmp_path):
    path = tmp_path / "x.jsonl"
    for record in RECORDS:
        Journal(path).append(record)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        Journal(path).append({"new": length})
        before = whole[:length].decode().split("\n")
        complete = sum(line.endswith("}") for line in before)
        assert Journal(path).read() == [*RECORDS[:complete], {"new": length}]


def test_lines_that_are_no_objects_are_skipped_and_counted(tmp_path, caplog):
    (tmp_path / "x.jsonl").write_bytes(b'{"a": 1}\n[1]\n\xff\n\n3\n' + b"[" * 100_000 + b"\n")
    with caplog.at_level(logging.WARNING):
        assert Journal(tmp_path / "x.jsonl").read() == [{"a": 1}]
    assert "skipped 4 of 5 lines" in caplog.text


def test_a_folder_in_its_place_is_refused(tmp_path):
    with pytest.raises(InputError) as caught:
        Journal(tmp_path).read()
    assert caught.value.code == "unreadable-file"
