"""A training stage starts from the model folder of the previous stage."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kiwi.checkpoints.folder import load_initial_weights, save_pretrained
from kiwi.errors import CheckpointError
from kiwi.models.connectors import NoConnector
from kiwi.models.dit.base import WanBase
from kiwi.models.injection import AddSource
from kiwi.models.kiwi import KiwiEdit
from kiwi.models.mllm.encoder import QwenVL
from kiwi.models.sampling import EditingDefaults
from kiwi.models.scaling import ConstantScale
from kiwi.models.tuning import Frozen, Full, Lora
from kiwi.models.vae.wan import WanVae


@pytest.fixture(scope="module")
def pretrained(tiny_config, tmp_path_factory):
    """Save Wan weights, an MLLM and a VAE, and return a configuration that references them."""
    folder = tmp_path_factory.mktemp("pretrained")
    model = KiwiEdit(tiny_config, seed=7)
    model.vae.save(folder / "vae")
    model.mllm.save(folder / "mllm")
    save_file(model.dit.state_dict(), folder / "wan.safetensors")
    return tiny_config.replace(
        vae=WanVae(path=str(folder / "vae")),
        mllm=QwenVL(path=str(folder / "mllm"), dtype="float32", limits=tiny_config.mllm.limits, tuning=Lora(rank=2)),
        dit=tiny_config.dit.replace(base=WanBase(path=str(folder / "wan.safetensors")), tuning=Frozen()),
    )


def train_stage(config, folder, seed):
    """Save a model with all trainable weights changed, as by a training stage, and return its state dict."""
    model = KiwiEdit(config, seed=seed)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    save_pretrained(model, folder, EditingDefaults(), self_contained=False)
    return model.state_dict()


def with_tuning(config, tuning):
    return config.replace(dit=config.dit.replace(tuning=tuning))


def test_each_stage_continues_from_the_trained_weights_and_otherwise_from_the_base(pretrained, tmp_path):
    """Stage 1 trains queries, connectors and MLLM adapters; stages 2 and 3 train the DiT or its adapters."""
    first = train_stage(pretrained, tmp_path / "1", 1)
    for tuning in (Full(), Lora(rank=3)):
        model = KiwiEdit(with_tuning(pretrained, tuning), seed=2)
        load_initial_weights(model, tmp_path / "1")
        state = model.state_dict()
        shared = first.keys() & state.keys()
        assert all(torch.equal(state[name], first[name]) for name in shared)
        assert {name for name in first if not name.startswith("dit.")} <= shared
        weight = model.dit.blocks[0].ffn[0]
        base = weight.base_layer.weight if isinstance(tuning, Lora) else weight.weight
        assert torch.equal(base, first["dit.blocks.0.ffn.0.weight"])
        assert weight.weight.requires_grad == isinstance(tuning, Full)
    second = train_stage(with_tuning(pretrained, Full()), tmp_path / "2", 2)
    model = KiwiEdit(with_tuning(pretrained, Full()), seed=3)
    load_initial_weights(model, tmp_path / "2")
    assert all(torch.equal(tensor, second[name]) for name, tensor in model.state_dict().items())


def test_the_same_base_model_under_another_path_is_accepted(pretrained, tmp_path, monkeypatch):
    train_stage(pretrained, tmp_path / "1", 1)
    wan = Path(pretrained.dit.base.path)
    monkeypatch.chdir(wan.parent)
    model = KiwiEdit(pretrained.replace(dit=pretrained.dit.replace(base=WanBase(path=wan.name), tuning=Full())))
    load_initial_weights(model, tmp_path / "1")
    assert torch.equal(model.query.queries["image"], load_file(tmp_path / "1/model.safetensors")["query.queries.image"])


def test_adapters_are_added_to_a_fully_trained_dit(pretrained, tmp_path):
    state = train_stage(with_tuning(pretrained, Full()), tmp_path / "full", 1)
    model = KiwiEdit(with_tuning(pretrained, Lora(rank=2)), seed=2)
    load_initial_weights(model, tmp_path / "full")
    layer = model.dit.blocks[1].self_attn.q
    assert torch.equal(layer.base_layer.weight, state["dit.blocks.1.self_attn.q.weight"])
    assert not layer.base_layer.weight.requires_grad
    assert layer.lora_A["default"].weight.requires_grad


def test_trained_adapters_are_rejected_by_a_model_without_adapters(pretrained, tmp_path):
    train_stage(with_tuning(pretrained, Lora(rank=2)), tmp_path / "lora", 1)
    with pytest.raises(CheckpointError, match=r"unexpected.*lora_"):
        load_initial_weights(KiwiEdit(with_tuning(pretrained, Full())), tmp_path / "lora")


def test_a_part_that_only_the_folder_or_only_the_model_has_is_rejected(pretrained, tmp_path):
    train_stage(pretrained, tmp_path / "1", 1)
    with pytest.raises(CheckpointError, match=r"unexpected \(latent"):
        load_initial_weights(KiwiEdit(pretrained.replace(latent=NoConnector())), tmp_path / "1")
    train_stage(pretrained.replace(latent=NoConnector()), tmp_path / "without", 1)
    with pytest.raises(CheckpointError, match=r"missing \(latent"):
        load_initial_weights(KiwiEdit(pretrained), tmp_path / "without")


def test_another_base_model_is_rejected(pretrained, tiny_config, tmp_path):
    train_stage(pretrained, tmp_path / "1", 1)
    other = KiwiEdit(tiny_config, seed=8).dit.state_dict()
    save_file(other, tmp_path / "other.safetensors")
    config = pretrained.replace(
        dit=pretrained.dit.replace(base=WanBase(path=str(tmp_path / "other.safetensors")), tuning=Full())
    )
    with pytest.raises(CheckpointError, match="dit", check=lambda error: error.code == "mismatched-base-model"):
        load_initial_weights(KiwiEdit(config), tmp_path / "1")
    with pytest.raises(CheckpointError, check=lambda error: error.code == "mismatched-base-model"):
        load_initial_weights(KiwiEdit(config.replace(dit=tiny_config.dit)), tmp_path / "1")


def test_sizes_that_shapes_do_not_show_must_be_equal_and_other_changes_are_logged(pretrained, tmp_path, caplog):
    train_stage(with_tuning(pretrained, Full()), tmp_path / "full", 1)
    config = with_tuning(pretrained, Full())
    with pytest.raises(CheckpointError, match=r"dit\.num_heads.*Got: 1.*Expected: 2"):
        load_initial_weights(KiwiEdit(config.replace(dit=config.dit.replace(num_heads=1))), tmp_path / "full")
    load_initial_weights(KiwiEdit(config.replace(source=AddSource(scale=ConstantScale()))), tmp_path / "full")
    assert "source.scale = SigmaScale; training continues with ConstantScale" in caplog.text
