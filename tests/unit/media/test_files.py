"""Writes are whole or absent, paths stay inside, hashes are right."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from kiwi.errors import InputError
from kiwi.media.files import atomic_path, resolve_inside, sha256, write_json, write_text


def test_atomic_path_gives_a_neighbour_of_the_same_suffix_and_then_the_file(tmp_path: Path) -> None:
    target = tmp_path / "clip.mp4"
    with atomic_path(target) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".mp4"
        assert temporary != target
        temporary.write_bytes(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failing_block_leaves_the_old_content_and_no_litter(tmp_path: Path) -> None:
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
    plain = tmp_path / "plain"
    plain.touch()
    write_text(tmp_path / "new.txt", "x")
    assert (tmp_path / "new.txt").stat().st_mode == plain.stat().st_mode
    (tmp_path / "new.txt").chmod(0o640)
    write_text(tmp_path / "new.txt", "y")
    assert (tmp_path / "new.txt").stat().st_mode & 0o777 == 0o640


def test_missing_folder_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"runs for a\.json does not exist.*mkdir -p .*runs"):
        write_json(tmp_path / "runs" / "a.json", {})


def test_folder_in_the_place_of_the_file_or_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a folder, not a file"):
        write_text(tmp_path, "x")
    with pytest.raises(InputError, match="is not a folder"):
        write_text(tmp_path / "file" / "a.txt", "x")


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
def test_paths_that_leave_are_refused_by_name(tmp_path: Path, bad: str) -> None:
    base = tmp_path / "base"
    base.mkdir()
    with pytest.raises(InputError, match="tgt_video"):
        resolve_inside(base, bad, "tgt_video")


def test_a_sibling_with_the_same_prefix_is_outside(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    with pytest.raises(InputError, match="leaves the folder"):
        resolve_inside(tmp_path / "base", "../base2/a")


def test_symlinks_may_point_inside_but_not_out(tmp_path: Path) -> None:
    base = tmp_path / "base"
    (base / "real").mkdir(parents=True)
    (base / "inside").symlink_to(base / "real")
    (base / "outside").symlink_to(tmp_path)
    (base / "loop").symlink_to(base / "loop")
    assert resolve_inside(base, "inside/a.mp4") == base / "real" / "a.mp4"
    with pytest.raises(InputError, match="leaves the folder"):
        resolve_inside(base, "outside/a.mp4")
    (tmp_path / "link_to_base").symlink_to(base)
    assert resolve_inside(tmp_path / "link_to_base", "a.mp4") == base / "a.mp4"


def test_sha256_is_that_of_the_content(tmp_path: Path) -> None:
    data = os.urandom(100_000)
    (tmp_path / "a").write_bytes(data)
    assert sha256(tmp_path / "a") == hashlib.sha256(data).hexdigest()
    with pytest.raises(InputError, match="gone does not exist"):
        sha256(tmp_path / "gone")
