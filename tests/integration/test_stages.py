"""The curricula of experiments/stages, without their weights: parts, trainable parameters, and how stages chain."""

from pathlib import Path

import pytest
import torch

from kiwi.checkpoints.folder import select_saved_names
from kiwi.experiment import read_experiment
from kiwi.models.budget import with_untrained_parts
from kiwi.models.config import PARTS, KiwiConfig
from kiwi.models.kiwi import KiwiEdit
from kiwi.spec import from_dict

STAGES = Path(__file__).parents[2] / "experiments" / "stages"
ORDER = ("stage1", "stage2a", "stage2b", "stage3", "stage3b")
SIZES = ("5b", "14b", "sandbox")
PUBLISHED = {
    # steps, learning rate, accumulation, pixels, and the parts that join in (section 4 of the paper)
    "stage1": (30000, 1e-5, 1, 1024**2, {"query", "mllm"}),
    "stage2a": (20000, 1e-5, 2, 600**2, {"query", "mllm", "dit", "source"}),
    "stage2b": (20000, 1e-5, 2, 720 * 1280, {"query", "mllm", "dit", "source"}),
    "stage3": (15000, 5e-6, 3, 720 * 1280, {"query", "mllm", "dit", "source", "latent", "reference"}),
    "stage3b": (30000, 5e-6, 1, 720 * 1280, {"query", "mllm", "dit", "source", "latent", "reference"}),
}


def built(config):
    with torch.device("meta"):
        return KiwiEdit(with_untrained_parts(config))


@pytest.mark.parametrize("stage", ORDER)
@pytest.mark.parametrize("size", ["5b", "14b"])
def test_the_published_stages_are_as_published(size, stage):
    steps, lr, accumulation, pixels, parts = PUBLISHED[stage]
    experiment = read_experiment(STAGES / size / f"{stage}.yaml")
    assert experiment["trainer"]["max_steps"] == steps
    assert experiment["trainer"].get("accumulate_grad_batches", 1) == accumulation
    assert experiment["model"]["optim"] == {"type": "AdamW", "lr": lr}
    assert experiment["data"]["max_pixels"] == pixels
    assert set(experiment["model"]["train_parts"]) == parts
    frames = {manifest["max_frames"] for manifest in experiment["data"]["train"]}
    assert max(frames) == (1 if stage == "stage1" else 81 if size == "5b" else 49)


@pytest.mark.parametrize("size", SIZES)
def test_each_stage_starts_from_the_previous_one_which_has_all_that_it_needs(size):
    """A stage finds its tensors in the previous stage's folder, except new adapters and a frozen base model."""
    before, previous_run = None, None
    for stage in ORDER:
        experiment = read_experiment(STAGES / size / f"{stage}.yaml")
        config = from_dict(KiwiConfig, experiment["model"]["config"])
        names = set(select_saved_names(config, built(config).state_dict()))
        assert experiment["model"].get("init") == (None if previous_run is None else f"{previous_run}/model")
        if before is not None:
            absent = {name for name in names - before if ".lora_" not in name}
            assert not absent or (size != "14b" and stage == "stage2a" and all(n.startswith("dit.") for n in absent))
            assert not before - names
        before, previous_run = names, experiment["trainer"]["default_root_dir"]


def test_the_trainable_parameters_of_each_stage_of_the_5b():
    trainable = []
    for stage in ORDER:
        experiment = read_experiment(STAGES / "5b" / f"{stage}.yaml")
        model = built(from_dict(KiwiConfig, experiment["model"]["config"]))
        for part in {*PARTS, "mllm"} - set(experiment["model"]["train_parts"]):
            getattr(model, part).requires_grad_(False)
        trainable.append({name for name, parameter in model.named_parameters() if parameter.requires_grad})
    assert sum(".lora_" in name for name in trainable[0]) == 36 * 4 * 2  # layers of the MLLM, q k v o, A and B
    assert {name.split(".")[0] for name in trainable[0]} == {"query", "mllm"}
    assert len([name for name in trainable[1] if name.startswith("dit.")]) == 825 - 4  # without the text embedding
    assert {name.split(".")[0] for name in trainable[3] - trainable[2]} == {"latent", "reference"}
    assert trainable[3] == trainable[4]
    assert not any(name.startswith(("vae.", "mllm.model.visual.")) for stage in trainable for name in stage)
