"""`kiwi cache`, and training from what it keeps."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from kiwi.__main__ import main
from kiwi.data.latent_cache import LatentCache
from kiwi.training.run_log import read_log
from tests.integration.conftest import editor_config, write_yaml


@pytest.fixture(scope="module")
def experiment(runs, edit_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cached")
    config = editor_config(edit_folder, folder / "run", runs / "vae" / "model", max_steps=6, log_every_n_steps=1)
    config["model"]["init_args"] |= {"targets": "sample", "dropout": {"source": 0.3}}
    return write_yaml(folder / "e.yaml", config)


@pytest.fixture(scope="module")
def cache(experiment, tmp_path_factory):
    folder = tmp_path_factory.mktemp("caches") / "cache"
    assert main(["cache", "--config", experiment, "--out", str(folder), "--dtype", "float32", "--clips", "3"]) == 0
    return folder


def test_every_clip_is_kept_once_for_all_that_use_it(cache, capsys):
    """Six sources and six targets; the reference manifest uses the same clips."""
    assert len(LatentCache(cache)) == 12
    assert len(list((cache / "shards").glob("*.safetensors"))) == 4
    assert main(["cache", "--verify", "--out", str(cache)]) == 0
    assert "12 clips, all of them whole" in capsys.readouterr().out


def test_training_from_a_cache_is_training_without_and_decodes_no_target(experiment, cache, tmp_path, monkeypatch):
    def fit(name, *more):
        options = ["--trainer.default_root_dir", str(tmp_path / name), "--previews.items=0", *more]
        assert main(["fit", "--config", experiment, *options]) == 0
        weights = torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        return read_log(tmp_path / name), weights

    plain, weights = fit("plain")
    decoded = []
    clip = sys.modules["kiwi.data.dataset"]._clip
    monkeypatch.setattr("kiwi.data.dataset._clip", lambda path, bucket: decoded.append(path.name) or clip(path, bucket))
    cached, same = fit("cached", f"--data.cache={cache}")
    # Not to the bit: a clip encoded in a batch differs from the same clip alone in the last digit.
    for name in ("loss", "val/loss", "val/loss_swapped"):
        found, wanted = ([numbers[name] for numbers in run.values() if name in numbers] for run in (cached, plain))
        assert found == pytest.approx(wanted, rel=1e-5)
        assert found
    assert all(torch.allclose(tensor, same[name], atol=1e-4) for name, tensor in weights.items())
    assert decoded
    assert not any("target" in name for name in decoded)


def test_a_killed_command_goes_on_where_it_was(experiment, tmp_path):
    command = ["cache", "--config", experiment, "--out", str(tmp_path / "cache"), "--clips", "1"]
    process = subprocess.Popen([sys.executable, "-m", "kiwi", *command], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "cache" / "shards").glob("[!.]*"))) < 3 and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = len(LatentCache(tmp_path / "cache"))
    assert before >= 3
    assert main(command) == 0
    assert len(LatentCache(tmp_path / "cache")) == 12


def test_parts_together_are_the_whole(experiment, tmp_path, capsys):
    for part in ("1/2", "2/2"):
        assert main(["cache", "--config", experiment, "--out", str(tmp_path / "c"), "--part", part]) == 0
    told = capsys.readouterr().out
    first, second = (int(line.split(": ")[1].split()[0]) for line in told.splitlines() if "clips encoded" in line)
    assert first + second == 12
    assert min(first, second) > 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--out", "c"], "needs an experiment"),
        (["--config", "EXPERIMENT", "--out", "c", "--part", "3/2"], "I/N"),
        (["--config", "EXPERIMENT", "--out", "c", "--clips", "0"], "at least 1"),
        (["--config", "missing.yaml", "--out", "c"], "missing.yaml cannot be read"),
        (["--verify", "--out", "nothing"], "is not a latent cache"),
    ],
)
def test_bad_options_are_told(experiment, tmp_path, monkeypatch, capsys, arguments, told):
    monkeypatch.chdir(tmp_path)
    assert main(["cache", *(experiment if a == "EXPERIMENT" else a for a in arguments)]) == 2
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_cache_that_does_not_fit_is_refused_before_training(experiment, cache, tmp_path, capsys):
    run = ["--trainer.default_root_dir", str(tmp_path / "run")]
    assert main(["fit", "--config", experiment, *run, f"--data.cache={cache}", "--data.max_pixels=512"]) == 2
    assert "12 of 12 are missing" in capsys.readouterr().err
    facts = json.loads((cache / "cache.json").read_text())
    shutil.copytree(cache, tmp_path / "other")
    (tmp_path / "other" / "cache.json").write_text(json.dumps(facts | {"vae": "another"}))
    assert main(["fit", "--config", experiment, *run, f"--data.cache={tmp_path / 'other'}"]) == 2
    assert "12 of 12 are missing" in capsys.readouterr().err  # its VAE is part of a clip's key
    assert not (tmp_path / "run").exists()
