"""Vision features: cached ones equal computed ones, and the vision tower gets no gradients."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from kiwi.encoded import IMAGE, VIDEO
from kiwi.errors import InputError
from kiwi.models.mllm.new_qwen import NewQwen
from kiwi.models.mllm.vision import PromptVisionFeatures
from kiwi.models.mllm.vision_input import VisionLimits
from kiwi.models.tuning import Frozen, Lora

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
    images = [[rng.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(n)] for n in (1, 2, 1)]
    return sources, ["Use it.", "Use both of them.", "Use."], images


def prompt_of(encoder, rows=slice(None), is_cached=lambda index: False):
    """The prompt of the samples. `is_cached` says by their number which images and videos are replaced by features."""
    sources, words, references = samples()
    preprocessor, index = encoder.preprocessor, itertools.count()
    for row, source in enumerate(sources):
        if is_cached(next(index)):
            sources[row] = encoder.encode_image(preprocessor.prepare_source(source))
        for column, image in enumerate(references[row]):
            if is_cached(next(index)):
                references[row][column] = encoder.encode_image(preprocessor.prepare_reference(image))
    return encoder.prompter(sources[rows], words[rows], references[rows], "reference", 3)


@pytest.mark.parametrize("is_cached", [lambda index: True, lambda index: index % 2, lambda index: index % 3 == 0])
def test_cached_features_give_the_same_states_and_gradients_as_computed_ones(encoder, is_cached):
    queries = torch.randn(3, 32, requires_grad=True)
    results = []
    for prompt in (prompt_of(encoder), prompt_of(encoder, is_cached=is_cached)):
        states = encoder(prompt, queries, (0, 1, -1))
        (gradient,) = torch.autograd.grad(states[-1][prompt.queries_BS].pow(3).sum(), queries)
        results.append((prompt, states, gradient))
    (prompt, states, gradient), (cached, cached_states, cached_gradient) = results
    for name in ("input_ids_BS", "token_types_BS", "references_BS", "image_grid_thw", "video_grid_thw"):
        assert torch.equal(getattr(prompt, name), getattr(cached, name))
    assert torch.equal(encoder.compute_position_ids(prompt), encoder.compute_position_ids(cached))
    real = prompt.attention_mask_BS.bool()
    for layer in states:
        torch.testing.assert_close(states[layer][real], cached_states[layer][real], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient, cached_gradient, atol=1e-5, rtol=1e-4)
    assert gradient.abs().max() > 1e-3


def test_the_tower_is_not_run_for_cached_features(encoder):
    plain, queries = prompt_of(encoder), torch.randn(3, 32)
    prompt = prompt_of(encoder, is_cached=lambda index: True).to("cpu")
    assert prompt.pixel_values is prompt.pixel_values_videos is None
    states = encoder(plain, queries, (-1,))[-1]
    encoder.model.visual.forward = None
    real = prompt.attention_mask_BS.bool()
    torch.testing.assert_close(encoder(prompt, queries, (-1,))[-1][real], states[real], atol=1e-5, rtol=1e-5)
    # The cached features are used: different features give different states.
    changed = dataclasses.replace(
        prompt, cached_image_features=tuple(features + 1 for features in prompt.cached_image_features)
    )
    assert (encoder(changed, queries, (-1,))[-1] - states)[prompt.queries_BS].abs().max() > 1e-2


def test_the_features_of_each_image_have_their_own_memory(encoder):
    levels = 1 if encoder.config.model_type == "qwen2_5_vl" else 2
    sources, _, references = samples()
    preprocessor = encoder.preprocessor
    inputs = [preprocessor.prepare_source(s) for s in sources]
    inputs += [preprocessor.prepare_reference(r) for r in references[1]]
    assert [vision_input.kind for vision_input in inputs] == [VIDEO, VIDEO, IMAGE, IMAGE, IMAGE]
    for vision_input in inputs:
        encoded = encoder.encode_image(vision_input)
        assert (encoded.kind, encoded.size) == (vision_input.kind, vision_input.frames.shape[:3])
        assert encoded.features_LNM.shape == (levels, preprocessor.num_tokens(encoded.size), 32)
    vision = encoder.vision_features(prompt_of(encoder))
    for features in (*vision.images, *vision.videos):
        assert features.untyped_storage().nbytes() == features.numel() * features.element_size()


def test_a_video_of_which_one_frame_is_sampled_stays_a_video():
    """With max_frames 1 its size alone does not distinguish it from an image."""
    limits = VisionLimits(max_frames=1, max_pixels_per_frame=84 * 84, min_pixels_per_frame=28 * 28)
    encoder = NewQwen(hidden_size=32, limits=limits).build().eval()
    (video, _, _), words, _ = samples()
    encoded = encoder.encode_image(encoder.preprocessor.prepare_source(video))
    assert (encoded.kind, encoded.size[0]) == (VIDEO, 1)
    plain, cached = (encoder.prompter([source], words[:1], [()], "video", 3) for source in (video, encoded))
    assert torch.equal(plain.input_ids_BS, cached.input_ids_BS)
    assert torch.equal(encoder.vision_features(plain).videos[0], encoder.vision_features(cached).videos[0])


def test_the_fingerprint_depends_on_everything_that_determines_the_features(generation):
    plain = build(generation, Frozen())
    wider = NewQwen(generation=generation, hidden_size=32, limits=VisionLimits()).build().eval()
    wider.load_state_dict(plain.state_dict())
    other = build(generation, Frozen())
    with torch.no_grad():
        next(other.model.visual.parameters()).add_(0.5)
    half = build(generation, Frozen())
    half.model.visual.bfloat16()
    form = build(generation, Frozen())
    form.config.vision_config.num_heads *= 2
    assert len({encoder.vision_fingerprint() for encoder in (plain, wider, other, half, form)}) == 5
    # It does not depend on the language model or its tuning.
    adapted = build(generation, Lora(rank=2))
    adapted.model.visual.load_state_dict(plain.model.visual.state_dict())
    assert adapted.vision_fingerprint() == plain.vision_fingerprint()


def test_the_tower_gets_no_gradients_even_if_its_weights_require_them(encoder):
    """Language adapters still get gradients."""
    encoder.model.visual.requires_grad_(True)
    prompt = prompt_of(encoder)
    assert not any(x.requires_grad for part in encoder.vision_features(prompt) for x in part)
    states = encoder(prompt, torch.randn(3, 32, requires_grad=True), (-1,))[-1]
    states[prompt.queries_BS].pow(3).sum().backward()
    assert all(p.grad is None for p in encoder.model.visual.parameters())
    language = [p for p in encoder.model.language_model.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in language)


def test_features_of_another_prompt_are_rejected(encoder):
    prompt, queries = prompt_of(encoder), torch.randn(3, 32)
    vision = encoder.vision_features(prompt)
    with pytest.raises(InputError, check=lambda error: error.code == "mismatched-vision-features"):
        encoder.embed(prompt, PromptVisionFeatures(vision.images[:-1], vision.videos), queries)
