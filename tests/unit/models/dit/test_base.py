import pytest
import torch
from safetensors.torch import load_file, save_file

from kiwi.errors import CheckpointError
from kiwi.models.dit.base import WanBase, read_wan_transformer
from kiwi.models.dit.transformer import DiTConfig
from kiwi.models.tuning import Lora
from kiwi.weights.adapters import is_adapter
from kiwi.weights.names import dit_to_diffusers

SMALL = DiTConfig(dim=48, ffn_dim=64, num_heads=2, num_layers=2, freq_dim=16, latent_channels=4)


@pytest.fixture
def wan(tmp_path):
    """A Wan transformer's weights, text embedding included, under the original and under diffusers' names."""
    torch.manual_seed(4)
    state = {name: torch.randn_like(tensor) for name, tensor in SMALL.build().state_dict().items()}
    text = {"text_embedding.0.weight": torch.randn(48, 20), "text_embedding.0.bias": torch.randn(48)}
    for folder, rename in (("original", str), ("transformer", dit_to_diffusers)):
        (tmp_path / folder).mkdir()
        named = {rename(name): tensor for name, tensor in (state | text).items()}
        save_file(named, tmp_path / folder / "diffusion_pytorch_model.safetensors")
    return tmp_path, state


@pytest.mark.parametrize("folder", ["original", "transformer"])
def test_a_dit_starts_from_the_base_models_weights_under_original_and_diffusers_names(wan, folder):
    path, state = wan
    dit = SMALL.replace(base=WanBase(path=str(path), subfolder=folder)).build()
    assert all(torch.equal(dit.state_dict()[name], tensor) for name, tensor in state.items())
    assert all(parameter.requires_grad for parameter in dit.parameters())


def test_a_frozen_base_model_stays_in_bf16_beside_its_adapters(wan):
    path, state = wan
    base = WanBase(path=str(path), subfolder="original", dtype="bfloat16")
    dit = SMALL.replace(base=base, tuning=Lora(rank=2)).build()
    weights = dit.state_dict()
    assert torch.equal(weights["blocks.0.ffn.0.base_layer.weight"], state["blocks.0.ffn.0.weight"].bfloat16())
    assert {tensor.dtype for name, tensor in weights.items() if is_adapter(name)} == {torch.float32}
    assert dit.patch_embedding(torch.randn(1, 4, 1, 4, 4)).dtype == torch.bfloat16


def test_two_names_for_one_tensor_are_rejected(wan):
    path, state = wan
    file = path / "transformer/diffusion_pytorch_model.safetensors"
    save_file(load_file(file) | {"blocks.0.self_attn.q.weight": state["blocks.0.ffn.0.weight"]}, file)
    with pytest.raises(CheckpointError, match=r"under two names. Got: .*(attn1\.to_q|self_attn\.q)\.weight and"):
        read_wan_transformer(str(path), "transformer")


def test_a_base_model_of_another_size_or_architecture_is_rejected(wan, tmp_path):
    path, _ = wan
    base = WanBase(path=str(path), subfolder="original")
    with pytest.raises(
        CheckpointError, match=r"Wan base model.*with the wrong shape.*blocks\.0\.ffn\.0\.bias is \(64,\)"
    ):
        SMALL.replace(base=base, ffn_dim=96).build()
    save_file({"encoder.conv1.weight": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, check=lambda error: error.code == "not-a-wan-transformer"):
        SMALL.replace(base=WanBase(path=str(tmp_path / "other.safetensors"))).build()
    with pytest.raises(CheckpointError, check=lambda error: error.code == "missing-model"):
        SMALL.replace(base=WanBase(path=str(tmp_path / "nothing"))).build()
