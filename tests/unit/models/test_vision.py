"""Vision features: computed once they serve many readings, and no gradient reaches the tower."""

import numpy as np
import pytest
import torch

from kiwi.errors import InputError
from kiwi.models.new_qwen import NewQwen
from kiwi.models.tuning import Frozen, Lora
from kiwi.models.vision import Vision

SIZES = [(4, 32, 48), (2, 64, 64), (1, 48, 96)]


def build(generation, tuning):
    torch.manual_seed(0)
    encoder = NewQwen(generation=generation, hidden_size=32, tuning=tuning).build().eval()
    for name, parameter in encoder.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.15)
    return encoder


@pytest.fixture(params=["2.5", "3"])
def generation(request):
    return request.param


@pytest.fixture(params=[Frozen(), Lora(rank=2)], ids=["frozen", "lora"])
def encoder(request, generation):
    return build(generation, request.param)


def samples():
    rng = np.random.default_rng(0)
    sources = [rng.integers(0, 256, (*size, 3), np.uint8) for size in SIZES]
    pictures = [[rng.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(n)] for n in (1, 2, 1)]
    return sources, ["Use it.", "Use both of them.", "Use."], pictures


def prompt_of(encoder, rows=slice(None)):
    sources, words, pictures = samples()
    return encoder.prompter(sources[rows], words[rows], pictures[rows], "reference", 3)


def test_features_computed_before_give_the_states_and_gradients_of_those_computed_on_the_way(encoder):
    prompt, queries = prompt_of(encoder), torch.randn(3, 32, requires_grad=True)
    results = []
    for vision in (None, encoder.see(prompt)):
        states = encoder(prompt, queries, (0, 1, -1), vision)
        (gradient,) = torch.autograd.grad(states[-1][prompt.queries_BS].pow(3).sum(), queries)
        results.append((states, gradient))
    (states, gradient), (again, same) = results
    real = prompt.attention_mask_BS.bool()
    assert all(torch.equal(states[layer][real], again[layer][real]) for layer in states)
    assert torch.equal(gradient, same)
    assert gradient.abs().max() > 1e-3


def test_the_tower_is_not_run_for_features_that_are_given(encoder):
    prompt, queries = prompt_of(encoder), torch.randn(3, 32)
    vision = encoder.see(prompt)
    states = encoder(prompt, queries, (-1,))[-1]
    del encoder.model.visual
    assert torch.equal(encoder(prompt, queries, (-1,), vision)[-1], states)
    # They are really read: other features, other states.
    other = Vision(tuple(x + 1 for x in vision.images), vision.videos)
    assert (encoder(prompt, queries, (-1,), other)[-1] - states)[prompt.queries_BS].abs().max() > 1e-2


def test_features_are_a_tensor_of_its_own_for_every_picture_and_go_together_again(encoder):
    prompt = prompt_of(encoder)
    vision = encoder.see(prompt)
    levels = 1 if encoder.config.model_type == "qwen2_5_vl" else 2
    assert (len(vision.images), len(vision.videos)) == (5, 2)
    parts = vision.split()
    assert [len(part.images) + len(part.videos) for part in parts] == [1] * 7
    for one in (*vision.images, *vision.videos):
        assert one.shape[::2] == (levels, 32)
        assert one.untyped_storage().nbytes() == one.numel() * one.element_size()
    again = Vision.join(parts)
    assert all(torch.equal(a, b) for a, b in zip(again.images, vision.images, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(again.videos, vision.videos, strict=True))


def test_samples_seen_alone_are_joined_to_what_their_batch_would_see(encoder):
    prompt, queries = prompt_of(encoder), torch.randn(3, 32)
    alone = [encoder.see(prompt_of(encoder, slice(row, row + 1))) for row in range(3)]
    real = prompt.attention_mask_BS.bool()
    with torch.no_grad():
        found = encoder(prompt, queries, (-1,), Vision.join(alone))[-1][real]
        torch.testing.assert_close(found, encoder(prompt, queries, (-1,))[-1][real], atol=1e-5, rtol=1e-5)


def test_no_gradient_reaches_the_tower_even_if_its_weights_ask_for_one(encoder):
    """Language adapters learn all the same."""
    encoder.model.visual.requires_grad_(True)
    prompt = prompt_of(encoder)
    assert not any(x.requires_grad for part in encoder.see(prompt) for x in part)
    states = encoder(prompt, torch.randn(3, 32, requires_grad=True), (-1,))[-1]
    states[prompt.queries_BS].pow(3).sum().backward()
    assert all(p.grad is None for p in encoder.model.visual.parameters())
    language = [p for p in encoder.model.language_model.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in language)


def test_features_of_another_prompt_are_refused(encoder):
    prompt = prompt_of(encoder)
    vision = encoder.see(prompt)
    with pytest.raises(InputError, match="not those of this prompt"):
        encoder(prompt, torch.randn(3, 32), (-1,), Vision(vision.images[:-1], vision.videos))
