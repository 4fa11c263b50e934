"""Gradient accumulation: all optimizer steps have the same number of batches, also those of a resumed run."""

import pytest
import torch

from kiwi.__main__ import main
from kiwi.training.modules.vae import LitVae
from kiwi.training.run_log import read_log
from tests.integration.conftest import vae_config, write_yaml

TRAINER = {
    "accumulate_grad_batches": 3,
    "log_every_n_steps": 1,
    "limit_val_batches": 0,
    "enable_model_summary": False,
    "logger": False,
}

SCHEDULER = "{class_path: lightning.pytorch.callbacks.GradientAccumulationScheduler, init_args: {scheduling: {0: 2}}}"


@pytest.fixture
def fit(edit_folder, tmp_path):
    """Trains an autoencoder with three batches per step; returns the exit code."""

    def run(name, *options, **trainer):
        config = vae_config(edit_folder, tmp_path / name, **(TRAINER | trainer))
        config["data"] |= {"batch_size": 1, "holdout": 2, "train": [{"type": "Manifest", "path": "video.csv"}]}
        config["data"]["train"][0]["max_frames"] = 1
        config["previews"], config["quality"] = {"items": 0}, {"items": None}
        return main(["fit", "--config", write_yaml(tmp_path / f"{name}.yaml", config), *options])

    return run


def load(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.fixture
def batches_of_steps(monkeypatch):
    """The number of batches seen at every optimizer step of the runs of a test."""
    counts, step = [], LitVae.optimizer_step

    def counted_step(self, *args, **kwargs):
        step(self, *args, **kwargs)
        counts.append(self.batches_seen)

    monkeypatch.setattr(LitVae, "optimizer_step", counted_step)
    return counts


def test_every_step_has_the_same_number_of_batches_even_if_a_run_is_stopped_within_a_step(
    fit, tmp_path, monkeypatch, batches_of_steps
):
    assert fit("whole", max_steps=4) == 0  # three passes over four batches

    def stop_at_the_eighth_batch(self, *args):
        self.trainer.should_stop = self.batches_seen == 8

    with monkeypatch.context() as patch:
        patch.setattr(LitVae, "on_train_batch_end", stop_at_the_eighth_batch, raising=False)
        assert fit("stopped", max_steps=4) == 0
    assert load(tmp_path / "stopped")["batches_seen"] == 6
    assert load(tmp_path / "stopped")["global_step"] == 2
    assert fit("stopped", "--ckpt_path", "last", max_steps=4) == 0
    assert batches_of_steps == [3, 6, 9, 12, 3, 6, 9, 12]
    whole, resumed = load(tmp_path / "whole"), load(tmp_path / "stopped")
    assert whole["global_step"] == resumed["global_step"] == 4
    assert all(torch.equal(tensor, resumed["state_dict"][name]) for name, tensor in whole["state_dict"].items())
    losses = [
        {step: row["loss"] for step, row in read_log(tmp_path / name).items() if "loss" in row}
        for name in ("whole", "stopped")
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trainer.limit_train_batches=4"], "4 batches"),
        (["--trainer.fast_dev_run=2"], "2 batches"),
        (["--trainer.accumulate_grad_batches=1", f"--trainer.callbacks=[{SCHEDULER}]"], "size of steps"),
    ],
)
def test_steps_of_unequal_size_are_refused_before_anything_is_written(fit, tmp_path, capsys, options, message):
    assert fit("run", *options, max_steps=2) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_run_does_not_resume_with_another_precision(fit, tmp_path, capsys):
    assert fit("run", max_steps=1) == 0
    assert fit("run", "--ckpt_path", "last", "--trainer.precision=bf16-mixed", max_steps=2) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "Got: trainer.precision = bf16-mixed. Expected: trainer.precision = 32-true." in message
