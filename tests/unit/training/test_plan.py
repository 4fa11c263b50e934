import re
from pathlib import Path

import pytest
import torch
from rich.console import Console

from kiwi import console
from kiwi.__main__ import main
from kiwi.errors import InputError, KiwiError
from kiwi.experiment import read_experiment
from kiwi.models.mllm.encoder import MllmSpec
from kiwi.models.mllm.new_qwen import make_byte_tokenizer
from kiwi.models.vae.wan import VaeSpec
from kiwi.spec import from_dict
from kiwi.training.plan import PlanOptions, plan


def cells(line):
    return [cell.strip() for cell in line.strip("│ ").split("│")]


def rows(capsys):
    return [cells(line) for line in capsys.readouterr().out.splitlines() if line.startswith("│")]


def test_a_published_size_has_the_published_parameters(capsys):
    """4.99976 B and 14.28849 B of Wan's DiT without its unused text embedding (22.0 M and 47.2 M)."""
    assert main(["plan", "5b"]) == 0
    rows_by_name = {row[0]: row[1] for row in rows(capsys)}
    assert rows_by_name["vae"] == "704.7"
    assert float(rows_by_name["source"]) == pytest.approx(0.6, abs=0.05)
    assert 4900 < float(rows_by_name["dit"].replace(",", "")) < 5050
    assert 3000 < float(rows_by_name["mllm"].replace(",", "")) < 3800


def test_variants_are_labelled_by_their_differences_and_counted(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(console, "out", Console(width=250))
    file = tmp_path / "v.yaml"
    variants = ["{}", "{source: NoSource}", "{source.scale: LearnableScale}", "{source: TokenConcatSource}"]
    variants.append("{dit.tuning: Lora, dit.tuning.rank: 128}")
    file.write_text("".join(f"- {variant}\n" for variant in variants))
    small = ["--set", "dit.num_layers=2", "--frames", "5", "--height", "64", "--width", "64"]
    assert main(["plan", "1.3b", "--variants", str(file), *small]) == 0
    rows_by_name = {row[0]: row[1:] for row in rows(capsys)}
    first = rows_by_name["(no changes)"]
    assert rows_by_name["source = NoSource"][1] == f"-{1536 * (16 * 4 + 1):,}"
    assert rows_by_name["source.scale = LearnableScale"][1] == "+16"
    assert rows_by_name["source = NoSource"][3] == first[3]
    # 2 frames of 4 x 4 patches and a reference; TokenConcatSource doubles the number of frames
    assert (first[3], rows_by_name["source = TokenConcatSource"][3]) == ("48", "80")
    assert float(rows_by_name["source = TokenConcatSource"][6]) > 1.3
    assert float(rows_by_name["dit.tuning = Lora, dit.tuning.rank = 128"][2].replace(",", "")) < float(
        first[2].replace(",", "")
    )


@pytest.mark.parametrize(
    ("options", "code", "expected"),
    [
        ({"height": 720}, "unsupported-video-size", "multiples of 32"),
        ({"frames": 80}, "unsupported-video-size", "4k"),
        ({"references": -1}, "out-of-range", "--references"),
        ({"changes": ["source"]}, "invalid-assignment", "PATH=VALUE"),
        ({"changes": ["source=Magic"]}, None, "AddSource"),
        ({"variants": "nothing.yaml"}, "unreadable-file", "nothing.yaml"),
        ({"changes": ["dit.patch_size=[1,0,0]"]}, None, "patch_size must be at least 1"),
        ({"size": "1.3b", "changes": ["dit.tuning={type: Lora, targets: [head]}"]}, "not-linear", "head"),
    ],
)
def test_options_that_cannot_be_counted_are_rejected(options, code, expected):
    with pytest.raises(KiwiError) as caught:
        plan(from_dict(PlanOptions, {"size": "5b", **options}))
    assert code is None or caught.value.code == code
    assert expected in str(caught.value)


@pytest.mark.parametrize(("text", "expected"), [("- {1: 2}", "Got: 1"), ("5", "does not hold variants")])
def test_malformed_variants_are_rejected(tmp_path, text, expected):
    (tmp_path / "v.yaml").write_text(text)
    with pytest.raises(KiwiError, match=expected):
        plan(PlanOptions(size="1.3b", variants=tmp_path / "v.yaml"))


EXPERIMENTS = Path(__file__).parents[3] / "experiments"
FILES = [p for p in sorted(EXPERIMENTS.glob("*/**/*.yaml")) if p.stem not in ("base", "model", "variants")]
FILES = [file for file in FILES if "stages" not in read_experiment(file)]  # those are read by `kiwi ablate`
PARTS = {"vae": VaeSpec, "mllm": MllmSpec}
"""Specs of the parts that are trained alone, by the prefix of their experiments' names."""
EDITORS = [file for file in FILES if file.stem.partition("_")[0] not in PARTS]


def part(file):
    """The part that an experiment trains, and its spec as a mapping."""
    kind = file.stem.partition("_")[0]
    return kind, read_experiment(file)["model"][kind]


FROM_SCRATCH = [file for file in FILES if file not in EDITORS and "path" not in part(file)[1]]
"""Experiments that do not start from pretrained weights."""


@pytest.mark.parametrize("file", EDITORS, ids=lambda path: str(path.relative_to(EXPERIMENTS)))
def test_every_editor_experiment_is_counted_on_the_meta_device(file, capsys):
    assert main(["plan", "--config", str(file)]) == 0
    out = capsys.readouterr().out
    trainable = float(next(row for row in map(cells, out.splitlines()) if row[0] == "all")[2].replace(",", ""))
    assert trainable > 0
    assert float(re.search(r"([\d.]+) [GT]FLOP per denoising step", out.replace(",", ""))[1]) > 0


@pytest.mark.parametrize("file", FROM_SCRATCH, ids=lambda path: str(path.relative_to(EXPERIMENTS)))
def test_every_part_that_is_trained_from_scratch_is_built_on_the_meta_device(file, tmp_path):
    kind, spec = part(file)
    if "tokenizer" in spec:
        make_byte_tokenizer().save_pretrained(tmp_path)
        spec["tokenizer"] = str(tmp_path)
    with torch.device("meta"):
        module = from_dict(PARTS[kind], spec).build()
    assert sum(parameter.numel() for parameter in module.parameters()) > 1e5
    assert {parameter.device.type for parameter in module.parameters()} == {"meta"}


def test_exactly_one_size_or_editor_experiment_is_required():
    experiment = EXPERIMENTS / "first_light/editor.yaml"
    for options in ({}, {"size": "5b", "config": experiment}):
        with pytest.raises(InputError, check=lambda error: error.code == "conflicting-options"):
            PlanOptions(**options)
    with pytest.raises(InputError, check=lambda error: error.code == "not-an-editor"):
        plan(PlanOptions(config=EXPERIMENTS / "first_light/vae.yaml"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("model: 5", "model of .* is not a mapping"),
        ("data: 5", "data of .* is not a mapping"),
        ("data: {train: video.csv}", "data.train is not a list"),
        ("data: {train: [{path: a.csv, max_frame: 1}]}", "no field .*max_frame.*did you mean max_frames"),
        ("data: {train: [{path: a.csv, max_frames: '1'}]}", "wrong type"),
        ("data: {max_pixels: '1024'}", "whole number"),
        ("model: {train_parts: [nonsense]}", "unknown parts"),
    ],
)
def test_a_malformed_experiment_is_rejected(tmp_path, change, expected):
    base = EXPERIMENTS / "first_light/editor.yaml"
    (tmp_path / "e.yaml").write_text(f"base: {base}\n{change}\n")
    with pytest.raises(KiwiError, match=expected):
        plan(PlanOptions(config=tmp_path / "e.yaml"))


@pytest.mark.parametrize("size", [{"height": 10**30}, {"width": 10**9}, {"height": 10**6, "width": 10**6}])
def test_a_video_whose_operations_overflow_is_rejected(size):
    with pytest.raises(InputError, check=lambda error: error.code == "out-of-range"):
        plan(PlanOptions(size="5b", **size))
