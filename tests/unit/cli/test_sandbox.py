"""`python -m kiwi sandbox`: export, preview, anchors, vocabulary, and error messages."""

import csv
import json
import re

import pytest

from kiwi.__main__ import main
from kiwi.cli.sandbox import ACTIONS
from kiwi.errors import InputError, SpecError
from kiwi.media.image import read_image
from kiwi.models.mllm.new_qwen import NewQwen, make_byte_tokenizer, train_tokenizer
from kiwi.models.vae.wan import NewVae
from kiwi.sandbox.anchors import ANCHORS, DEGRADATION_LEVELS, DEGRADATIONS
from kiwi.sandbox.export import draw_preview
from kiwi.sandbox.pairs import CATEGORIES, make_pair
from kiwi.sandbox.questions import PROMPTS


def test_export_writes_the_world(tmp_path, capsys):
    out = tmp_path / "world"
    small = ["--items", "7", "--seed", "3", "--frames", "1", "--size", "32", "--width", "48", "--fps", "12"]
    assert main(["sandbox", "export", str(out), *small]) == 0
    assert "7 items" in capsys.readouterr().out
    settings = json.loads((out / "world.json").read_text())
    assert [settings[key] for key in ("seed", "frames", "height", "width", "fps")] == [3, 1, 32, 48, 12]
    assert len((out / "video.csv").read_text().splitlines()) == 6


@pytest.mark.parametrize("action", ACTIONS)
def test_the_help_of_every_action_names_the_categories_and_has_no_full_stop_before_a_default(action, capsys):
    with pytest.raises(SystemExit):
        main(["sandbox", action, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "(default: " in text
    assert not re.search(r"\w\. \(default|\(default: [^)]*\)\.", text)
    assert action == "vocabulary" or all(category in text for category in CATEGORIES)


def test_preview_draws_one_row_per_item(tmp_path):
    out = tmp_path / "world.png"
    assert main(["sandbox", "preview", str(out), "--items", "3", "--categories", "local_add, global_style"]) == 0
    height, width, _ = read_image(out).shape
    assert height > 3 * 144
    assert width > 6 * 144


def test_the_preview_shows_the_pair():
    pair = make_pair(0, 5, frames=5, height=48, width=48)
    sheet = draw_preview([pair])
    cells = [pair.reference, pair.source[0], pair.source[-1], pair.target[0], pair.target[-1]]
    first_column = sheet.shape[1] - 6 * (146 + 4)
    top = sheet.shape[0] - 146 - 4
    for column, cell in enumerate(cells):
        x = first_column + column * 150 + 1
        assert (sheet[top + 1 : top + 145 : 3, x : x + 144 : 3] == cell).all()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["preview", "world.gif"], "ends in .png"),
        (["preview", "world.png", "--items", "0"], "--items"),
        (["export", "world", "--categories", "teleport"], "background_reference"),
        (["export", "world", "--items", "many"], "--items"),
        (["anchors", "out", "--vae", "none", "--items", "0"], "--items"),
        (["anchors", "out", "--vae", "nowhere"], "there is no VAE"),
        (["dance"], "dance"),
    ],
)
def test_invalid_input_prints_a_message_without_traceback_and_exits_with_code_2(
    arguments, text, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(["sandbox", *arguments]) == InputError.exit_code
    message = capsys.readouterr().err
    assert text in message
    assert "Traceback" not in message
    assert list(tmp_path.iterdir()) == []


def test_a_vocabulary_has_the_words_of_the_sandbox_and_spells_out_all_others(tmp_path, capsys):
    folder = tmp_path / "words"
    assert main(["sandbox", "vocabulary", str(folder), "--items", "300", "--words", "480"]) == 0
    assert "488 tokens" in capsys.readouterr().out
    reader = NewQwen(hidden_size=32, tokenizer=str(folder)).build()
    tokenizer = reader.prompter.tokenizer
    assert reader.config.text_config.vocab_size == len(tokenizer) == 488
    assert reader.prompter.template == PROMPTS != NewQwen(hidden_size=32).build().prompter.template
    sentence = "Make the red ring a star."
    assert len(tokenizer.encode(sentence)) < 11 < len(make_byte_tokenizer().encode(sentence)) / 2
    for text in (sentence, "Żółć & 5 apples"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    again = tmp_path / "again"
    assert main(["sandbox", "vocabulary", str(again), "--items", "300", "--words", "480"]) == 0
    assert (again / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert main(["sandbox", "vocabulary", str(folder / "tokenizer.json" / "words"), "--items", "10"]) == 2
    assert "cannot be created" in capsys.readouterr().err
    (folder / "note.txt").write_text("mine")
    assert main(["sandbox", "vocabulary", str(folder), "--items", "10"]) == 2
    assert "note.txt" in capsys.readouterr().err
    assert (folder / "note.txt").exists()


@pytest.mark.parametrize(("option", "text"), [("--words", "at least 256"), ("--items", "at least 1")])
def test_an_empty_vocabulary_is_rejected(tmp_path, capsys, option, text):
    assert main(["sandbox", "vocabulary", str(tmp_path / "v"), option, "0"]) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "v").exists()


def test_an_unusable_tokenizer_is_rejected(tmp_path):
    with pytest.raises(SpecError, match="cannot be loaded"):
        NewQwen(tokenizer=str(tmp_path / "nothing")).build()
    make_byte_tokenizer().save_pretrained(tmp_path / "bytes")
    train_tokenizer(["one two three"] * 9, 262).save_pretrained(tmp_path / "learned")
    small = NewQwen(tokenizer=str(tmp_path / "learned"), vocab_size=265)
    with pytest.raises(SpecError, match="vocab_size", check=lambda error: error.code == "out-of-range"):
        small.build()
    content = json.loads((tmp_path / "bytes" / "tokenizer.json").read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "<|video_pad|>"]
    (tmp_path / "bytes" / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(SpecError, match="video_pad"):
        NewQwen(tokenizer=str(tmp_path / "bytes")).build()


def test_an_anchor_without_edits_does_not_fail(tmp_path, capsys):
    options = ["--vae", "none", "--items", "3", "--categories", "local_remove"]
    assert main(["sandbox", "anchors", str(tmp_path / "out"), *options]) == 0
    assert "not applicable" in (tmp_path / "out/anchors.md").read_text()
    (tmp_path / "file").write_text("")
    assert main(["sandbox", "anchors", str(tmp_path / "file/out"), *options]) == 2
    assert "cannot be created" in capsys.readouterr().err


def test_anchors_are_reported_as_tables_and_a_figure(tmp_path, capsys):
    assert main(["sandbox", "anchors", str(tmp_path / "out"), "--vae", "none", "--items", "14"]) == 0
    files = {item.name for item in (tmp_path / "out").iterdir()}
    assert files == {"anchors.md", "anchors.csv", "damage.csv", "damage.png", "damage.pdf", "environment.json"}
    rows = list(csv.DictReader((tmp_path / "out/anchors.csv").open()))
    assert [row["anchor"] for row in rows] == list(ANCHORS)
    assert all(row["passed"] == "yes" for row in rows)
    assert rows[0]["items"] == rows[0]["edits"] == "14"
    levels = list(csv.DictReader((tmp_path / "out/damage.csv").open()))
    assert len(levels) == len(DEGRADATIONS) * len(DEGRADATION_LEVELS)
    assert read_image(tmp_path / "out/damage.png").std() > 1
    assert "exact target" in capsys.readouterr().out


def test_a_poor_autoencoder_fails_its_anchor(tmp_path, capsys):
    NewVae(z_dim=4, base_dim=4).build().save(tmp_path / "vae")
    options = ["--vae", str(tmp_path / "vae"), "--items", "7", "--frames", "5", "--size", "32"]
    assert main(["sandbox", "anchors", str(tmp_path / "out"), *options]) == 1
    rows = {row["anchor"]: row for row in csv.DictReader((tmp_path / "out/anchors.csv").open())}
    assert rows["round trip of the target"]["passed"] == "NO"
    categories = list(csv.DictReader((tmp_path / "out/round_trip.csv").open()))
    assert [row["category"] for row in categories] == [*CATEGORIES, "all"]
    assert [row["items"] for row in categories] == ["1"] * 7 + ["7"]
    assert float(categories[-1]["PSNR (dB)"]) < 20
    # A size that the autoencoder cannot halve is rejected before anything is written.
    assert main(["sandbox", "anchors", str(tmp_path / "no"), *options[:2], "--size", "33"]) == 2
    assert not (tmp_path / "no").exists()
