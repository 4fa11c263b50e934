"""The two ways of reading agree; the one that costs less is taken where it is exact."""

import numpy as np
import pytest
import torch

from kiwi.models.connectors import LatentConnector, NoConnector, QueryConnector, join_contexts
from kiwi.models.kiwi import KiwiEdit
from kiwi.models.mllm.new_qwen import NewQwen
from kiwi.models.mllm.prefix_cache import full_forward, prefix_cached_forward
from kiwi.models.mllm.vision_input import VisionLimits
from kiwi.models.tuning import Full, Lora
from kiwi.training.modules.editor import LitKiwi

LIMITS = VisionLimits(
    max_frames=6, max_pixels_per_frame=224 * 448, min_pixels_per_frame=28 * 28, max_reference_tokens=16
)
LAYERS = (0, 1, 2, -2, -1)


def build(generation, **changes):
    torch.manual_seed(0)
    encoder = NewQwen(generation=generation, hidden_size=32, layers=3, limits=LIMITS, **changes).build().eval()
    for name, parameter in encoder.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.15)
    return encoder


@pytest.fixture(params=["2.5", "3"], scope="module")
def encoder(request):
    return build(request.param)


def clip(frames, height, width, seed):
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), np.uint8)


WORDS = ["Short.", "A longer instruction, so that the others are padded.", "The third."]
BATCHES = {
    "reference": (
        [clip(4, 56, 96, 0), clip(6, 64, 168, 1), clip(1, 64, 64, 2)],
        [(clip(1, 64, 64, 3)[0],), (clip(1, 90, 60, 4)[0], clip(1, 32, 64, 5)[0]), (clip(1, 64, 96, 6)[0],)],
    ),
    "video": ([clip(5, 64, 168, 7), clip(2, 64, 64, 8), clip(5, 96, 64, 9)], [(), (), ()]),
    "image": ([clip(1, 64, 96, 10), clip(1, 64, 64, 11), clip(1, 128, 64, 12)], [(), (), ()]),
}


def prompt_of(encoder, mode, queries=4):
    sources, pictures = BATCHES[mode]
    prompt = encoder.prompter(sources, WORDS, pictures, mode, queries)
    assert len(prompt.attention_mask_BS.sum(dim=1).unique()) == 3
    return prompt


def read(encoder, reading, prompt, queries, layers=LAYERS):
    return reading(
        encoder.model.language_model, encoder.embed(prompt, encoder.vision_features(prompt), queries), layers
    )


@pytest.mark.parametrize("learning", [True, False])
@pytest.mark.parametrize("mode", BATCHES)
def test_both_ways_give_the_same_states_at_every_layer(encoder, mode, learning):
    prompt = prompt_of(encoder, mode)
    real = prompt.attention_mask_BS.bool()
    queries = torch.randn(4, 32, requires_grad=learning)
    whole = read(encoder, full_forward, prompt, queries)
    found = encoder(prompt, queries, LAYERS)
    assert whole.keys() == found.keys() == set(LAYERS)
    for layer in LAYERS:
        assert found[layer].shape == whole[layer].shape
        assert found[layer].requires_grad == learning
        assert whole[layer][real].std() > 0.1
        torch.testing.assert_close(found[layer][real], whole[layer][real], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", BATCHES)
def test_both_ways_give_queries_and_connectors_the_same_gradients(encoder, mode):
    prompt = prompt_of(encoder, mode)
    query = QueryConnector(image=4, video=4, reference=4, layers=(-1, 1), readout="tail").build(32, 24)
    latent = LatentConnector(layers=(-1, 2)).build(32, 24)
    modules = torch.nn.ModuleList([query, latent])
    torch.manual_seed(1)
    for parameter in modules.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    gradients = []
    for reading in (full_forward, prefix_cached_forward):
        modules.zero_grad()
        states = read(encoder, reading, prompt, query.table(mode), query.layers + latent.layers)
        context = join_contexts(latent(states, prompt), query(states, prompt))
        context.tokens_BND.square().mean().backward()
        gradients.append({name: p.grad for name, p in modules.named_parameters() if p.grad is not None})
    whole, found = gradients
    assert found.keys() == whole.keys()
    assert found[f"0.queries.{mode}"].abs().max() > 1e-3
    for name, gradient in whole.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-5)


def graph_of(encoder):
    """Sequence lengths that each language layer sees, with and without gradients."""
    seen = {True: [], False: []}
    handles = [
        layer.register_forward_pre_hook(lambda _, args: seen[torch.is_grad_enabled()].append(args[0].shape[1]))
        for layer in encoder.model.language_model.layers
    ]
    return seen, handles


def test_only_queries_and_what_follows_them_are_differentiated(encoder):
    prompt = prompt_of(encoder, "reference")
    closing = len(encoder.prompter.template["reference"].split("{queries}")[1].removeprefix("<|im_end|>")) + 1
    seen, handles = graph_of(encoder)
    try:
        encoder(prompt, torch.randn(4, 32, requires_grad=True), (-1,))
    finally:
        for handle in handles:
            handle.remove()
    suffix = 4 + closing
    assert seen[True] == [suffix] * 3
    assert seen[False] == [prompt.input_ids_BS.shape[1] - suffix] * 3


def test_a_prompt_without_queries_is_read_too(encoder):
    prompt = prompt_of(encoder, "reference", 0)
    queries = NoConnector().build(32, 24).table("reference")
    real = prompt.attention_mask_BS.bool()
    whole, found = (read(encoder, way, prompt, queries)[-1][real] for way in (full_forward, prefix_cached_forward))
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tuning", [Lora(rank=2), Full()])
def test_weights_that_learn_are_read_whole_until_they_are_frozen(tuning):
    encoder = build("2.5", tuning=tuning)
    assert encoder.language_model_forward is full_forward
    prompt = prompt_of(encoder, "video")
    whole = encoder(prompt, torch.zeros(4, 32), (-1,))[-1]
    whole[prompt.queries_BS].pow(3).mean().backward()
    learning = [p for p in encoder.parameters() if p.requires_grad]
    assert sum(p.grad is not None and bool(p.grad.any()) for p in learning) > 0.9 * len(learning)
    encoder.requires_grad_(False)
    assert encoder.language_model_forward is prefix_cached_forward
    found = encoder(prompt, torch.zeros(4, 32), (-1,))[-1]
    torch.testing.assert_close(found[prompt.queries_BS], whole[prompt.queries_BS], atol=1e-5, rtol=1e-5)


def test_an_mllm_that_a_run_does_not_train_is_differentiated_in_the_queries_only(tiny_config):
    assert KiwiEdit(tiny_config).mllm.language_model_forward is prefix_cached_forward
    adapted = tiny_config.replace(mllm=tiny_config.mllm.replace(tuning=Lora(rank=2)))
    assert LitKiwi(adapted).editor.mllm.language_model_forward is full_forward
    assert LitKiwi(adapted, train_parts=("dit", "query")).editor.mllm.language_model_forward is prefix_cached_forward
