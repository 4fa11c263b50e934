"""kiwi's DiT against diffusers' WanTransformer3DModel, with the same random weights."""

import pytest
import torch
from diffusers import WanTransformer3DModel

from kiwi.models.dit.attention import compute_rope
from kiwi.models.dit.transformer import DiTConfig
from kiwi.weights.names import TEXT_EMBEDDING, dit_from_diffusers, dit_to_diffusers
from kiwi.weights.strict import load_strict


@pytest.fixture(params=[(48, 2, 2, 4), (96, 4, 3, 6)], ids=["two blocks", "three blocks"])
def pair(request):
    dim, heads, layers, channels = request.param
    torch.manual_seed(5)
    diffusers_dit = WanTransformer3DModel(
        num_attention_heads=heads, attention_head_dim=dim // heads, in_channels=channels, out_channels=channels,
        text_dim=20, freq_dim=32, ffn_dim=64, num_layers=layers,
    ).eval()  # fmt: skip
    for parameter in diffusers_dit.parameters():
        torch.nn.init.normal_(parameter, std=0.1 if parameter.ndim > 1 else 0.5)
    kiwi_dit = DiTConfig(
        dim=dim, ffn_dim=64, num_heads=heads, num_layers=layers, freq_dim=32, latent_channels=channels
    ).build()
    state = {dit_from_diffusers(name): tensor for name, tensor in diffusers_dit.state_dict().items()}
    load_strict(kiwi_dit, {n: t for n, t in state.items() if not n.startswith(TEXT_EMBEDDING)}, "diffusers")
    return diffusers_dit, kiwi_dit.eval()


@pytest.mark.parametrize("timesteps", [(731.25,), (999.0, 3.5)])
def test_velocity_equals_diffusers(pair, timesteps):
    diffusers_dit, kiwi_dit = pair
    batch, channels = len(timesteps), kiwi_dit.config.latent_channels
    latents, text = torch.randn(batch, channels, 3, 4, 6), torch.randn(batch, 7, 20)
    timestep = torch.tensor(timesteps)
    with torch.no_grad():
        expected = diffusers_dit(latents, timestep, text).sample
        # kiwi's DiT has no text embedding: it gets the output of diffusers'.
        context = kiwi_dit.project_context(diffusers_dit.condition_embedder.text_embedder(text), None)
        rope = compute_rope(*kiwi_dit.patch_embedding.compute_grid(latents.shape[2:]), kiwi_dit.config.head_dim)
        tokens = kiwi_dit(kiwi_dit.patch_embedding(latents), kiwi_dit.embed_timestep(timestep), rope.float(), context)
        velocity = kiwi_dit.unpatchify(tokens, kiwi_dit.patch_embedding.compute_grid(latents.shape[2:]))
    assert expected.abs().max() > 0.1
    assert torch.allclose(velocity, expected, atol=2e-5), (velocity - expected).abs().max()


def test_names_are_converted_to_diffusers_and_back(pair):
    diffusers_dit, _ = pair
    names = set(diffusers_dit.state_dict())
    assert {dit_to_diffusers(dit_from_diffusers(name)) for name in names} == names
    # Only the names of the patch embedding are the same in both formats.
    assert not names & {dit_from_diffusers(name) for name in names if not name.startswith("patch_embedding")}
