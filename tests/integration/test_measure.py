"""`kiwi sandbox measure` and the BeforeAfter callback, on editors of a few thousand weights."""

import csv
import json

import pytest

from kiwi.__main__ import main
from kiwi.evaluation.sandbox_scores import CELL_HEIGHT
from kiwi.media.image import read_image
from kiwi.media.video import read_video


@pytest.fixture(scope="module")
def model(runs):
    return str(runs / "editor" / "model")


CATEGORIES = "subject_reference,background_reference,local_change"


def measure(out, model, *more, items=3):
    options = ["--model", model, "--items", str(items), "--steps", "2", "--categories", CATEGORIES]
    return main(["sandbox", "measure", str(out), *options, *more])


def test_an_editor_is_evaluated_with_controls_and_only_once(model, tmp_path, capsys):
    out = tmp_path / "measured"
    assert measure(out, model, items=6) == 0
    output = capsys.readouterr().out
    assert "6 items" in output
    rows = list(csv.reader((out / "oracle.csv").open()))
    assert rows[-1][:2] == ["mean", "6"]
    assert all("±" in cell for cell in rows[-1][2:])
    *controls, mean = csv.DictReader((out / "controls.csv").open())
    assert mean["category"] == "mean"
    assert all("±" in mean[name] for name in ("as asked", "wrong instruction", "other reference", "old target"))
    assert {row["category"] for row in controls if row["other reference"]} == {
        "subject_reference",
        "background_reference",
    }
    # All instructions with a background reference mean the same, so none is wrong.
    assert all(bool(row["wrong instruction"]) == (row["category"] != "background_reference") for row in controls)
    assert read_image(out / "edits.png").shape[0] > 6 * CELL_HEIGHT
    assert (out / "environment.json").exists()
    before = (out / "items.jsonl").read_text()
    assert "NaN" not in before
    assert measure(out, model, items=6) == 0
    assert (out / "items.jsonl").read_text() == before


def test_a_killed_evaluation_resumes_with_the_same_result(model, tmp_path):
    assert measure(tmp_path / "whole", model, "--no-controls") == 0
    assert measure(tmp_path / "cut", model, "--no-controls") == 0
    whole = (tmp_path / "whole" / "items.jsonl").read_text().splitlines()
    file = tmp_path / "cut" / "items.jsonl"
    file.write_text("\n".join(whole[:1]) + "\n" + whole[1][:40])
    assert measure(tmp_path / "cut", model, "--no-controls") == 0
    lines = [line for line in file.read_text().splitlines() if line.endswith("}")]
    assert sorted(json.loads(line)["id"] for line in lines) == sorted(json.loads(line)["id"] for line in whole)
    for name in ("oracle.csv", "fidelity.csv"):
        assert (tmp_path / "cut" / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_an_evaluation_with_other_settings_is_refused(model, tmp_path, capsys):
    assert measure(tmp_path, model, "--no-controls") == 0
    before = (tmp_path / "items.jsonl").read_text()
    assert measure(tmp_path, model, "--no-controls", "--noise", "1") == 2
    assert "noise 1" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "items.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--items", "0"], "--items"),
        (["--size", "30"], "multiples of 8"),
        (["--frames", "4"], "4k + 1"),
        (["--categories", "snow"], "snow"),
    ],
)
def test_invalid_options_of_an_evaluation_are_refused_and_nothing_is_written(model, tmp_path, capsys, options, message):
    assert main(["sandbox", "measure", str(tmp_path / "out"), "--model", model, *options]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


INIT_ARGS = "{items: 3, shown: 2, categories: [local_change, subject_reference]}"
CALLBACK = f"[{{class_path: kiwi.training.before_after.BeforeAfter, init_args: {INIT_ARGS}}}]"


def test_training_scores_edits_before_and_after(model, runs, tmp_path, capsys):
    run = tmp_path / "run"
    config = runs / "editor" / "config.yaml"
    options = ["fit", "--config", str(config), "--model.init", model, "--trainer.default_root_dir", str(run)]
    options += ["--trainer.callbacks", CALLBACK]
    assert main([*options, "--trainer.max_steps", "1"]) == 0
    output = capsys.readouterr().out
    assert "edits.png" in output
    folder = run / "before_after"
    rows = list(csv.DictReader((folder / "scores.csv").open()))
    assert [(row["category"], row["training"], row["items"]) for row in rows[-2:]] == [
        ("mean", "before", "3"),
        ("mean", "after", "3"),
    ]
    videos = sorted(folder.glob("*.mp4"))
    assert len(videos) == 2
    assert read_video(videos[0]).frame_count == 5
    before = {row["category"]: row for row in rows if row["training"] == "before"}
    # A resumed run keeps the edits before all training.
    assert main([*options, "--trainer.max_steps", "2", "--ckpt_path", "last"]) == 0
    again = list(csv.DictReader((folder / "scores.csv").open()))
    assert {row["category"]: row for row in again if row["training"] == "before"} == before
    # Edits of other items are refused; with a damaged record, only the table is missing.
    options[-1] = CALLBACK.replace("items: 3", "items: 4")
    assert main([*options, "--trainer.max_steps", "3", "--ckpt_path", "last"]) == 2
    assert "items 4" in " ".join(capsys.readouterr().err.split())
    options[-1] = CALLBACK
    (folder / "before.npz").write_bytes(b"PK")
    assert main([*options, "--trainer.max_steps", "3", "--ckpt_path", "last"]) == 0
    assert "no scores before and after training" in " ".join(capsys.readouterr().err.split())
