"""Both forward passes agree, and the prefix cache is used where it is exact."""

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


def prompt_of(encoder, task, queries=4):
    sources, references = BATCHES[task]
    prompt = encoder.prompter(sources, WORDS, references, task, queries)
    assert len(prompt.attention_mask_BS.sum(dim=1).unique()) == 3
    return prompt


def run(forward, encoder, prompt, queries, layers=LAYERS):
    embedded = encoder.embed(prompt, encoder.vision_features(prompt), queries)
    return forward(encoder.model.language_model, embedded, layers)


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("task", BATCHES)
def test_both_passes_give_the_same_states_at_every_layer(encoder, task, trainable):
    prompt = prompt_of(encoder, task)
    real = prompt.attention_mask_BS.bool()
    queries = torch.randn(4, 32, requires_grad=trainable)
    full = run(full_forward, encoder, prompt, queries)
    cached = encoder(prompt, queries, LAYERS)
    assert full.keys() == cached.keys() == set(LAYERS)
    for layer in LAYERS:
        assert cached[layer].shape == full[layer].shape
        assert cached[layer].requires_grad == trainable
        assert full[layer][real].std() > 0.1
        torch.testing.assert_close(cached[layer][real], full[layer][real], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("task", BATCHES)
def test_both_passes_give_queries_and_connectors_the_same_gradients(encoder, task):
    prompt = prompt_of(encoder, task)
    query = QueryConnector(image=4, video=4, reference=4, layers=(-1, 1), readout="tail").build(32, 24)
    latent = LatentConnector(layers=(-1, 2)).build(32, 24)
    modules = torch.nn.ModuleList([query, latent])
    torch.manual_seed(1)
    for parameter in modules.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    gradients = []
    for forward in (full_forward, prefix_cached_forward):
        modules.zero_grad()
        states = run(forward, encoder, prompt, query.queries_for(task), query.layers + latent.layers)
        context = join_contexts(latent(states, prompt), query(states, prompt))
        context.tokens_BND.square().mean().backward()
        gradients.append({name: p.grad for name, p in modules.named_parameters() if p.grad is not None})
    full, cached = gradients
    assert cached.keys() == full.keys()
    assert cached[f"0.queries.{task}"].abs().max() > 1e-3
    for name, gradient in full.items():
        torch.testing.assert_close(cached[name], gradient, atol=1e-5, rtol=1e-5)


def record_lengths(encoder):
    """Record the sequence length of each language layer's input, with (True) and without gradients."""
    lengths = {True: [], False: []}
    handles = [
        layer.register_forward_pre_hook(lambda _, args: lengths[torch.is_grad_enabled()].append(args[0].shape[1]))
        for layer in encoder.model.language_model.layers
    ]
    return lengths, handles


def test_only_queries_and_the_tokens_after_them_are_differentiated(encoder):
    prompt = prompt_of(encoder, "reference")
    closing = len(encoder.prompter.template["reference"].split("{queries}")[1].removeprefix("<|im_end|>")) + 1
    lengths, handles = record_lengths(encoder)
    try:
        encoder(prompt, torch.randn(4, 32, requires_grad=True), (-1,))
    finally:
        for handle in handles:
            handle.remove()
    suffix = 4 + closing
    assert lengths[True] == [suffix] * 3
    assert lengths[False] == [prompt.input_ids_BS.shape[1] - suffix] * 3


def test_a_prompt_without_queries_can_be_run(encoder):
    prompt = prompt_of(encoder, "reference", 0)
    queries = NoConnector().build(32, 24).queries_for("reference")
    real = prompt.attention_mask_BS.bool()
    passes = (full_forward, prefix_cached_forward)
    full, cached = (run(forward, encoder, prompt, queries)[-1][real] for forward in passes)
    torch.testing.assert_close(cached, full, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tuning", [Lora(rank=2), Full()])
def test_trainable_weights_need_the_full_pass_until_they_are_frozen(tuning):
    encoder = build("2.5", tuning=tuning)
    assert encoder.language_model_forward is full_forward
    prompt = prompt_of(encoder, "video")
    full = encoder(prompt, torch.zeros(4, 32), (-1,))[-1]
    full[prompt.queries_BS].pow(3).mean().backward()
    trainable = [p for p in encoder.parameters() if p.requires_grad]
    assert sum(p.grad is not None and bool(p.grad.any()) for p in trainable) > 0.9 * len(trainable)
    encoder.requires_grad_(False)
    assert encoder.language_model_forward is prefix_cached_forward
    cached = encoder(prompt, torch.zeros(4, 32), (-1,))[-1]
    torch.testing.assert_close(cached[prompt.queries_BS], full[prompt.queries_BS], atol=1e-5, rtol=1e-5)


def test_an_mllm_that_is_not_trained_uses_the_prefix_cache(tiny_config):
    assert KiwiEdit(tiny_config).mllm.language_model_forward is prefix_cached_forward
    adapted = tiny_config.replace(mllm=tiny_config.mllm.replace(tuning=Lora(rank=2)))
    assert LitKiwi(adapted).editor.mllm.language_model_forward is full_forward
    assert LitKiwi(adapted, train_parts=("dit", "query")).editor.mllm.language_model_forward is prefix_cached_forward
