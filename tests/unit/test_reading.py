"""Files that users hand in are read within bounds, and anything else is one paragraph."""

import os
import subprocess
import sys

import pytest

from kiwi.__main__ import main
from kiwi.data.manifest import read_manifest
from kiwi.errors import CheckpointError, InputError, KiwiError, ManifestError
from kiwi.experiment import read_experiment
from kiwi.media.files import make_folder, require_writable, write_text
from kiwi.media.image import read_image
from kiwi.media.journal import Journal
from kiwi.media.run_dir import read_record
from kiwi.media.video import read_video
from kiwi.reading import MAX_DEPTH, parse_json, parse_yaml, read_json, read_yaml, require_file
from kiwi.training.plan import PlanOptions, plan
from kiwi.weights import files as weight_files

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
YAML_BOMBS = {
    "aliases": LAUGHS,
    "merged aliases": LAUGHS.replace("[x, x, x, x, x, x, x, x, x]", "{x: 1}") + "z: {<<: [*a, *a]}\n",
    "depth of lists": "[" * 100_000,
    "depth of mappings": "{a: " * 100_000,
    "depth of blocks": "- " * 5_000 + "x",
    "an alias of itself": "&a [*a]",
    "a huge integer": "9" * 10_000,
    "a huge hexadecimal integer": "0x" + "f" * 1_000,
    "a huge sexagesimal integer": "1:" * 40 + "1",
    "infinity": ".inf",
    "not a number": "a: .nan",
    "a date that does not exist": "2024-13-45",
    "a tag without its value": "!!int ''",
    "a tag that does not fit": "!!timestamp x",
    "a Python object": "!!python/object/apply:os.getcwd []",
    "NUL": "a: \0",
}
JSON_BOMBS = {
    "depth of lists": "[" * 100_000,
    "closed depth": "[" * 101 + "]" * 101,
    "depth of objects": '{"a":' * 100_000,
    "a huge integer": "1" * 5_000,
    "a long integer": "1" * 50,
    "not a number": "NaN",
    "infinity": "[-Infinity]",
    "a number that overflows": "1e999",
    "nothing": "",
}


@pytest.mark.parametrize("text", YAML_BOMBS.values(), ids=YAML_BOMBS)
def test_yaml_bombs_are_refused_in_one_line(text, tmp_path):
    with pytest.raises(ValueError) as caught:
        parse_yaml(text)
    assert "\n" not in str(caught.value)
    file = tmp_path / "experiment.yaml"
    file.write_text(text)
    for read in (read_yaml, read_experiment, lambda file: plan(PlanOptions(size="5b", variants=file))):
        with pytest.raises(InputError, check=lambda error: error.code == "unreadable-file"):
            read(file)


@pytest.mark.parametrize("text", JSON_BOMBS.values(), ids=JSON_BOMBS)
def test_json_bombs_are_refused_in_one_line(text, tmp_path):
    with pytest.raises(ValueError) as caught:
        parse_json(text)
    assert "\n" not in str(caught.value)
    file = tmp_path / "config.json"
    file.write_text(text)
    for read in (read_json, read_record):
        with pytest.raises(InputError, check=lambda error: error.code == "unreadable-file"):
            read(file)
    with pytest.raises(CheckpointError, check=lambda error: error.code == "unreadable-file"):
        weight_files.read_json(file)


def test_lines_of_a_journal_that_are_bombs_are_skipped_and_nan_is_kept(tmp_path):
    file = tmp_path / "log.jsonl"
    file.write_text('{"loss": NaN}\n' + "[" * 100_000 + '\n{"step": ' + "1" * 50 + "}\n")
    (record,) = Journal(file).read()
    assert record["loss"] != record["loss"]


def test_ordinary_values_are_read_as_before():
    assert parse_yaml("{a: &x [1, 2.5], b: *x, c: {<<: {d: null}}, e: yes, f: 'é'}") == {
        "a": [1, 2.5], "b": [1, 2.5], "c": {"d": None}, "e": True, "f": "é"
    }  # fmt: skip
    assert parse_yaml("") is None
    assert parse_json('{"a": [1, -2.5e3, null, "é"]}') == {"a": [1, -2500.0, None, "é"]}
    assert parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    assert parse_json(str(2**63)) == 2**63


@pytest.fixture
def pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    return tmp_path / "pipe.json"


def test_a_pipe_or_device_is_refused_and_not_waited_for(pipe):
    for path in (pipe, "/dev/zero", "/dev/null"):
        with pytest.raises(InputError, check=lambda error: error.code == "not-a-file"):
            require_file(path)
        for read in (read_json, read_yaml, read_record, read_experiment):
            with pytest.raises(KiwiError):
                read(path)
    with pytest.raises(InputError):
        Journal(pipe).read()


def test_a_pipe_is_no_video_image_or_manifest(tmp_path):
    for name in ("pipe.mp4", "pipe.png", "pipe.csv"):
        os.mkfifo(tmp_path / name)
    for read, name in ((read_video, "pipe.mp4"), (read_image, "pipe.png"), (read_manifest, "pipe.csv")):
        for path in (tmp_path / name, tmp_path / ("x" * 300 + name)):
            with pytest.raises(KiwiError):
                read(path)
    (tmp_path / "m.csv").write_text(f"src_video,tgt_video,prompt\npipe.mp4,{'x' * 300},a\n")
    with pytest.raises(ManifestError, match="pipe") as caught:
        read_manifest(tmp_path / "m.csv")
    assert caught.value.code == "invalid-rows"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["fit", "--config", "{long}.yaml"], 2),
        (["plan", "--config", "{fifo}"], 2),
        (["plan", "5b", "--variants", "/dev/zero"], 2),
        (["plan", "5b", "--set", "source=" + "[" * 5000], 2),
        (["ablate", "{fifo}"], 2),
        (["ablate", "{long}"], 2),
        (["edit", "{fifo}", "--instruction", "x", "--model", "{long}", "--out", "{long}.mp4"], 2),
        (["convert", "kiwi", "{long}", "{long}"], 2),
        (["bench", "compare", "{long}", "{fifo}"], 2),
        (["curves", "{long}", "--out", "{long}.png"], 2),
        (["bench", "openve", "--data", "{long}"], 2),
        (["sandbox", "export", "{long}"], 2),
    ],
    ids=str,
)
def test_unusable_paths_are_one_paragraph_in_every_command(arguments, code, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.yaml")
    paths = {"{long}": str(tmp_path / ("x" * 300)), "{fifo}": str(tmp_path / "pipe.yaml")}
    for name, path in paths.items():
        arguments = [argument.replace(name, path) for argument in arguments]
    assert main(arguments) == code
    assert "error: " in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["pipe.yaml"]


@pytest.mark.parametrize(
    ("name", "code"),
    [("x" * 300, "unreadable-file"), ("a\0b", "unreadable-file"), ("nothing", "missing-file"), ("", "not-a-file")],
)
def test_unusable_names_of_files_are_rejected(tmp_path, name, code):
    with pytest.raises(InputError, check=lambda error: error.code == code):
        require_file(f"{tmp_path}/{name}")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_folder_that_may_not_be_searched_is_one_paragraph(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o700)
    file = tmp_path / "closed" / "x.yaml"
    code = (
        "import os, sys; from kiwi.errors import InputError; from kiwi.experiment import read_experiment\n"
        "os.setuid(65534)\n"
        f"try: read_experiment({str(file)!r})\n"
        "except InputError as error: sys.exit(error.code)"
    )
    file.write_text("{}")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stderr.strip().endswith("unreadable-file")


@pytest.mark.parametrize("value", [{"video": "\ud800"}, ["a\udcffb"]])
def test_lone_surrogates_are_written_as_escapes(tmp_path, value):
    from kiwi.media.files import write_json

    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "--config", "LOOP"],
        ["validate", "--config", "LOOP"],
        ["cache", "--config", "LOOP", "--out", "cache"],
        ["curves", "LOOP", "--out", "figure.png"],
        ["curves", "a\0b", "--out", "figure.png"],
        ["sandbox", "preview", "a\0b.png", "--items", "1"],
    ],
)
def test_loops_of_links_and_nul_characters_are_one_paragraph_in_every_command(tmp_path, capsys, arguments):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.MonkeyPatch.context() as context:
        context.chdir(tmp_path)
        assert main([argument.replace("LOOP", "loop") for argument in arguments]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert list(tmp_path.iterdir()) == [tmp_path / "loop"]


@pytest.mark.parametrize("write", [make_folder, lambda path: write_text(path, ""), require_writable])
def test_nothing_is_written_to_a_path_with_a_nul_character(tmp_path, write):
    with pytest.raises(InputError, check=lambda error: error.code == "unwritable-folder"):
        write(tmp_path / "a\0b")
    assert list(tmp_path.iterdir()) == []
