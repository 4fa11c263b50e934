"""`kiwi convert` of LoRA files: merged and kept with alpha / rank, and written in the names of other programs."""

import resource
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from kiwi import shipped
from kiwi.__main__ import main
from kiwi.checkpoints import ConvertOptions, convert
from kiwi.checkpoints.folder import from_pretrained
from kiwi.errors import CheckpointError, InputError
from kiwi.media.files import atomic_folder, atomic_path, write_json
from kiwi.models.tuning import Lora
from kiwi.weights.files import read_json, read_weights
from tests.unit.checkpoints.conftest import missing_parts, save_random_model

CASES = Path(__file__).parents[2] / "cases"
PARTS = ["--vae", "sandbox/vae", "--mllm", "sandbox/mllm", "--set", "dit.num_heads=6"]


def convert_case(name, target, *options, format="kiwi-upstream"):
    return main(["convert", format, f"{CASES}/{name}.safetensors", str(target), *PARTS, *options])


@pytest.mark.parametrize(("name", "factor"), [("l_comfy", 1), ("l_musubi", 0.5)])
def test_loras_of_comfyui_and_musubi_are_merged_or_kept_with_alpha_over_rank(tmp_path, name, factor):
    base, lora = read_weights(shipped.FOLDERS["sandbox/base"]), load_file(CASES / f"{name}.safetensors")
    spelling = {
        "l_comfy": "diffusion_model.blocks.{}.self_attn.{}.lora_{}",
        "l_musubi": "lora_unet_blocks_{}_self_attn_{}.lora_{}",
    }
    down, up = ("A", "B") if name == "l_comfy" else ("down", "up")
    for adapters in ("merge", "keep"):
        assert convert_case(name, tmp_path / adapters, "--base", "sandbox/base", "--adapters", adapters) == 0
        state = read_weights(tmp_path / adapters)
        for block in range(4):
            for part in ("q", "v"):
                layer = f"blocks.{block}.self_attn.{part}"
                a, b = (lora[spelling[name].format(block, part, half) + ".weight"] for half in (down, up))
                if adapters == "merge":
                    expected = base[f"{layer}.weight"].float() + factor * b @ a
                    assert torch.equal(state[f"dit.{layer}.weight"], expected.half())  # as the base model
                else:
                    assert torch.equal(state[f"dit.{layer}.lora_A.default.weight"], a)
                    assert torch.equal(state[f"dit.{layer}.lora_B.default.weight"], factor * b)
    assert from_pretrained(tmp_path / "keep")[0].config.dit.tuning == Lora(
        rank=4, targets=("self_attn.q", "self_attn.v")
    )


def test_messages_about_a_lora_say_what_was_found_and_lead_to_a_conversion(tmp_path, capsys):
    assert convert_case("l_musubi", tmp_path / "a", format="wan") == 2
    error = capsys.readouterr().err
    assert "16 LoRA tensors (lora_unet_blocks_0_self_attn_q.lora_down.weight" in error
    assert "kiwi-upstream" in error
    assert convert_case("l_musubi", tmp_path / "a") == 2
    error = capsys.readouterr().err
    assert "8 adapters for the DiT" in error
    assert "--base" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("state", [{}, {"x": torch.ones(2)}, {"lora_unet_blocks_0_self_attn_q.alpha": torch.ones(())}])
def test_a_file_with_neither_weights_nor_adapters_is_rejected(tmp_path, state):
    save_file(state, tmp_path / "x.safetensors")
    options = ConvertOptions(
        format="kiwi-upstream", src=str(tmp_path / "x.safetensors"), dst=tmp_path / "a",
        base="sandbox/base", vae="sandbox/vae", mllm="sandbox/mllm",
    )  # fmt: skip
    with pytest.raises(CheckpointError, check=lambda e: e.code in ("missing-weights", "not-a-wan-transformer")):
        convert(options)


@pytest.mark.parametrize("format", ["lora-comfyui", "lora-diffusers"])
def test_an_adapter_trained_with_kiwi_is_written_for_other_programs_and_read_back_bitwise(
    config, tmp_path, capsys, format
):
    tuning = Lora(rank=3, targets=("ffn.0", "cross_attn.o"))
    save_random_model(config.replace(dit=config.dit.replace(tuning=tuning)), tmp_path / "m")
    before = read_weights(tmp_path / "m")
    assert main(["convert", format, f"{tmp_path}/m", f"{tmp_path}/lora.safetensors"]) == 0
    names = load_file(tmp_path / "lora.safetensors").keys()
    example = {
        "lora-comfyui": "diffusion_model.blocks.0.cross_attn.o.lora_A.weight",
        "lora-diffusers": "transformer.blocks.0.attn2.to_out.0.lora_A.weight",
    }
    assert example[format] in names
    base = {n.replace(".base_layer", "")[4:]: t for n, t in before.items() if n.startswith("dit.") and "lora" not in n}
    save_file(base, tmp_path / "base.safetensors")
    command = ["convert", format, f"{tmp_path}/lora.safetensors", f"{tmp_path}/a", "--adapters", "keep"]
    assert main([*command, "--base", f"{tmp_path}/base.safetensors", *missing_parts(tmp_path / "m")]) == 0
    after = read_weights(tmp_path / "a")
    dit = [name for name in before if name.startswith("dit.")]
    assert all(torch.equal(after[name], before[name]) for name in dit)
    assert from_pretrained(tmp_path / "a")[0].config.dit.tuning.rank == 3
    assert main(["convert", format, str(shipped.FOLDERS["sandbox"]), f"{tmp_path}/x.safetensors"]) == 2
    assert "adapters of the MLLM only" in capsys.readouterr().err


def test_a_full_disk_during_a_conversion_is_one_paragraph_and_leaves_nothing(tmp_path, capsys):
    """The limit on the size of a file stands for a full disk; both writers of safetensors and of JSON meet it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        assert convert_case("l_comfy", tmp_path / "a", "--base", "sandbox/base") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "no space left" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error", [OSError(28, "full"), SafetensorError("I/O error: No space left on device (os error 28)")]
)
def test_a_full_disk_is_recognised_whichever_library_writes(tmp_path, error):
    for writer in (atomic_path(tmp_path / "a"), atomic_folder(tmp_path / "b", lambda _: [])):
        with pytest.raises(InputError, check=lambda error: error.code == "disk-full"), writer:
            raise error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("dit.num_layers", 10**9),
        ("dit.tuning", {"type": "Lora", "rank": 10**9}),
        ("query.image", 10**9),
        ("mllm.tuning.rank", 10**12),
        ("mllm", {"type": "NewQwen", "hidden_size": 2**20}),
        ("vae", {"type": "NewVae", "base_dim": 2**20}),
    ],
)
def test_sizes_in_a_model_folder_are_compared_with_its_weights_before_anything_is_built(tmp_path, path, value):
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(shipped.FOLDERS["sandbox"] / "model.safetensors")
    content = read_json(shipped.FOLDERS["sandbox"] / "config.json")
    *parents, last = path.split(".")
    node = content["config"]
    for parent in parents:
        node = node[parent]
    node[last] = value
    write_json(folder / "config.json", content)
    with pytest.raises(CheckpointError, check=lambda e: e.code in ("mismatched-config", "invalid-model-config")):
        from_pretrained(folder)


def test_a_number_of_steps_that_would_not_end_is_rejected(tmp_path):
    content = read_json(shipped.FOLDERS["sandbox"] / "config.json")
    content["editing"]["sampling"]["steps"] = 10**9
    write_json(tmp_path / "config.json", content)
    with pytest.raises(CheckpointError, check=lambda error: error.code == "invalid-model-config"):
        from_pretrained(tmp_path)
