"""kiwi's DiT against diffusers' WanTransformer3DModel, with the same random weights."""

import pytest
import torch
from diffusers import WanTransformer3DModel

from kiwi.models.dit.rope import rope_table
from kiwi.models.dit.transformer import DiTConfig
from kiwi.weights.names import TEXT_EMBEDDING, dit_from_diffusers, dit_to_diffusers
from kiwi.weights.strict import load_strict


@pytest.fixture(params=[(48, 2, 2, 4), (96, 4, 3, 6)], ids=["two blocks", "three blocks"])
def pair(request):
    dim, heads, layers, channels = request.param
    torch.manual_seed(5)
    theirs = WanTransformer3DModel(
        num_attention_heads=heads, attention_head_dim=dim // heads, in_channels=channels, out_channels=channels,
        text_dim=20, freq_dim=32, ffn_dim=64, num_layers=layers,
    ).eval()  # fmt: skip
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.1 if parameter.ndim > 1 else 0.5)
    ours = DiTConfig(
        dim=dim, ffn_dim=64, num_heads=heads, num_layers=layers, freq_dim=32, latent_channels=channels
    ).build()
    state = {dit_from_diffusers(name): tensor for name, tensor in theirs.state_dict().items()}
    load_strict(ours, {n: t for n, t in state.items() if not n.startswith(TEXT_EMBEDDING)}, "diffusers")
    return theirs, ours.eval()


@pytest.mark.parametrize("timesteps", [(731.25,), (999.0, 3.5)])
def test_velocity_equals_diffusers(pair, timesteps):
    theirs, ours = pair
    batch, channels = len(timesteps), ours.config.latent_channels
    latents, text = torch.randn(batch, channels, 3, 4, 6), torch.randn(batch, 7, 20)
    timestep = torch.tensor(timesteps)
    with torch.no_grad():
        expected = theirs(latents, timestep, text).sample
        # kiwi's DiT has no text embedding: it gets the output of diffusers'.
        context = ours.project_context(theirs.condition_embedder.text_embedder(text), None)
        rope = rope_table(*ours.patch_embedding.grid(latents.shape[2:]), ours.config.head_dim)
        tokens = ours(ours.patch_embedding(latents), ours.embed_timestep(timestep), rope.float(), context)
        velocity = ours.unpatchify(tokens, ours.patch_embedding.grid(latents.shape[2:]))
    assert expected.abs().max() > 0.1
    assert torch.allclose(velocity, expected, atol=2e-5), (velocity - expected).abs().max()


def test_names_are_converted_to_diffusers_and_back(pair):
    theirs, _ = pair
    names = set(theirs.state_dict())
    assert {dit_to_diffusers(dit_from_diffusers(name)) for name in names} == names
    assert not names & {dit_from_diffusers(name) for name in names if not name.startswith("patch_embedding")}
