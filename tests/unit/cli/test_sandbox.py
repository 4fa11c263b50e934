"""`python -m kiwi sandbox`: export, preview, and one paragraph for bad input."""

from __future__ import annotations

import json

import pytest

from kiwi.__main__ import main
from kiwi.cli.sandbox import preview
from kiwi.errors import InputError
from kiwi.media.image import read_image
from kiwi.sandbox.pairs import make_pair


def test_export_writes_the_world(tmp_path, capsys):
    out = tmp_path / "world"
    small = ["--items", "7", "--seed", "3", "--frames", "1", "--size", "32", "--width", "48", "--fps", "12"]
    assert main(["sandbox", "export", str(out), *small]) == 0
    assert "7 items" in capsys.readouterr().out
    settings = json.loads((out / "world.json").read_text())
    assert [settings[key] for key in ("seed", "frames", "height", "width", "fps")] == [3, 1, 32, 48, 12]
    assert len((out / "video.csv").read_text().splitlines()) == 6


def test_preview_draws_a_row_for_every_item(tmp_path):
    out = tmp_path / "world.png"
    assert main(["sandbox", "preview", str(out), "--items", "3", "--categories", "local_add, global_style"]) == 0
    height, width, _ = read_image(out).shape
    assert height > 3 * 144
    assert width > 6 * 144


def test_the_preview_shows_the_pair():
    pair = make_pair(0, 5, frames=5, height=48, width=48)
    sheet = preview([pair])
    cells = [pair.reference, pair.source[0], pair.source[-1], pair.target[0], pair.target[-1]]
    left = sheet.shape[1] - 6 * (146 + 4)
    top = sheet.shape[0] - 146 - 4
    for column, cell in enumerate(cells):
        x = left + column * 150 + 1
        assert (sheet[top + 1 : top + 145 : 3, x : x + 144 : 3] == cell).all()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["preview", "world.gif"], "ends in .png"),
        (["preview", "world.png", "--items", "0"], "at least one item"),
        (["export", "world", "--categories", "teleport"], "background_reference"),
        (["export", "world", "--items", "many"], "--items"),
        (["dance"], "dance"),
    ],
)
def test_bad_input_is_one_paragraph_and_exit_code_2(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["sandbox", *arguments]) == InputError.exit_code
    message = capsys.readouterr().err
    assert said in message
    assert "Traceback" not in message
    assert list(tmp_path.iterdir()) == []
