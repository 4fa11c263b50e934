"""The published training checkpoint: its names, and the options that it does not record."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from kiwi.__main__ import main
from kiwi.checkpoints.folder import from_pretrained, save_pretrained
from kiwi.checkpoints.folder_config import read_folder_config
from kiwi.checkpoints.published import OPTIONS_KEY, find_unrecorded_options
from kiwi.models.config import KiwiConfig
from kiwi.models.dit.base import WanBase
from kiwi.models.dit.transformer import DiTConfig
from kiwi.models.injection import AppendReference, NoSource, PrependReference
from kiwi.models.kiwi import KiwiEdit
from kiwi.models.mllm.encoder import QwenVL
from kiwi.models.mllm.vision_input import VisionLimits
from kiwi.models.sampling import EditingDefaults
from kiwi.models.tuning import Lora
from kiwi.models.vae.wan import WanVae
from kiwi.weights.adapters import is_adapter
from kiwi.weights.files import read_weights
from kiwi.weights.names import select_prefix
from tests.unit.checkpoints.conftest import edit, import_command, save_random_model


def test_the_training_checkpoint_has_the_published_names(checkpoint):
    names = set(load_file(checkpoint / "c.safetensors"))
    assert {
        "pipe.dit.text_embedding.0.weight", "pipe.dit.blocks.1.norm3.bias", "pipe.dit.head.modulation",
        "pipe.vae_condition.patch_embedding.weight", "pipe.ref_vae_condition.patch_embedding.bias",
        "pipe.mllm.connetor.2.bias", "pipe.mllm.ref_connector.0.weight", "pipe.mllm.ref_queries.q",
    } <= names  # fmt: skip
    assert len([n for n in names if n.startswith("pipe.dit.")]) == 15 + 2 * 27
    assert all(name.startswith("pipe.") for name in names)


@pytest.mark.parametrize("prefix", ["pipe.dit.", "pipe.", "dit."])
def test_a_checkpoint_is_read_with_any_prefix_of_its_names(checkpoint, tmp_path, prefix):
    state = load_file(checkpoint / "c.safetensors")
    if prefix == "pipe.dit.":  # the published default: only the DiT's names lose their prefix
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    elif prefix == "dit.":
        state = {name.removeprefix("pipe."): tensor for name, tensor in state.items()}
    save_file(state, tmp_path / "c.safetensors")
    assert main(import_command(tmp_path / "c.safetensors", tmp_path / "a", checkpoint / "m")) == 0
    imported, original = read_weights(tmp_path / "a"), read_weights(checkpoint / "m")
    assert imported.keys() == original.keys()
    assert all(torch.equal(imported[name], tensor) for name, tensor in original.items())


@pytest.mark.parametrize("adapters", ["merge", "keep"])
def test_a_checkpoint_of_adapters_and_its_base_model_edit_like_the_original(
    config, checkpoint, tmp_path, adapters, capsys
):
    """As in the published 14B, the file contains only adapters for the DiT, and the MLLM's MLPs have adapters too."""
    dit = select_prefix(read_weights(checkpoint / "m"), "dit.")
    base = tmp_path / "base.safetensors"
    save_file(dit, base)
    targets = ("q_proj", "v_proj", "gate_proj", "down_proj")
    tuned = config.replace(
        mllm=config.mllm.replace(tuning=Lora(rank=4, targets=targets)),
        dit=config.dit.replace(base=WanBase(path=str(base)), tuning=Lora(rank=3)),
    )
    model = KiwiEdit(tuned, seed=1)
    torch.manual_seed(9)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not name.startswith("vae"):
            torch.nn.init.normal_(parameter, std=0.1)
    save_pretrained(model.eval(), tmp_path / "m", EditingDefaults(), self_contained=False)
    expected = edit(model)
    assert main(["convert", "kiwi-upstream", f"{tmp_path}/m", f"{tmp_path}/c.safetensors"]) == 0
    names = load_file(tmp_path / "c.safetensors").keys()
    assert all(is_adapter(name) for name in names if name.startswith("pipe.dit."))
    assert "pipe.mllm.model.model.language_model.layers.0.mlp.gate_proj.lora_B.default.weight" in names
    (tmp_path / "parts").mkdir()
    model.vae.save(tmp_path / "parts/vae")
    model.mllm.save(tmp_path / "parts/mllm")
    back = import_command(tmp_path / "c.safetensors", tmp_path / "a", tmp_path / "parts")
    capsys.readouterr()
    assert main(back) == 2
    assert "no weights" in capsys.readouterr().err
    assert main([*back, "--base", str(base), "--adapters", adapters]) == 0
    loaded, _ = from_pretrained(tmp_path / "a")
    assert any(map(is_adapter, read_weights(tmp_path / "a"))) == (adapters == "keep")
    assert (edit(loaded.eval()) - expected).abs().max() <= 2e-5


def test_options_that_tensors_do_not_show_are_reported_and_recorded_in_the_file(config, tmp_path, capsys):
    config = config.replace(reference=PrependReference(), source=NoSource())
    save_random_model(config, tmp_path / "m")
    assert main(["convert", "kiwi-upstream", f"{tmp_path}/m", f"{tmp_path}/c.safetensors"]) == 0
    output = " ".join(word for word in capsys.readouterr().out.split() if word != "│")
    limits = config.mllm.limits
    options = {"dit.num_heads": 2, "source": "NoSource", "reference": "PrependReference"}
    options |= {f"mllm.limits.{name}": value for name, value in vars(limits).items()}
    assert find_unrecorded_options(config) == options
    assert all(f"--set {path}={value}" in output for path, value in options.items())

    parts = ["--vae", f"{tmp_path}/m:vae", "--mllm", f"{tmp_path}/m/mllm"]
    back = ["convert", "kiwi-upstream", f"{tmp_path}/c.safetensors", f"{tmp_path}/a", *parts]
    assert main(back) == 0
    imported = read_folder_config(tmp_path / "a").config
    assert imported.replace(vae=config.vae, mllm=config.mllm) == config
    assert imported.mllm.limits == limits
    overrides = ["--set", "mllm.limits={max_frames: 7}", "--set", "reference=AppendReference", "--force"]
    assert main([*back, *overrides]) == 0
    imported = read_folder_config(tmp_path / "a").config
    assert imported.reference == AppendReference()
    assert imported.mllm.limits == VisionLimits(max_frames=7)


def test_published_sizes_need_no_recorded_options():
    published = KiwiConfig(dit=DiTConfig(), vae=WanVae(path="vae"), mllm=QwenVL(path="mllm"))
    assert find_unrecorded_options(published) == {}
    limited = published.mllm.replace(limits=VisionLimits(max_frames=10))
    assert find_unrecorded_options(published.replace(mllm=limited)) == {"mllm.limits.max_frames": 10}


@pytest.mark.parametrize("content", ['{"vae.path": "x"}', '{"dit.num_heads": "2"}', "[]", "{", "[" * 100_000])
def test_invalid_recorded_options_are_rejected(checkpoint, tmp_path, capsys, content):
    save_file(load_file(checkpoint / "c.safetensors"), tmp_path / "c.safetensors", {OPTIONS_KEY: content})
    assert main(import_command(tmp_path / "c.safetensors", tmp_path / "a", checkpoint / "m")) == 2
    assert "options recorded in" in capsys.readouterr().err


def test_an_option_that_differs_from_the_recorded_one_is_reported(checkpoint, tmp_path, capsys):
    command = import_command(checkpoint / "c.safetensors", tmp_path / "a", checkpoint / "m")
    assert main([*command, "--set", "dit.num_heads=1"]) == 0
    assert "1, although the checkpoint records 2" in " ".join(capsys.readouterr().out.split())
