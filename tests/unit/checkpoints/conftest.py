"""Models that the published formats support, and helpers for tests of conversion."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from kiwi.__main__ import main
from kiwi.checkpoints.folder import save_pretrained
from kiwi.data.sample import EditSample, collate
from kiwi.encoded import TaskKind
from kiwi.models.config import KiwiConfig
from kiwi.models.connectors import QueryConnector
from kiwi.models.kiwi import KiwiEdit
from kiwi.models.sampling import EditingDefaults, Sampling, sample_edits
from kiwi.weights.adapters import is_adapter

LIMITS = "mllm.limits={max_frames: 4, max_pixels_per_frame: 7056, min_pixels_per_frame: 784, max_reference_tokens: 16}"


def edit(model):
    """Edit a fixed sample and return the clip before its conversion to 8-bit pixels."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (5, 32, 48, 3), dtype=np.uint8)
    reference_image = rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)
    sample = EditSample(
        id="edit",
        task=TaskKind.reference,
        instruction="Make it snow",
        size=frames.shape[:3],
        source_FHWC=frames,
        target_FHWC=frames[:0],
        reference_images=(reference_image,),
        references_RHWC=rng.integers(0, 256, (1, 32, 48, 3), dtype=np.uint8),
    )
    return sample_edits(model, collate([sample]), Sampling(steps=3), seed=0)


@pytest.fixture(scope="session")
def config(tiny_config) -> KiwiConfig:
    """A configuration that the published code supports."""
    return tiny_config.replace(query=QueryConnector(image=3, video=4, reference=5, readout="tail"))


def save_random_model(config, folder):
    """Save and return a model with random weights, so that none is zero and each affects the edit."""
    model = KiwiEdit(config, seed=1).eval()
    torch.manual_seed(7)
    for name, parameter in model.named_parameters():
        if not name.startswith("vae") and (is_adapter(name) or not name.startswith("mllm")):
            torch.nn.init.normal_(parameter, std=0.2)
    save_pretrained(model, folder, EditingDefaults())
    return model


@pytest.fixture(scope="session")
def checkpoint(config, tmp_path_factory):
    """A folder that contains the model folder m and its training checkpoint c.safetensors."""
    folder = tmp_path_factory.mktemp("checkpoint")
    save_random_model(config, folder / "m")
    assert main(["convert", "kiwi-upstream", f"{folder}/m", f"{folder}/c.safetensors"]) == 0
    return folder


def missing_parts(folder):
    """Return options for what a training checkpoint lacks, from the model folder that it was exported from."""
    return ["--vae", f"{folder}:vae", "--mllm", f"{folder}/mllm", "--set", "dit.num_heads=2", "--set", LIMITS]


def import_command(file, folder, parts):
    """Return the command that imports a training checkpoint; `parts` is a model folder with what the file lacks."""
    return ["convert", "kiwi-upstream", str(file), str(folder), *missing_parts(parts)]


def import_state(checkpoint, folder, state, *options):
    """Import tensors as a training checkpoint and return the exit code."""
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "c.safetensors")
    return main([*import_command(folder / "c.safetensors", folder / "a", checkpoint / "m"), "--force", *options])
