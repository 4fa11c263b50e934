"""A folder that a resumable command fills belongs to the settings it was begun with."""

from pathlib import Path

import pytest

from kiwi.errors import InputError
from kiwi.media.run_dir import open_run_dir, read_record

SETTINGS = {"seed": 0, "size": [32, 32], "level": "easy"}


def test_a_new_folder_is_claimed_and_gone_on_with(tmp_path: Path) -> None:
    record = tmp_path / "above" / "out" / "world.json"
    assert open_run_dir(record, {**SETTINGS, "size": (32, 32)}, "an export") == record.parent
    written = record.read_bytes()
    assert read_record(record) == SETTINGS
    (record.parent / "items").touch()
    open_run_dir(record, SETTINGS, "an export")
    assert record.read_bytes() == written


@pytest.mark.parametrize(
    ("now", "got", "wanted"),
    [
        ({**SETTINGS, "seed": 1}, "seed 1", "seed 0"),
        ({**SETTINGS, "split": None}, "split None", "split None"),
        ({"seed": 0, "size": [32, 32]}, "none of some that it has", "level easy"),
    ],
)
def test_other_settings_are_told_apart(tmp_path: Path, now: dict, got: str, wanted: str) -> None:
    record = tmp_path / "world.json"
    open_run_dir(record, SETTINGS, "an export")
    with pytest.raises(InputError, match="holds an export with other settings") as caught:
        open_run_dir(record, now, "an export")
    assert got in str(caught.value)
    assert wanted in str(caught.value)
    assert read_record(record) == SETTINGS


def test_somebody_elses_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="is not an export"):
        open_run_dir(tmp_path / "world.json", SETTINGS, "an export", allowed=("videos",))
    with pytest.raises(InputError, match="is not an export"):
        open_run_dir(tmp_path / "thesis.tex" / "world.json", SETTINGS, "an export")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_may_lie_there_already(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    open_run_dir(tmp_path / "run.json", SETTINGS, "a run", allowed=("videos",))
    assert read_record(tmp_path / "run.json") == SETTINGS


@pytest.mark.parametrize("text", ["", "{", "[1]", "\udcff"])
def test_a_spoilt_record_is_no_traceback(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match="cannot be read"):
        open_run_dir(tmp_path / "run.json", SETTINGS, "a run")
