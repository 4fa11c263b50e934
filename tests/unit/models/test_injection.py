import pytest
import torch
import torch.nn.functional as F

from kiwi.models.dit.transformer import DiTConfig, PatchEmbedding
from kiwi.models.injection import (
    AddSource,
    AppendReference,
    ChannelConcatSource,
    NoSource,
    PrependReference,
    SharedEmbeddingSource,
    TokenConcatSource,
)
from kiwi.models.scaling import ConstantScale, LearnableScale

DIT = DiTConfig(dim=48, ffn_dim=64, num_heads=2, num_layers=1, freq_dim=16, latent_channels=4)
SIGMA = torch.tensor([0.3, 0.9])


@pytest.fixture
def noisy():
    torch.manual_seed(0)
    embedding = PatchEmbedding(DIT)
    torch.nn.init.normal_(embedding.bias)
    return embedding, torch.randn(2, 4, 3, 4, 6), torch.randn(2, 4, 3, 4, 6)


def test_channel_concatenation_is_one_convolution_over_both(noisy):
    embedding, latents, source = noisy
    module = ChannelConcatSource(init="xavier").build(DIT)
    joined = module.add_condition(embedding(latents), module.embed(source, embedding), SIGMA)
    weight = torch.cat((embedding.weight, module.patch_embedding.weight), dim=1)
    expected = F.conv3d(torch.cat((latents, source), dim=1), weight, embedding.bias, stride=(1, 2, 2))
    assert torch.allclose(joined, expected.flatten(2).transpose(1, 2), atol=1e-5)
    assert not hasattr(module.patch_embedding.bias, "shape")


def test_a_shared_embedding_has_no_weights_and_embeds_like_the_dit(noisy):
    embedding, latents, source = noisy
    module = SharedEmbeddingSource().build(DIT)
    assert not list(module.parameters())
    joined = module.add_condition(embedding(latents), module.embed(source, embedding), SIGMA)
    assert torch.allclose(joined, embedding(latents) + SIGMA[:, None, None] * embedding(source), atol=1e-6)


def test_the_scale_multiplies_weight_and_bias_of_the_added_tokens(noisy):
    embedding, latents, source = noisy
    for scale, gamma in ((ConstantScale(value=0.5), torch.tensor([0.5, 0.5])), (AddSource().scale, SIGMA)):
        module = AddSource(scale=scale).build(DIT)
        torch.nn.init.normal_(module.patch_embedding.weight)
        torch.nn.init.normal_(module.patch_embedding.bias)
        joined = module.add_condition(embedding(latents), module.embed(source, embedding), SIGMA)
        added = gamma[:, None, None] * module.patch_embedding(source)
        assert torch.allclose(joined, embedding(latents) + added, atol=1e-5)


def test_the_scaled_source_is_added_in_float32_whatever_the_tokens_dtype(noisy):
    embedding, latents, source = noisy
    module = AddSource().build(DIT)
    torch.nn.init.normal_(module.patch_embedding.weight)
    tokens, condition = embedding(latents).bfloat16(), module.embed(source, embedding).bfloat16()
    expected = (tokens.float() + SIGMA[:, None, None] * condition.float()).bfloat16()
    assert torch.equal(module.add_condition(tokens, condition, SIGMA), expected)
    # A float64 noise level must not make the sum float64: training and sampling add the same tokens.
    assert module.add_condition(tokens.float(), condition, SIGMA.double()).dtype == torch.float32
    scaled = AddSource(scale=LearnableScale()).build(DIT)
    assert torch.equal(
        scaled.add_condition(tokens, condition, SIGMA.bfloat16()),
        scaled.add_condition(tokens, condition, SIGMA.bfloat16().float()),
    )


@pytest.mark.parametrize("spec", [AppendReference(), PrependReference()])
def test_added_tokens_have_the_dtype_of_the_sequence(noisy, spec):
    embedding, latents, source = noisy
    module = spec.build(DIT)
    joined = module.add_condition(embedding(latents).bfloat16(), module.embed(source, embedding), SIGMA)
    assert joined.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("spec", "start"), [(TokenConcatSource(), 18), (AppendReference(), 18), (PrependReference(), 0)]
)
def test_concatenated_tokens_are_before_or_after_the_videos_and_removed_again(noisy, spec, start):
    embedding, latents, source = noisy
    module = spec.build(DIT)
    torch.nn.init.normal_(module.patch_embedding.weight)
    condition = module.embed(source, embedding)
    joined = module.add_condition(embedding(latents), condition, SIGMA)
    assert joined.shape[1] == 18 + module.num_added_tokens(condition) == 36
    assert torch.equal(joined[:, start : start + 18], condition)
    assert torch.equal(module.remove_added_tokens(joined, condition), embedding(latents))


def test_a_disabled_source_leaves_the_sequence_unchanged(noisy):
    embedding, latents, source = noisy
    module, tokens = NoSource().build(DIT), embedding(latents)
    condition = module.embed(source, embedding)
    assert module.add_condition(tokens, condition, SIGMA) is tokens
    assert module.remove_added_tokens(tokens, condition) is tokens
    assert module.num_added_tokens(condition) == 0
    assert not list(module.parameters())
