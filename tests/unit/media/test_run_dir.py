"""The folder of a resumable command accepts only the settings that it was started with."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kiwi.errors import InputError
from kiwi.media.run_dir import exclusive_lock, open_run_dir, read_record

SETTINGS = {"seed": 0, "size": [32, 32], "level": "easy"}


def test_a_folder_is_created_once_and_then_resumed(tmp_path: Path) -> None:
    record = tmp_path / "above" / "out" / "world.json"
    assert open_run_dir(record, {**SETTINGS, "size": (32, 32)}, "an export") == record.parent
    written = record.read_bytes()
    assert read_record(record) == SETTINGS
    (record.parent / "items").touch()
    open_run_dir(record, SETTINGS, "an export")
    assert record.read_bytes() == written


@pytest.mark.parametrize(
    ("settings", "got", "expected"),
    [
        ({**SETTINGS, "seed": 1}, "seed 1", "seed 0"),
        ({**SETTINGS, "split": None}, "split None", "no split"),
        ({"seed": 0, "size": [32, 32]}, "no level", "level easy"),
    ],
)
def test_different_settings_are_rejected_with_both_values(
    tmp_path: Path, settings: dict, got: str, expected: str
) -> None:
    record = tmp_path / "world.json"
    open_run_dir(record, SETTINGS, "an export")
    with pytest.raises(InputError, check=lambda error: error.code == "changed-settings") as caught:
        open_run_dir(record, settings, "an export")
    assert got in str(caught.value)
    assert expected in str(caught.value)
    assert read_record(record) == SETTINGS


def test_a_folder_with_unexpected_files_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"thesis\.tex", check=lambda error: error.code == "occupied-folder"):
        open_run_dir(tmp_path / "world.json", SETTINGS, "an export", allowed=("videos",))
    with pytest.raises(InputError, check=lambda error: error.code == "unwritable-folder"):
        open_run_dir(tmp_path / "thesis.tex" / "world.json", SETTINGS, "an export")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_allowed_files_may_exist_before_the_record(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    open_run_dir(tmp_path / "run.json", SETTINGS, "a run", allowed=("videos",))
    assert read_record(tmp_path / "run.json") == SETTINGS


@pytest.mark.parametrize("text", ["", "{", "[1]", "\udcff"])
def test_a_damaged_record_is_an_input_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, check=lambda error: error.code == "unreadable-file"):
        open_run_dir(tmp_path / "run.json", SETTINGS, "a run")


def _delete(folder: Path) -> None:
    shutil.rmtree(folder)


def _rename(folder: Path) -> None:
    folder.rename(folder.with_name("moved"))


def _make_anew(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / ".lock").touch()  # of another process


@pytest.mark.parametrize("change", [_delete, _rename, _make_anew])
@pytest.mark.parametrize("error", [None, FileNotFoundError, InputError])
def test_a_locked_folder_that_is_no_longer_the_same_is_an_error(
    tmp_path: Path, change: Callable[[Path], None], error: type[Exception] | None
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()

    def work():
        with exclusive_lock(folder) as require_folder:
            require_folder()
            change(folder)
            if error is InputError:
                require_folder()
            if error is not None:
                raise error

    with pytest.raises(InputError, check=lambda error: error.code == "deleted-folder"):
        work()
    assert folder.exists() == (change is _make_anew)
    assert not folder.exists() or (folder / ".lock").exists()


def test_a_lock_leaves_no_file_and_keeps_errors(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), exclusive_lock(tmp_path):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
