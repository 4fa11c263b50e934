"""LoRA files of other programs: every spelling gives the same merged weights; other kinds are refused by name."""

import json
import math
import re

import pytest
import torch
from safetensors.torch import save_file

from kiwi.errors import CheckpointError
from kiwi.weights.adapters import merge_adapters
from kiwi.weights.files import read_weights
from kiwi.weights.lora_files import LoraScale, read_lora_scale, resolve_layers, standardise_lora, write_names

RANK, WIDTH = 2, 6
LAYERS = ("blocks.0.self_attn.q", "blocks.1.cross_attn.o", "blocks.1.ffn.0", "blocks.10.ffn.2")
DIFFUSERS = ("blocks.0.attn1.to_q", "blocks.1.attn2.to_out.0", "blocks.1.ffn.net.0.proj", "blocks.10.ffn.net.2")
OLD = ("blocks.0.attn1.processor.to_q", "blocks.1.attn2.processor.to_out", "blocks.1.ffn.net.0.proj", DIFFUSERS[3])


def underscored(names):
    return [name.replace(".", "_") for name in names]


SPELLINGS = {
    "ComfyUI": (LAYERS, "diffusion_model.{}.lora_A.weight", "diffusion_model.{}.lora_B.weight"),
    "ComfyUI, down and up": (LAYERS, "diffusion_model.{}.lora_down.weight", "diffusion_model.{}.lora_up.weight"),
    "ComfyUI, whole models": (LAYERS, *(f"model.diffusion_model.{{}}.lora_{h}.weight" for h in "AB")),
    "musubi": (underscored(LAYERS), "lora_unet_{}.lora_down.weight", "lora_unet_{}.lora_up.weight"),
    "kohya of diffusers": (underscored(DIFFUSERS), "lora_unet_{}.lora_down.weight", "lora_unet_{}.lora_up.weight"),
    "LyCORIS": (underscored(LAYERS), "lycoris_{}.lora_down.weight", "lycoris_{}.lora_up.weight"),
    "diffusers": (DIFFUSERS, "transformer.{}.lora_A.weight", "transformer.{}.lora_B.weight"),
    "diffusers, named": (DIFFUSERS, "transformer.{}.lora_A.style.weight", "transformer.{}.lora_B.style.weight"),
    "diffusers, old": (DIFFUSERS, "transformer.{}.lora.down.weight", "transformer.{}.lora.up.weight"),
    "diffusers, older": (OLD, "{}_lora.down.weight", "{}_lora.up.weight"),
    "diffusers, linear": (DIFFUSERS, "{}.lora_linear_layer.down.weight", "{}.lora_linear_layer.up.weight"),
    "peft": (LAYERS, "base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight"),
    "peft, compiled": (LAYERS, *(f"base_model.model._orig_mod.{{}}.lora_{h}.weight" for h in "AB")),
    "DiffSynth": (LAYERS, "{}.lora_A.default.weight", "{}.lora_B.default.weight"),
    "DiffSynth, no default": (LAYERS, "{}.lora_A.weight", "{}.lora_B.weight"),
    "DDP": (LAYERS, "module.{}.lora_A.weight", "module.{}.lora_B.weight"),
}  # fmt: skip


def make_pairs():
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(RANK, WIDTH, generator=generator), torch.randn(WIDTH, RANK, generator=generator)) for _ in LAYERS
    ]


def pair(layer):
    return {f"{layer}.lora_A.weight": torch.ones(RANK, WIDTH), f"{layer}.lora_B.weight": torch.ones(WIDTH, RANK)}


def make_weights():
    layers = (*LAYERS, "blocks.0.self_attn.k", "blocks.1.self_attn.o", "blocks.0.ffn.0")
    return {f"{layer}.weight": torch.ones(WIDTH, WIDTH) for layer in layers}


def spell(spelling):
    layers, down, up = SPELLINGS[spelling]
    pairs = zip(layers, make_pairs(), strict=True)
    return {name.format(layer): half for layer, pair in pairs for name, half in zip((down, up), pair, strict=True)}


def merge(file, factor):
    """Read a LoRA file, merge it, and check that the result is W + factor B A for every layer."""
    standard, report = standardise_lora(read_weights(file), read_lora_scale(file))
    merged = merge_adapters(make_weights(), resolve_layers(standard, make_weights()))
    for layer, (a, b) in zip(LAYERS, make_pairs(), strict=True):
        assert torch.allclose(merged[f"{layer}.weight"], 1 + factor * b @ a, atol=1e-6), layer
    assert torch.equal(merged["blocks.0.self_attn.k.weight"], torch.ones(WIDTH, WIDTH))
    return report


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("alpha", [None, 1.0, 3])
def test_every_spelling_gives_the_weight_plus_alpha_over_rank_times_b_times_a(tmp_path, spelling, alpha):
    state = spell(spelling)
    if alpha is not None:
        stems = {re.split(r"(?:\.|_)lora(?:_[ABdu]|\.|_linear)", name)[0] for name in state}
        state |= {f"{stem}.alpha": torch.tensor(alpha) for stem in stems}
    save_file(state, tmp_path / "lora.safetensors")
    report = merge(tmp_path / "lora.safetensors", 1 if alpha is None else alpha / RANK)
    assert ("no alpha" in report) == (alpha is None)


@pytest.mark.parametrize(
    ("metadata", "factor"),
    [
        ({"ss_network_alpha": "1.0", "ss_network_dim": "2"}, 0.5),
        ({"ss_network_alpha": "None"}, 1),
        ({"lora_alpha": "4"}, 2),
        ({"lora_adapter_metadata": '{"transformer.lora_alpha": 1, "transformer.r": 2}'}, 0.5),
        ({"lora_adapter_metadata": '{"transformer.lora_alpha": 3, "transformer.use_rslora": true}'}, 3 / math.sqrt(2)),
    ],
)  # fmt: skip
def test_alpha_is_read_from_metadata(tmp_path, metadata, factor):
    save_file(spell("diffusers"), tmp_path / "lora.safetensors", metadata)
    merge(tmp_path / "lora.safetensors", factor)


def test_alpha_is_read_from_the_adapter_config_of_peft_also_for_single_layers(tmp_path):
    save_file(spell("peft"), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 1, "r": 2, "alpha_pattern": {}}))
    assert "adapter_config.json" in merge(tmp_path / "adapter_model.safetensors", 0.5)
    merge(tmp_path, 0.5)
    scale = LoraScale(1.0, patterns={"ffn.0": 8.0})
    assert (scale.alpha_of("blocks.1.ffn.0"), scale.alpha_of("blocks.1.ffn.2")) == (8.0, 1.0)


def test_pairs_saved_as_convolutions_with_a_kernel_of_one_are_those_of_linear_layers(tmp_path):
    save_file(
        {name: t[..., None, None].contiguous() for name, t in spell("musubi").items()}, tmp_path / "lora.safetensors"
    )
    merge(tmp_path / "lora.safetensors", 1)


@pytest.mark.parametrize(
    ("name", "shape", "word"),
    [
        ("diffusion_model.blocks.0.norm3.diff", (6,), ".diff"),
        ("diffusion_model.blocks.0.self_attn.q.diff_b", (6,), ".diff_b"),
        ("lora_unet_blocks_0_self_attn_q.dora_scale", (6, 1), "DoRA"),
        ("transformer.blocks.0.attn1.to_q.lora_magnitude_vector.default.weight", (6,), "DoRA"),
        ("lora_unet_blocks_0_self_attn_q.lokr_w1", (2, 2), "LoKr"),
        ("lycoris_blocks_0_self_attn_q.hada_w1_a", (6, 2), "LoHa"),
        ("lora_unet_blocks_0_self_attn_q.lora_mid.weight", (2, 2, 3, 3), "middle"),
        ("diffusion_model.patch_embedding.lora_down.weight", (2, 4, 1, 2, 2), "convolution"),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", (2, 6), "text encoder"),
        ("text_encoder.encoder.block.0.layer.0.lora_A.weight", (2, 6), "text encoder"),
        ("transformer_2.blocks.0.attn1.to_q.lora_A.weight", (2, 6), "transformer_2"),
        ("blocks.0.self_attn.q.lora_B.bias", (6,), "biases"),
        ("blocks.0.self_attn.q.oft_blocks", (2, 3, 3), "OFT"),
    ],
)
@pytest.mark.parametrize("alone", [True, False])
def test_other_kinds_of_adapters_are_refused_and_named(name, shape, word, alone):
    state = {name: torch.ones(shape)} | ({} if alone else spell("ComfyUI"))
    with pytest.raises(CheckpointError, check=lambda error: error.code == "unsupported-adapters") as caught:
        standardise_lora(state, LoraScale())
    assert word in caught.value.got
    assert name in caught.value.got


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda s: s.update({"lora_unet_blocks_7_self_attn_q.alpha": torch.tensor(1.0)}), "invalid-adapter"),
        (lambda s: s.update({"lora_unet_blocks_0_self_attn_q.alpha": torch.tensor(math.nan)}), "invalid-adapter"),
        (lambda s: s.update({"lora_unet_blocks_0_self_attn_q.alpha": torch.ones(3)}), "invalid-adapter"),
        (lambda s: s.pop("lora_unet_blocks_0_self_attn_q.lora_up.weight"), "invalid-adapter"),
        (lambda s: s.update(pair("blocks.0.self_attn.q")), "invalid-adapter"),
        (lambda s: s.update(pair("double_blocks.0.img_attn.qkv")), "mismatched-adapter"),
    ],
)  # fmt: skip
def test_incomplete_and_unknown_adapters_are_refused(change, code):
    state = spell("musubi")
    change(state)
    with pytest.raises(CheckpointError, check=lambda error: error.code == code):
        resolve_layers(standardise_lora(state, LoraScale())[0], make_weights())


@pytest.mark.parametrize("style", ["lora-comfyui", "lora-diffusers"])
def test_names_of_other_programs_are_read_back_bitwise(style):
    own = resolve_layers(standardise_lora(spell("ComfyUI"), LoraScale())[0], make_weights())
    written = write_names(own, style)
    assert all(name.startswith(("diffusion_model.blocks.", "transformer.blocks.")) for name in written)
    back = resolve_layers(standardise_lora(written, LoraScale())[0], make_weights())
    assert own.keys() == back.keys()
    assert all(torch.equal(own[name], back[name]) for name in own)
