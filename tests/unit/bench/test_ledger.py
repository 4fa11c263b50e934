"""The ledger returns the judgements that were added to it, whatever is in a reply."""

import json
import logging
import re

import pytest

from kiwi.bench.ledger import Judgement, JudgementKey, Ledger, read_ledger
from kiwi.errors import InputError
from kiwi.media.run_dir import exclusive_lock

KEY = JudgementKey(
    item="a", repeat=0, judge="scripted", version="1", media={"edited": "0"}, instruction="Do it.", rubric="r",
    frames="all", temperature=None,
)  # fmt: skip


@pytest.mark.parametrize(
    "reply", ["one\u2028two", "one\x85two", "one\x0ctwo", "half \ud800 a character", "\n\r\t", "✓"]
)
def test_replies_with_unusual_characters_survive_a_round_trip(tmp_path, reply):
    reply = f"{reply}\nx: 3"
    judgement = Judgement(key=KEY, category="c", reply=reply, scores={"x": 3.0}, reason=None, seconds=0, at="")
    Ledger(tmp_path / "ledger.jsonl").add(judgement)
    reopened = Ledger(tmp_path / "ledger.jsonl")
    assert reopened.find(KEY) == judgement
    assert read_ledger(tmp_path / "ledger.jsonl") == [judgement]


def test_skipped_records_are_counted_in_the_log(tmp_path, caplog):
    file = tmp_path / "ledger.jsonl"
    Ledger(file).add(Judgement(key=KEY, category="c", reply="", scores=None, reason="", seconds=0, at=""))
    without_checksum = re.sub(r', "checksum": "\w+"', "", file.read_text())
    file.write_text("{}\n" + without_checksum.replace('"edited": "0"', '"edited": [1]') + file.read_text())
    with caplog.at_level(logging.WARNING, "kiwi"):
        assert len(read_ledger(file)) == 1
    assert "2 of 3 records" in caplog.text


@pytest.mark.parametrize(
    ("text", "replacement"),
    [
        ("x: 3", "x: 4"),
        ('{"x": 3.0}', '{"x": 4.0}'),
        ('"item": "a"', '"item": "b"'),
        ('"repeat": 0', '"repeat": 1'),
        ('"c"', '"d"'),
    ],
)
def test_a_judgement_that_was_edited_is_refused_with_its_line(tmp_path, text, replacement):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for repeat in (0, 0, 1):
        key = KEY.replace(repeat=repeat)
        ledger.add(Judgement(key=key, category="c", reply="x: 3", scores={"x": 3.0}, reason=None, seconds=0, at=""))
    lines = ledger.file.read_text().splitlines(keepends=True)
    ledger.file.write_text("".join([lines[0], lines[1].replace(text, replacement), lines[2]]))
    with pytest.raises(InputError, check=lambda error: error.code == "changed-file" and error.got == "line 2"):
        read_ledger(ledger.file)


def test_judgements_of_before_checksums_are_read(tmp_path):
    judgement = Judgement(key=KEY, category="c", reply="x: 3", scores={"x": 3.0}, reason=None, seconds=0, at="")
    Ledger(tmp_path / "ledger.jsonl").add(judgement)
    record = json.loads((tmp_path / "ledger.jsonl").read_text())
    del record["checksum"]
    (tmp_path / "old.jsonl").write_text(json.dumps(record) + "\n")
    assert read_ledger(tmp_path / "old.jsonl") == [judgement]


def test_repeated_and_conflicting_answers_to_one_question_are_logged(tmp_path, caplog):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for score in (2.0, 2.0, 5.0):
        scores, reply = {"x": score}, f"x: {score}"
        judgement = Judgement(key=KEY, category="c", reply=reply, scores=scores, reason=None, seconds=0, at="")
        ledger.add(judgement)
        with caplog.at_level(logging.WARNING, "kiwi"):
            latest = Ledger(tmp_path / "ledger.jsonl").find(KEY)
        assert latest == judgement
        assert ("1 questions have several judgements, 1 of them with different" in caplog.text) == (score == 5.0)
    assert "1 questions have several judgements, 0 of them with different scores" in caplog.text


@pytest.mark.parametrize("reply", ["x: 2", None, "", "x: 3\nActually, these are too generous."])
def test_scores_that_are_not_those_of_the_reply_do_not_count(tmp_path, caplog, reply):
    judgement = Judgement(key=KEY, category="c", reply=reply, scores={"x": 3.0}, reason=None, seconds=0, at="")
    Ledger(tmp_path / "ledger.jsonl").add(judgement)
    with caplog.at_level(logging.WARNING, "kiwi"):
        assert Ledger(tmp_path / "ledger.jsonl").find(KEY) is None
    assert "1 answers have scores that are not those of their reply" in caplog.text


def test_a_folder_in_place_of_the_file_is_rejected(tmp_path):
    (tmp_path / "ledger.jsonl").mkdir()
    with pytest.raises(InputError, check=lambda error: error.code == "unreadable-file"):
        read_ledger(tmp_path / "ledger.jsonl")
    (tmp_path / ".lock").mkdir()
    with pytest.raises(InputError, check=lambda error: error.code == "unwritable-folder"), exclusive_lock(tmp_path):
        pass
