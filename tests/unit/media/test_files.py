"""Atomic writes, paths that stay inside their folder, content hashes."""

import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import kiwi.media.files as files
from kiwi.errors import InputError
from kiwi.media.files import (
    atomic_folder,
    atomic_path,
    make_folder,
    require_no_overlap,
    require_replaceable,
    resolve_inside,
    sha256,
    write_json,
    write_text,
)
from kiwi.media.journal import Journal


def test_atomic_path_yields_a_temporary_path_with_the_same_suffix_and_then_renames_it(tmp_path: Path) -> None:
    target = tmp_path / "clip.mp4"
    with atomic_path(target) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".mp4"
        assert temporary != target
        temporary.write_bytes(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failing_block_leaves_the_old_content_and_no_temporary_file(tmp_path: Path) -> None:
    target = tmp_path / "table.csv"
    target.write_text("old")

    def fail_midway() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_midway()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_written_files_have_ordinary_permissions_and_keep_those_of_the_old_file(tmp_path: Path) -> None:
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    write_text(tmp_path / "new.txt", "x")
    assert (tmp_path / "new.txt").stat().st_mode == ordinary.stat().st_mode
    (tmp_path / "new.txt").chmod(0o640)
    write_text(tmp_path / "new.txt", "y")
    assert (tmp_path / "new.txt").stat().st_mode & 0o777 == 0o640


def test_a_missing_folder_is_an_error_with_the_command_that_creates_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mkdir -p .*runs", check=lambda error: error.code == "missing-folder"):
        write_json(tmp_path / "runs" / "a.json", {})


def test_a_folder_cannot_be_written_as_a_file_nor_a_file_be_used_as_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, check=lambda error: error.code == "not-a-file"):
        write_text(tmp_path, "x")
    with pytest.raises(InputError, match="Not a directory", check=lambda error: error.code == "unwritable-folder"):
        write_text(tmp_path / "file" / "a.txt", "x")


def test_folders_are_created_with_their_parents_unless_a_file_is_in_the_way(tmp_path: Path) -> None:
    assert make_folder(tmp_path / "a" / "b").is_dir()
    assert make_folder(str(tmp_path / "a")) == tmp_path / "a"
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "c"):
        with pytest.raises(InputError, match=str(path), check=lambda error: error.code == "unwritable-folder"):
            make_folder(path)


def test_write_text_and_json_round_trip(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "Käse\r\nline\n")
    assert (tmp_path / "a.txt").read_bytes() == "Käse\r\nline\n".encode()
    write_json(tmp_path / "a.json", {"b": [1, 2.5, "ü"], "a": None})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"b": [1, 2.5, "ü"], "a": None}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", float("nan"))
    assert "ü" in (tmp_path / "a.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "good", ["a.mp4", "sub/a.mp4", "sub/../a.mp4", "./a.mp4", "sub/..a", "a:b.mp4", "not/there/yet.mp4"]
)
def test_paths_inside_are_resolved(tmp_path: Path, good: str) -> None:
    (tmp_path / "sub").mkdir()
    assert resolve_inside(tmp_path, good) == Path(os.path.normpath(tmp_path / good))


@pytest.mark.parametrize(
    "bad", ["../a", "sub/../../a", "/etc/passwd", "..", "sub/../..", "C:\\a", "\\\\host\\a", "", " ", "a\0b"]
)
def test_paths_that_leave_the_folder_are_rejected_with_the_name_of_the_value(tmp_path: Path, bad: str) -> None:
    base = tmp_path / "base"
    base.mkdir()
    with pytest.raises(InputError, match="tgt_video"):
        resolve_inside(base, bad, "tgt_video")


def test_a_sibling_with_the_same_prefix_is_outside(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    with pytest.raises(InputError, check=lambda error: error.code == "path-outside-folder"):
        resolve_inside(tmp_path / "base", "../base2/a")


def test_symlinks_may_point_inside_but_not_out(tmp_path: Path) -> None:
    base = tmp_path / "base"
    (base / "real").mkdir(parents=True)
    (base / "inside").symlink_to(base / "real")
    (base / "outside").symlink_to(tmp_path)
    (base / "loop").symlink_to(base / "loop")
    assert resolve_inside(base, "inside/a.mp4") == base / "real" / "a.mp4"
    with pytest.raises(InputError, check=lambda error: error.code == "path-outside-folder"):
        resolve_inside(base, "outside/a.mp4")
    (tmp_path / "link_to_base").symlink_to(base)
    assert resolve_inside(tmp_path / "link_to_base", "a.mp4") == base / "a.mp4"


def test_sha256_is_that_of_the_content(tmp_path: Path) -> None:
    data = os.urandom(100_000)
    (tmp_path / "a").write_bytes(data)
    assert sha256(tmp_path / "a") == hashlib.sha256(data).hexdigest()
    with pytest.raises(InputError, match="gone", check=lambda error: error.code == "missing-file"):
        sha256(tmp_path / "gone")


def list_unexpected_files(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir() if item.name != "mark")


def write_folder(path: Path | str, text: str) -> None:
    with atomic_folder(path, list_unexpected_files) as new:
        (new / "mark").write_text(text)


def test_a_folder_can_be_new_or_replace_an_empty_one_or_one_of_its_own_kind(tmp_path: Path) -> None:
    for text in ("new", "newer"):
        write_folder(tmp_path / "m", text)
        assert (tmp_path / "m/mark").read_text() == text
    (tmp_path / "empty").mkdir()
    write_folder(tmp_path / "empty", "x")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["empty", "m"]


def test_a_folder_with_unexpected_files_is_never_replaced(tmp_path: Path) -> None:
    write_folder(tmp_path / "home", "old")
    (tmp_path / "home/photo.jpg").write_text("mine")
    with pytest.raises(InputError, match=r"photo\.jpg", check=lambda error: error.code == "occupied-folder"):
        write_folder(tmp_path / "home", "x")
    assert (tmp_path / "home/photo.jpg").read_text() == "mine"
    assert [item.name for item in tmp_path.iterdir()] == ["home"]


@pytest.mark.parametrize("name", ["", ".", "..", "/", "a/..", "x" * 300, "/proc/x", "no/such", "file/m", "loop"])
def test_a_folder_that_cannot_be_written_is_rejected_before_the_block_runs(
    tmp_path: Path, monkeypatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a").mkdir()
    Path("file").touch()
    Path("loop").symlink_to("loop")

    def work() -> None:
        with atomic_folder(name, lambda folder: []):
            pytest.fail("the block was entered")

    with pytest.raises(InputError):
        require_replaceable(name, lambda folder: [])
    with pytest.raises(InputError):
        work()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a", "file", "loop"]


@pytest.mark.parametrize("name", ["", "..", "x" * 300, "a." + "x" * 250, "/proc/x.txt"])
def test_a_file_that_cannot_be_written_is_rejected_before_the_block_runs(
    tmp_path: Path, monkeypatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError):
        write_text(name, "x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission_is_rejected_with_the_reason(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(InputError, match="Permission denied", check=lambda error: error.code == "unwritable-folder"):
        write_folder(tmp_path / "m", "x")


def test_names_may_be_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    write_folder(tmp_path / ("雪" * 85), "x")
    write_text(tmp_path / ("雪" * 83 + ".txt"), "x")
    assert (tmp_path / ("雪" * 85) / "mark").read_text() == "x"
    assert (tmp_path / ("雪" * 83 + ".txt")).read_text() == "x"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_symlink_to_a_folder_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk/m")
    for text in ("first: the link points to nothing", "second"):
        write_folder(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "disk/m/mark").read_text() == text
    assert sorted(item.name for item in tmp_path.iterdir()) == ["disk", "link"]
    assert [item.name for item in (tmp_path / "disk").iterdir()] == ["m"]


def test_everything_in_a_finished_folder_has_ordinary_permissions_and_is_on_disk(tmp_path: Path, monkeypatch) -> None:
    synced = []
    monkeypatch.setattr(files, "_sync", lambda path: synced.append(path.name))
    old = os.umask(0o022)
    try:
        with atomic_folder(tmp_path / "m", list_unexpected_files) as new:
            (new / "part").mkdir(mode=0o700)
            (new / "part/weights").touch(mode=0o600)
    finally:
        os.umask(old)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "m").rglob("*")}
    assert modes == {"part": 0o755, "weights": 0o644}
    assert {"part", "weights"} <= set(synced)
    assert (tmp_path / "m").stat().st_mode & 0o777 == 0o755


KILLED = """
import os, signal, sys
from pathlib import Path
import kiwi.media.files as files

def rename_and_die(old, new, rename=Path.rename):
    rename(old, new)
    os.kill(os.getpid(), signal.SIGKILL)

Path.rename = rename_and_die
if sys.argv[2] == "without-swap":
    files._swap_names = lambda a, b: False
with files.atomic_folder(sys.argv[1], lambda folder: []) as new:
    (new / "mark").write_text("new")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("swap", ["with-swap", "without-swap"])
def test_a_kill_while_a_folder_is_replaced_loses_nothing_and_is_reported(tmp_path: Path, caplog, swap: str) -> None:
    if swap == "with-swap" and sys.platform != "linux":
        pytest.skip("names are swapped in one step on Linux only")
    write_folder(tmp_path / "m", "old")
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "m", swap], check=False)
    assert killed.returncode == -signal.SIGKILL
    if swap == "with-swap":
        assert (tmp_path / "m/mark").read_text() == "new"
        return
    names = {(folder / "mark").read_text(): folder.name for folder in tmp_path.iterdir()}
    assert names.keys() == {"old", "new"}
    caplog.set_level(logging.WARNING)
    write_folder(tmp_path / "m", "newer")
    assert all(name in caplog.text for name in names.values())
    assert (tmp_path / "m/mark").read_text() == "newer"
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("target", ["a", "a/b", "a/b/c", "link"])
def test_an_output_that_overlaps_its_input_is_rejected(tmp_path: Path, target: str) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(InputError, check=lambda error: error.code == "output-is-input"):
        require_no_overlap(tmp_path / target, tmp_path / "a/b")
    require_no_overlap(tmp_path / "a/bb", tmp_path / "a/b")
    require_no_overlap(tmp_path / "a", tmp_path / "a/absent")


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("writer", ["file", "folder", "journal"])
def test_a_folder_that_is_deleted_while_it_is_written_to_is_an_input_error(tmp_path, writer, moment):
    folder = tmp_path / "out"
    folder.mkdir()

    def write(path):
        if moment == "before":
            shutil.rmtree(folder)
        path.write_text("text")
        shutil.rmtree(folder)

    def write_all():
        if writer == "file":
            with atomic_path(folder / "a.txt") as temporary:
                write(temporary)
        elif writer == "folder":
            with atomic_folder(folder / "model", lambda _: []) as temporary:
                write(temporary / "a.txt")
        else:
            shutil.rmtree(folder)
            Journal(folder / "a.jsonl").append({})

    with pytest.raises(InputError, check=lambda error: error.code == "deleted-folder"):
        write_all()
    assert list(tmp_path.iterdir()) == []
