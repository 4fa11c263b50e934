"""Learning curves of runs: the points of every metric, and rejected input."""

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from kiwi.__main__ import main
from kiwi.errors import InputError
from kiwi.training.curves import CurvesOptions, draw_curves


@pytest.fixture
def runs(tmp_path):
    def run(name, lines):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return str(folder)

    short = run(
        "one/short", [{"step": step, "loss": 10.0 - step} for step in range(1, 5)] + [{"step": 4, "val/loss": 7}]
    )
    long = run("one/long", [{"step": 100 * step, "loss": float(step)} for step in range(1, 101)])
    return short, long, run("two/short", [{"step": 1, "loss": 2.0}])


def points(file):
    return [(row["metric"], row["run"], float(row["step"]), float(row["value"])) for row in csv.DictReader(file.open())]


def test_a_point_is_the_mean_over_an_interval_of_steps(runs, tmp_path):
    out = tmp_path / "curves.png"
    assert main(["curves", *runs[:2], "--points", "2", "--out", str(out)]) == 0
    assert points(tmp_path / "curves.csv") == [
        ("loss", "short", 1.5, 8.5),
        ("loss", "short", 3.5, 6.5),
        ("loss", "long", 2550, 25.5),
        ("loss", "long", 7550, 75.5),
        ("val/loss", "short", 4, 7),
    ]
    with Image.open(out) as image:
        assert image.size[0] > 1.2 * image.size[1]  # two panels, side by side


def test_few_steps_are_drawn_unchanged_and_runs_of_the_same_name_are_distinguished(runs, tmp_path):
    assert main(["curves", runs[0], runs[2], "--metrics", "loss", "--out", str(tmp_path / "curves.pdf")]) == 0
    assert points(tmp_path / "curves.csv") == [
        *(("loss", "one/short", step, 10 - step) for step in range(1, 5)),
        ("loss", "two/short", 1, 2),
    ]
    assert (tmp_path / "curves.pdf").read_bytes().startswith(b"%PDF")


def test_val_loss_is_drawn_by_default_only_if_it_was_logged(runs, tmp_path):
    assert main(["curves", runs[2], "--out", str(tmp_path / "curves.png")]) == 0
    assert {metric for metric, *_ in points(tmp_path / "curves.csv")} == {"loss"}


def test_the_former_name_of_an_option_is_accepted_with_a_warning(runs, tmp_path, capsys):
    assert main(["curves", runs[0], "--numbers", "loss", "--out", str(tmp_path / "curves.png")]) == 0
    assert {metric for metric, *_ in points(tmp_path / "curves.csv")} == {"loss"}
    message = " ".join(capsys.readouterr().err.split())
    assert "CurvesOptions.numbers has been renamed to CurvesOptions.metrics" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--metrics", "lose", "--out", "curves.png"],
            "has logged lose. Expected: one of loss, val/loss",
        ),
        (["--out", "curves.mp4"], ".png"),
        (["--out", "nowhere/curves.png"], "nowhere"),
        (["--points", "0", "--out", "curves.png"], "--points"),
        ([".", "--out", "curves.png"], "metrics.jsonl"),
    ],
)
def test_bad_input_is_rejected_and_nothing_is_written(runs, tmp_path, monkeypatch, capsys, options, message):
    (empty := tmp_path / "empty").mkdir()
    monkeypatch.chdir(empty)
    assert main(["curves", runs[0], *options]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not list(empty.iterdir())


def test_a_run_that_is_given_twice_is_rejected(runs, tmp_path):
    with pytest.raises(InputError, check=lambda error: error.code == "duplicate-run"):
        draw_curves(CurvesOptions(runs=(Path(runs[0]), Path(runs[0])), out=tmp_path / "curves.png"))


def test_runs_without_validation_are_reported_as_such(runs, tmp_path):
    with pytest.raises(InputError, check=lambda error: error.code == "unknown-metric") as caught:
        draw_curves(CurvesOptions(runs=(Path(runs[1]),), metrics=("val/loss",), out=tmp_path / "curves.png"))
    assert caught.value.problem == "none of these runs has logged val/loss"
    assert "not validated" in caught.value.fix
