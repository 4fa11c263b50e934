"""`kiwi cache`, and training from its entries."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from kiwi.__main__ import main
from kiwi.data.feature_cache import FeatureCache
from kiwi.models.mllm.vision_input import VisionPreprocessor
from kiwi.training.run_log import read_log
from tests.integration.conftest import editor_config, write_yaml


@pytest.fixture(scope="module")
def experiment(runs, edit_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cached")
    config = editor_config(edit_folder, folder / "run", runs / "vae" / "model", max_steps=6, log_every_n_steps=1)
    config["model"] |= {"targets": "sample", "dropout": {"source": 0.3, "reference": 0.3}}
    return write_yaml(folder / "e.yaml", config)


@pytest.fixture(scope="module")
def cache(experiment, tmp_path_factory):
    folder = tmp_path_factory.mktemp("caches") / "cache"
    assert main(["cache", "--config", experiment, "--out", str(folder), "--dtype", "float32", "--clips", "3"]) == 0
    return folder


ENTRIES = 12 + 6 + 1
"""Latents of six sources and six targets, features of six sources and of three references that look the same."""


def test_every_clip_and_image_is_encoded_once_for_all_samples_that_use_it(cache, capsys):
    """The reference manifest uses the same clips."""
    assert len(FeatureCache(cache)) == ENTRIES
    assert len(list((cache / "shards").glob("*.safetensors"))) == 5
    assert main(["cache", "--verify", "--out", str(cache)]) == 0
    assert f"{ENTRIES} intact entries" in capsys.readouterr().out


@pytest.mark.parametrize("tuning", ["Frozen", "Lora"])
def test_training_from_a_cache_gives_the_same_model_and_decodes_no_clip(
    experiment, cache, tmp_path, monkeypatch, tuning
):
    def fit(name, *more):
        options = ["--trainer.default_root_dir", str(tmp_path / name), "--previews.items=0", "--quality.items=null"]
        options += [f"--model.config.mllm.tuning={tuning}", *more]
        assert main(["fit", "--config", experiment, *options]) == 0
        weights = torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        return read_log(tmp_path / name), weights

    plain, weights = fit("plain")
    decoded = []
    monkeypatch.setattr("kiwi.models.mllm.vision_input.VisionPreprocessor.to_patches", _noting_content(decoded))
    decode = sys.modules["kiwi.data.dataset"]._decode_clip
    monkeypatch.setattr(
        "kiwi.data.dataset._decode_clip", lambda clip, bucket: decoded.append(clip.path.name) or decode(clip, bucket)
    )
    cached, same = fit("cached", f"--data.cache={cache}")
    # Not to the bit: a clip encoded in a batch differs from the same clip alone in the last digit.
    for name in ("loss", "val/loss", "val/loss_swapped"):
        values, expected = ([numbers[name] for numbers in run.values() if name in numbers] for run in (cached, plain))
        assert values == pytest.approx(expected, rel=1e-5)
        assert values
    assert all(torch.allclose(tensor, same[name], atol=1e-4) for name, tensor in weights.items())
    assert decoded == []


def test_a_cache_can_be_filled_from_a_runs_saved_configuration(runs, tmp_path, capsys):
    config = str(runs / "editor" / "config.yaml")
    assert main(["cache", "--config", config, "--out", str(tmp_path / "c")]) == 0
    assert main(["validate", "--config", config, "--ckpt_path", "last", f"--data.cache={tmp_path / 'c'}"]) == 0


@pytest.mark.parametrize("only", ["features", None])
def test_an_editor_without_connectors_decodes_no_clip_either(experiment, tmp_path, monkeypatch, only):
    config = yaml.safe_load(Path(experiment).read_text())
    config["model"]["config"] |= {"query": "NoConnector", "latent": "NoConnector"}
    bare = write_yaml(tmp_path / "bare.yaml", config)
    command = ["cache", "--config", bare, "--out", str(tmp_path / "cache")]
    assert main([*command, *(["--only", only] if only else [])]) == 0
    assert len(FeatureCache(tmp_path / "cache")) == (ENTRIES - 12 if only else ENTRIES)
    if not only:
        monkeypatch.setattr("kiwi.data.dataset._decode_clip", None)
    options = ["--previews.items=0", "--quality.items=null", "--trainer.max_steps=1", "--trainer.limit_val_batches=0"]
    options += ["--trainer.default_root_dir", str(tmp_path / "run"), f"--data.cache={tmp_path / 'cache'}"]
    assert main(["fit", "--config", bare, *options]) == 0


def test_latents_and_features_can_be_cached_one_after_the_other(experiment, tmp_path, capsys):
    command = ["cache", "--config", experiment, "--out", str(tmp_path / "cache")]
    for only, entries in (("latents", 12), ("features", ENTRIES)):
        assert main([*command, "--only", only]) == 0
        assert len(FeatureCache(tmp_path / "cache")) == entries
        run = ["--trainer.default_root_dir", str(tmp_path / only), f"--data.cache={tmp_path / 'cache'}"]
        assert main(["fit", "--config", experiment, *run, "--trainer.max_steps=1"]) == 0
    assert main(command) == 0
    assert f"0 clips and images encoded, {ENTRIES} entries" in capsys.readouterr().out


def test_a_killed_command_is_resumed(experiment, tmp_path):
    command = ["cache", "--config", experiment, "--out", str(tmp_path / "cache"), "--clips", "1"]
    process = subprocess.Popen([sys.executable, "-m", "kiwi", *command], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "cache" / "shards").glob("[!.]*"))) < 3 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = len(FeatureCache(tmp_path / "cache"))
    assert before >= 3
    assert main(command) == 0
    assert len(FeatureCache(tmp_path / "cache")) == ENTRIES


def test_all_parts_together_fill_the_cache(experiment, tmp_path, capsys):
    for part in ("1/2", "2/2"):
        assert main(["cache", "--config", experiment, "--out", str(tmp_path / "c"), "--part", part]) == 0
    output = capsys.readouterr().out
    first, second = (
        int(line.split(": ")[1].split()[0]) for line in output.splitlines() if "clips and images encoded" in line
    )
    assert first + second == 12 + 1
    assert min(first, second) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "c"], "give --config"),
        (["--config", "EXPERIMENT", "--out", "c", "--part", "3/2"], "I/N"),
        (["--config", "EXPERIMENT", "--out", "c", "--part", "²/2"], "I/N"),
        (["--config", "EXPERIMENT", "--out", "c", "--clips", "0"], "at least 1"),
        (["--config", "missing.yaml", "--out", "c"], "missing.yaml does not exist"),
        (["--verify", "--out", "nothing"], "is not a feature cache"),
    ],
)
def test_invalid_options_are_refused(experiment, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["cache", *(experiment if a == "EXPERIMENT" else a for a in arguments)]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_cache_that_lacks_entries_is_refused_before_training(experiment, cache, tmp_path, capsys):
    run = ["--trainer.default_root_dir", str(tmp_path / "run")]
    assert main(["fit", "--config", experiment, *run, f"--data.cache={cache}", "--data.max_pixels=512"]) == 2
    assert f"{ENTRIES - 1} of {ENTRIES} are missing" in capsys.readouterr().err  # references keep their size
    facts = json.loads((cache / "cache.json").read_text())
    shutil.copytree(cache, tmp_path / "other")
    (tmp_path / "other" / "cache.json").write_text(json.dumps(facts | {"vae": "another"}))
    assert main(["fit", "--config", experiment, *run, f"--data.cache={tmp_path / 'other'}"]) == 2
    assert f"12 of {ENTRIES} are missing" in capsys.readouterr().err  # its VAE is part of a clip's key
    assert not (tmp_path / "run").exists()


def _noting_content(decoded):
    """`VisionPreprocessor.to_patches`, noting images with content: empty ones replace dropped conditions."""
    to_patches = VisionPreprocessor.to_patches

    def noting(self, shown):
        decoded.extend([] if shown.frames.min() == shown.frames.max() else [shown.size])
        return to_patches(self, shown)

    return noting
