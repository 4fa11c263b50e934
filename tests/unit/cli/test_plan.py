import re
from pathlib import Path

import pytest
import torch
from rich.console import Console

from kiwi import console
from kiwi.__main__ import main
from kiwi.experiment import read_experiment
from kiwi.models.mllm.encoder import MllmSpec
from kiwi.models.mllm.new_qwen import byte_tokenizer
from kiwi.models.vae.wan import VaeSpec
from kiwi.spec import from_dict


def cells(line):
    return [cell.strip() for cell in line.strip("│ ").split("│")]


def rows(capsys):
    return [cells(line) for line in capsys.readouterr().out.splitlines() if line.startswith("│")]


def test_the_published_sizes_count_what_is_published(capsys):
    """4.99976 B and 14.28849 B of Wan's DiT without its unused text embedding (22.0 M and 47.2 M)."""
    assert main(["plan", "5b"]) == 0
    found = {row[0]: row[1] for row in rows(capsys)}
    assert found["vae"] == "704.7"
    assert float(found["source"]) == pytest.approx(0.6, abs=0.05)
    assert 4900 < float(found["dit"].replace(",", "")) < 5050
    assert 3000 < float(found["mllm"].replace(",", "")) < 3800


def test_variants_are_labelled_by_what_differs_and_counted(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(console, "out", Console(width=250))
    file = tmp_path / "v.yaml"
    variants = ["{}", "{source: NoSource}", "{source.scale: LearnableScale}", "{source: TokenConcatSource}"]
    variants.append("{dit.tuning: Lora, dit.tuning.rank: 128}")
    file.write_text("".join(f"- {variant}\n" for variant in variants))
    small = ["--set", "dit.num_layers=2", "--frames", "5", "--height", "64", "--width", "64"]
    assert main(["plan", "1.3b", "--variants", str(file), *small]) == 0
    found = {row[0]: row[1:] for row in rows(capsys)}
    first = found["(as published)"]
    assert found["source = NoSource"][1] == f"-{1536 * (16 * 4 + 1):,}"
    assert found["source.scale = LearnableScale"][1] == "+16"
    assert found["source = NoSource"][3] == first[3]
    # 2 frames of 4 x 4 patches and a reference, against twice the frames
    assert (first[3], found["source = TokenConcatSource"][3]) == ("48", "80")
    assert float(found["source = TokenConcatSource"][6]) > 1.3
    assert float(found["dit.tuning = Lora, dit.tuning.rank = 128"][2].replace(",", "")) < float(
        first[2].replace(",", "")
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["5b", "--height", "720"], "multiples of 32"),
        (["5b", "--frames", "80"], "4k"),
        (["5b", "--set", "source"], "PATH=VALUE"),
        (["5b", "--set", "source=Magic"], "AddSource"),
        (["5b", "--variants", "nothing.yaml"], "nothing.yaml"),
        (["5b", "--set", "dit.patch_size=[1,0,0]"], "patch_size must be at least 1"),
        (["1.3b", "--set", "dit.tuning={type: Lora, targets: [head]}"], "no linear layer"),
    ],
)
def test_bad_input_is_told(arguments, told, capsys):
    assert main(["plan", *arguments]) == 2
    assert told in capsys.readouterr().err


def test_a_variant_that_names_no_path_is_told(tmp_path, capsys):
    (tmp_path / "v.yaml").write_text("- {1: 2}\n")
    assert main(["plan", "1.3b", "--variants", str(tmp_path / "v.yaml")]) == 2
    assert "named by a dotted path. Got: 1" in capsys.readouterr().err


EXPERIMENTS = Path(__file__).parents[3] / "experiments"
FILES = [p for p in sorted(EXPERIMENTS.glob("*/**/*.yaml")) if p.stem not in ("base", "model", "variants")]
FILES = [file for file in FILES if "stages" not in read_experiment(file)]  # not of `kiwi ablate`
PARTS = {"vae": VaeSpec, "mllm": MllmSpec}
"""Experiments that train a part alone, by how their names begin."""
EDITORS = [file for file in FILES if file.stem.partition("_")[0] not in PARTS]


def part(file):
    """Which part an experiment trains, and its spec as a mapping."""
    kind = file.stem.partition("_")[0]
    return kind, read_experiment(file)["model"][kind]


FROM_NOTHING = [file for file in FILES if file not in EDITORS and "path" not in part(file)[1]]
"""Parts that do not go on from weights."""


@pytest.mark.parametrize("file", EDITORS, ids=lambda path: str(path.relative_to(EXPERIMENTS)))
def test_every_experiment_runs_dry_on_the_meta_device(file, capsys):
    assert main(["plan", "--config", str(file)]) == 0
    out = capsys.readouterr().out
    learning = float(next(row for row in map(cells, out.splitlines()) if row[0] == "all")[2].replace(",", ""))
    assert learning > 0
    assert "TFLOP a step" in out


@pytest.mark.parametrize("file", FROM_NOTHING, ids=lambda path: str(path.relative_to(EXPERIMENTS)))
def test_every_part_that_is_trained_from_nothing_is_built_on_the_meta_device(file, tmp_path):
    kind, given = part(file)
    if "tokenizer" in given:
        byte_tokenizer().save_pretrained(tmp_path)
        given["tokenizer"] = str(tmp_path)
    with torch.device("meta"):
        built = from_dict(PARTS[kind], given).build()
    assert sum(parameter.numel() for parameter in built.parameters()) > 1e5
    assert {parameter.device.type for parameter in built.parameters()} == {"meta"}


def test_a_size_or_an_experiment_is_counted_not_both(capsys):
    for arguments in ([], ["5b", "--config", str(EXPERIMENTS / "first_light/editor.yaml")]):
        assert main(["plan", *arguments]) == 2
        assert "a size or an experiment" in capsys.readouterr().err
    assert main(["plan", "--config", str(EXPERIMENTS / "first_light/vae.yaml")]) == 2
    assert "trains no editor" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("model: 5", "model of .* is no mapping"),
        ("data: 5", "data of .* is no mapping"),
        ("data: {train: video.csv}", "holds no manifests"),
        ("data: {train: [{path: a.csv, max_frame: 1}]}", "holds no manifests or worlds"),
        ("data: {train: [{path: a.csv, max_frames: '1'}]}", "wrong type"),
        ("data: {max_pixels: '1024'}", "no whole number"),
        ("model: {train_parts: [nonsense]}", "names other things"),
    ],
)
def test_what_an_experiment_cannot_say_is_told(tmp_path, capsys, change, told):
    base = EXPERIMENTS / "first_light/editor.yaml"
    (tmp_path / "e.yaml").write_text(f"base: {base}\n{change}\n")
    assert main(["plan", "--config", str(tmp_path / "e.yaml")]) == 2
    assert re.search(told, " ".join(capsys.readouterr().err.split()))
