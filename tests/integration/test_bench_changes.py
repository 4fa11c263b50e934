# ruff: noqa: F811 (fixtures are arguments of the same names)
"""`python -m kiwi bench`: runs whose files or settings were changed are neither resumed nor compared."""

import json
import re
import shutil

import pytest
from safetensors.torch import load_file, save_file

from kiwi.__main__ import main
from kiwi.bench import BenchmarkOptions, CompareOptions, compare_runs, run_benchmark
from kiwi.errors import KiwiError
from tests.integration.test_bench import copy_videos, editor, run, score_videos  # noqa: F401


def test_a_run_is_not_resumed_with_other_weights_or_settings(run, editor, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(editor, tmp_path / "model")
    options = [
        "--data",
        "sandbox",
        "--items",
        "10",
        "--level",
        "easy",
        "--repeats",
        "2",
        "--out",
        str(tmp_path / "run"),
    ]
    name = ["--name", json.loads((run / "run.json").read_text())["title"]]
    weights = tmp_path / "model" / "model.safetensors"
    tensors = load_file(weights)
    save_file({key: tensor + 0.1 if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}, weights)
    for model, more, differing in (
        (editor, ["--steps", "3"], "editor's steps 3"),
        (editor, ["--steps", "2", "--max-pixels", "256"], "editor's max_pixels 256"),
        (tmp_path / "model", ["--steps", "2"], "editor's weights"),
    ):
        assert main(["bench", "openve", *options, "--model", str(model), *more, *name]) == 2
        assert differing in " ".join(capsys.readouterr().err.split())


def copy_results(run, folder):
    return shutil.copytree(run, folder, ignore=shutil.ignore_patterns("videos", "data", "controls"))


def read_score_lines(folder, with_checksums):
    """The lines of scores.csv, without the last column as the previous release wrote them if asked for."""
    lines = (folder / "scores.csv").read_text().splitlines()
    assert lines[0].endswith(",checksum")
    return lines if with_checksums else [line.rpartition(",")[0] for line in lines]


def change_score(line, value):
    """Replace the raw score in a line of scores.csv."""
    cells = line.split(",")
    return ",".join([*cells[:3], value, *cells[4:]])


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda lines: [lines[0], change_score(lines[1], "4.99"), *lines[2:]], "changed-file"),
        (lambda lines: [lines[0], change_score(lines[1], "7"), *lines[2:]], "out-of-range"),
        (lambda lines: [lines[0], change_score(lines[1], "nan"), *lines[2:]], "out-of-range"),
        (lambda lines: [lines[0], change_score(lines[1], "inf"), *lines[2:]], "out-of-range"),
        (lambda lines: [lines[0], change_score(lines[1], "x"), *lines[2:]], "unreadable-file"),
        (lambda lines: [*lines[:2], lines[1], *lines[2:]], "duplicate-row"),
        (lambda lines: [lines[0], *lines[2:]], "unreadable-file"),
        (lambda lines: [*lines, "nobody" + lines[1][lines[1].index(",") :]], "unknown-item"),
    ],
)
def test_scores_that_were_changed_after_the_run_are_not_compared(run, tmp_path, change, code):
    folder = copy_results(run, tmp_path / "run")
    for with_checksums, expected in ((False, code), (True, "changed-file")):
        (folder / "scores.csv").write_text("\n".join(change(read_score_lines(run, with_checksums))) + "\n")
        with pytest.raises(KiwiError, check=lambda error, expected=expected: error.code == expected):
            compare_runs(CompareOptions(a=run, b=folder))


@pytest.mark.parametrize("column", range(6))
def test_a_cell_that_was_edited_by_hand_is_found_with_its_line(run, tmp_path, column):
    folder, lines = copy_results(run, tmp_path / "run"), read_score_lines(run, with_checksums=True)
    cells = lines[4].split(",")
    lines[4] = ",".join([*cells[:column], cells[column] + "1", *cells[column + 1 :]])
    (folder / "scores.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(KiwiError, check=lambda error: error.code == "changed-file") as caught:
        compare_runs(CompareOptions(a=run, b=folder))
    assert "line 5" in caught.value.got


def test_lost_rows_are_noticed_and_scores_of_the_previous_release_are_compared(run, tmp_path):
    folder, lines = copy_results(run, tmp_path / "run"), read_score_lines(run, with_checksums=True)
    (folder / "scores.csv").write_text("\n".join(lines[:-3]) + "\n")
    with pytest.raises(KiwiError, check=lambda error: error.code == "changed-file"):
        compare_runs(CompareOptions(a=run, b=folder, allow_partial=True))
    (folder / "scores.csv").write_text("\n".join(read_score_lines(run, with_checksums=False)) + "\n")
    assert len(compare_runs(CompareOptions(a=run, b=folder)).rows) > 1


@pytest.mark.parametrize(
    ("name", "pattern", "replacement"),
    [
        ("cases.json", r'"instruction": "', r'"instruction": "Now '),
        ("judgements.jsonl", r'(Compliance\\": )\d', r"\g<1>9"),
        ("judgements.jsonl", r'("scores": {"[^:]*": )\d', r"\g<1>5"),
    ],
)
def test_items_and_answers_that_were_changed_after_the_run_are_not_compared(run, tmp_path, name, pattern, replacement):
    file = copy_results(run, tmp_path / "run") / name
    file.write_text(re.sub(pattern, replacement, file.read_text()))
    with pytest.raises(KiwiError, check=lambda error: error.code == "changed-file"):
        compare_runs(CompareOptions(a=run, b=tmp_path / "run"))


def test_edited_videos_are_found_whatever_the_case_of_their_suffix(run, tmp_path):
    videos = copy_videos(run, tmp_path / "mine")
    for video, suffix in zip(sorted(videos.iterdir()), 5 * (".MP4", ".Mp4"), strict=True):
        video.rename(video.with_suffix(suffix))
    assert score_videos(run, videos, tmp_path / "run", "--no-gallery", "--controls", "0") == 0


def test_items_are_not_rendered_into_a_run_on_other_data(run, tmp_path, capsys):
    videos, out = copy_videos(run, tmp_path / "mine"), tmp_path / "run"
    assert score_videos(run, videos, out, "--no-gallery", "--controls", "0") == 0
    before = sorted(out.iterdir())
    for options in (["--videos", str(videos)], []):
        assert main(["bench", "openve", "--data", "sandbox", *options, "--out", str(out)]) == 2
        assert "Got: --data sandbox" in " ".join(capsys.readouterr().err.split())
    assert sorted(out.iterdir()) == before


@pytest.mark.parametrize(("items", "code"), [("10", 0), ("9", 2), ("11", 2)])
def test_deleted_items_are_rendered_again_for_the_same_run_only(run, tmp_path, items, code):
    folder = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("data"))
    options = ["--data", "sandbox", "--items", items, "--level", "easy", "--steps", "2", "--repeats", "2"]
    model = json.loads((run / "settings.json").read_text())["model"]
    options += ["--model", model, "--controls", "0", "--no-gallery", "--out", str(folder)]
    assert main(["bench", "openve", *options]) == code


def test_a_model_is_not_loaded_if_all_its_videos_exist_and_is_still_identified(run, editor, tmp_path, monkeypatch):
    def load(*args, **kwargs):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("kiwi.editing.editor.KiwiEditor.from_pretrained", load)
    folder = shutil.copytree(run, tmp_path / "run")
    (folder / "judgements.jsonl").unlink()
    settings = {"suite": "openve", "data": "sandbox", "items": 10, "level": "easy", "out": folder, "controls": 0}
    options = BenchmarkOptions(**settings, model=editor, steps=2, gallery=False)
    assert run_benchmark(options).result.is_complete
    with pytest.raises(KiwiError, check=lambda error: error.code == "changed-settings"):
        run_benchmark(options.replace(steps=3))
    next((folder / "videos").iterdir()).unlink()
    with pytest.raises(AssertionError, match="was loaded"):
        run_benchmark(options)
