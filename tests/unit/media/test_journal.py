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


def test_a_record_with_a_checksum_is_refused_after_any_change_of_it(tmp_path):
    journal = Journal(tmp_path / "x.jsonl", checked=True)
    for record in RECORDS:
        journal.append(record)
    assert journal.read() == RECORDS
    text = journal.path.read_text()
    for old, new, line in (('"a": 1,', '"a": 2,', 1), ('"a\\nb', '"b', 2), ('"c": null', '"d": null', 3)):
        assert old in text
        journal.path.write_text(text.replace(old, new))
        with pytest.raises(InputError, check=lambda error: error.code == "changed-file") as caught:
            journal.read()
        assert caught.value.got == f"line {line}"


def test_records_without_a_checksum_and_truncated_ones_are_not_taken_for_changed(tmp_path):
    journal = Journal(tmp_path / "x.jsonl", checked=True)
    Journal(tmp_path / "x.jsonl").append({"a": float("nan")})
    journal.append({"a": 1.5})
    journal.path.write_bytes(journal.path.read_bytes()[:-5])
    assert len(journal.read()) == 1
    journal.append({"b": float("nan")})
    assert [list(record) for record in journal.read()] == [["a"], ["b"]]


def test_a_line_without_a_checksum_after_one_with_a_checksum_was_changed(tmp_path):
    file = tmp_path / "journal.jsonl"
    file.write_text('{"a": 0}\n')
    journal = Journal(file, checked=True)
    journal.append({"a": 1})
    assert [record["a"] for record in Journal(file, checked=True).read()] == [0, 1]
    file.write_text(file.read_text() + '{"a": 2}\n')
    with pytest.raises(InputError, check=lambda error: error.code == "changed-file" and "line 3" in str(error)):
        Journal(file, checked=True).read()
