"""The published diffusers folder: its layout, and folders that are rejected."""

import json
import shutil

import pytest
import torch

from kiwi.__main__ import main
from kiwi.checkpoints.diffusers_folder import import_diffusers
from kiwi.errors import CheckpointError
from kiwi.weights.files import read_weights


def test_the_diffusers_folder_has_the_published_layout(checkpoint, tmp_path):
    assert main(["convert", "kiwi-diffusers", f"{checkpoint}/m", f"{tmp_path}/d"]) == 0
    root = tmp_path / "d"
    index = json.loads((root / "model_index.json").read_text())
    assert index["transformer"] == ["diffusers", "WanTransformer3DModel"]
    assert all((root / part).is_dir() for part in index if not part.startswith("_"))
    assert read_weights(root / "transformer")["blocks.0.attn1.to_out.0.weight"].shape == (48, 48)
    assert read_weights(root / "source_embedder").keys() == {"patch_embedding.weight", "patch_embedding.bias"}
    assert json.loads((root / "ref_embedder/config.json").read_text())["ref_pad_first"] is False
    encoder = read_weights(root / "mllm_encoder/diffusion_pytorch_model.safetensors")
    assert {"image_queries", "ref_queries", "connector.0.weight", "ref_connector.2.bias"} <= encoder.keys()
    language = read_weights(root / "mllm_encoder/model.safetensors")
    layers = ("embed_tokens", "layers.0.self_attn.q_proj", "norm")
    assert {f"model.{layer}.weight" for layer in layers} <= language.keys()
    assert any(name.startswith("visual.blocks.0.") for name in language)
    assert "decoder.head.0.gamma" in read_weights(root / "vae")
    assert (root / "processor/qwen_config.json").is_file()
    assert (root / "processor/tokenizer.json").is_file()


def test_the_class_in_diffusers_loads_the_transformer(checkpoint, tmp_path):
    from diffusers import WanTransformer3DModel

    assert main(["convert", "kiwi-diffusers", f"{checkpoint}/m", f"{tmp_path}/d"]) == 0
    model, info = WanTransformer3DModel.from_pretrained(f"{tmp_path}/d/transformer", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    expected = read_weights(checkpoint / "m")["dit.blocks.1.cross_attn.k.weight"]
    assert torch.equal(model.blocks[1].attn2.to_k.weight, expected)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("ref_embedder", {"ref_pad_first": "false"}, "Got: 'false'. Expected: true or false"),
        ("transformer", {"num_attention_heads": "x"}, "dit.num_heads has the wrong type"),
        ("mllm_encoder", {"max_frames": "x"}, "mllm_encoder/config.json is invalid. Got: {'max_frames': 'x'}"),
        ("mllm_encoder", {"max_object_token": 0}, "max_reference_tokens must be at least 1"),
    ],
)
def test_invalid_settings_of_a_published_folder_are_rejected(checkpoint, tmp_path, capsys, part, change, message):
    assert main(["convert", "kiwi-diffusers", f"{checkpoint}/m", f"{tmp_path}/d"]) == 0
    path = tmp_path / "d" / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert main(["convert", "kiwi-diffusers", f"{tmp_path}/d", f"{tmp_path}/b"]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_number_of_blocks_that_differs_from_the_weights_is_rejected(checkpoint, tmp_path, capsys):
    assert main(["convert", "kiwi-diffusers", f"{checkpoint}/m", f"{tmp_path}/d"]) == 0
    config = tmp_path / "d/transformer/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_layers": 9}))
    assert main(["convert", "kiwi-diffusers", f"{tmp_path}/d", f"{tmp_path}/b"]) == 2
    assert "the number of blocks" in capsys.readouterr().err


def test_parts_listed_by_a_published_folder_must_exist(checkpoint, tmp_path, capsys):
    assert main(["convert", "kiwi-diffusers", f"{checkpoint}/m", f"{tmp_path}/d"]) == 0
    shutil.rmtree(tmp_path / "d/source_embedder")
    assert main(["convert", "kiwi-diffusers", f"{tmp_path}/d", f"{tmp_path}/b"]) == 2
    assert "no source_embedder" in capsys.readouterr().err


def test_reports_and_errors_do_not_name_the_temporary_folder(checkpoint, tmp_path, capsys):
    assert main(["convert", "kiwi-diffusers", f"{checkpoint}/m", f"{tmp_path}/d"]) == 0
    reports = []
    import_diffusers(f"{tmp_path}/d", {}, tmp_path / "a", lambda part, text: reports.append((part, text)))
    assert ("mllm", f"copied from {tmp_path}/d/mllm_encoder") in reports
    next((tmp_path / "d/mllm_encoder").glob("model*.safetensors")).write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=f"{tmp_path}/d/mllm_encoder"):
        import_diffusers(f"{tmp_path}/d", {}, tmp_path / "b", lambda part, text: None)
