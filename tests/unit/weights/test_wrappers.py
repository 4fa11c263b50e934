"""Prefixes of wrappers are removed, which is logged; a file with weights and their moving average needs a choice."""

import logging
import os

import pytest
import torch
from safetensors.torch import save_file

from kiwi.errors import CheckpointError
from kiwi.models.dit.base import read_wan_transformer
from kiwi.weights.files import choose_lossless_dtype, read_json, read_metadata, read_weights

WEIGHTS = {"blocks.0.self_attn.q.weight": torch.ones(2, 2), "patch_embedding.weight": torch.ones(2, 1, 1, 1, 1)}


def with_prefix(prefix, value=1.0):
    return {prefix + name: tensor * value for name, tensor in WEIGHTS.items()}


def write(folder, content, suffix):
    path = folder / f"x{suffix}"
    save_file(content, path) if suffix == ".safetensors" else torch.save(content, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(
    "prefix",
    ["_orig_mod.", "module.", "model.", "module._orig_mod.", "_orig_mod.module.model.", "_fsdp_wrapped_module.", "net.",
     "_forward_module.module.", "model.diffusion_model.", "diffusion_model.", "transformer.", "module.module."],
)  # fmt: skip
def test_prefixes_of_wrappers_are_removed_and_logged_in_one_line(tmp_path, caplog, prefix, suffix):
    path = write(tmp_path, with_prefix(prefix), suffix)
    with caplog.at_level(logging.INFO):
        assert read_wan_transformer(str(path)).keys() == WEIGHTS.keys()
    lines = [record.getMessage() for record in caplog.records if "were removed" in record.getMessage()]
    assert len(lines) == 1
    logged_prefixes = {word.strip(".,") for word in lines[0].split() if word.strip(",").endswith(".")}
    assert logged_prefixes == set(prefix.split(".")[:-1])


def test_wrappers_inside_a_name_are_removed_but_a_prefix_of_some_names_is_kept(tmp_path):
    inner = "blocks.0._checkpoint_wrapped_module._orig_mod.self_attn._fsdp_wrapped_module.q.weight"
    path = write(tmp_path, {inner: torch.ones(2, 2), "model.x": torch.ones(1)}, ".safetensors")
    assert read_weights(path).keys() == {"blocks.0.self_attn.q.weight", "model.x"}


def test_two_names_that_differ_only_in_a_wrapper_are_rejected(tmp_path):
    both = {"_orig_mod.a": torch.ones(1), "a": torch.ones(1)}
    with pytest.raises(CheckpointError, check=lambda error: error.code == "duplicate-tensor"):
        read_weights(write(tmp_path, both, ".safetensors"))


def test_an_averaged_model_of_torch_is_read_without_its_counter(tmp_path):
    content = {"n_averaged": torch.tensor(7), **with_prefix("module.")}
    assert read_weights(write(tmp_path, content, ".safetensors")).keys() == WEIGHTS.keys()


@pytest.mark.parametrize("suffix", [".pth", ".ckpt"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: {"state_dict": weights, "epoch": 3, "global_step": 7},
        lambda weights: {"model": weights, "optimizer": {"state": {"0": {"m": torch.ones(2, 2)}}, "param_groups": []}},
        lambda weights: {"module": weights, "optimizer_states": [], "rng_state": {"torch": torch.ones(9)}},
        lambda weights: {"checkpoint": {"model_state_dict": weights}, "lr_schedulers": {"a": torch.ones(2)}},
        lambda weights: {"state_dict": weights, "callbacks": {"EarlyStopping": {"best_score": torch.tensor(1.0)}}},
        lambda weights: {"ema": weights, "step": 3},
    ],
)
def test_a_training_checkpoint_with_one_set_of_weights_is_unwrapped(tmp_path, wrap, suffix):
    assert read_weights(write(tmp_path, wrap(with_prefix("model.")), suffix)).keys() == WEIGHTS.keys()


@pytest.mark.parametrize(
    ("content", "suffix", "names"),
    [
        ({"state_dict": with_prefix("", 1), "ema_dict": with_prefix("", 2)}, ".pth", ("state_dict", "ema_dict")),
        ({"model": with_prefix("module.", 1), "ema": {"module": with_prefix("", 2), "t": 1}}, ".pth", ("model", "ema")),
        (with_prefix("model.", 1) | with_prefix("model_ema.", 2), ".safetensors", ("weights", "model_ema")),
        (with_prefix("", 1) | with_prefix("ema.", 2), ".safetensors", ("weights", "ema")),
        ({"state_dict": with_prefix("model.", 1) | with_prefix("ema_model.", 2)}, ".pth", ("weights", "ema_model")),
    ],
)  # fmt: skip
def test_one_of_weights_and_their_moving_average_must_be_chosen_by_name(tmp_path, content, suffix, names):
    path = write(tmp_path, content, suffix)
    with pytest.raises(CheckpointError, check=lambda error: error.code == "ambiguous-weights") as caught:
        read_weights(path)
    assert all(name in caught.value.got for name in names)
    assert caught.value.fix.startswith("choose one")
    for name, value in zip(names, (1, 2), strict=True):
        assert read_wan_transformer(str(path), name)["patch_embedding.weight"].max() == value
    with pytest.raises(CheckpointError, check=lambda error: error.code == "missing-weights"):
        read_weights(path / "other")  # FILE/NAME chooses a set of weights
    assert choose_lossless_dtype(path / names[0]) == "float32"
    assert read_metadata(path / names[0]) == {}


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.float8_e4m3fn, torch.complex64]
)
def test_weights_of_other_dtypes_are_not_taken_as_floats(tmp_path, dtype):
    path = write(tmp_path, {"a.weight": torch.ones(2, 2).to(dtype)}, ".safetensors")
    with pytest.raises(CheckpointError, check=lambda error: error.code == "unsupported-dtype"):
        read_weights(path)


def test_json_that_is_a_pipe_a_device_or_too_deep_or_large_is_rejected_at_once(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    (tmp_path / "deep.json").write_text('{"a":' + "[" * 100_000 + "]" * 100_000 + "}")
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(2**40)
    for name in ("pipe", "zero", "deep", "large", "missing"):
        with pytest.raises(CheckpointError, check=lambda error: error.code == "unreadable-file"):
            read_json(tmp_path / f"{name}.json")
