"""kiwi's MLLM against models and processors of transformers, with the same random weights."""

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLProcessor, Qwen2VLVideoProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor
from transformers.video_utils import VideoMetadata

from kiwi.models.mllm.new_qwen import NewQwen
from kiwi.models.mllm.vision_input import VisionLimits

LIMITS = VisionLimits(
    max_frames=6, max_pixels_per_frame=224 * 448, min_pixels_per_frame=28 * 28, max_reference_tokens=16
)


@pytest.fixture(params=["2.5", "3"], scope="module")
def encoder(request):
    torch.manual_seed(0)
    encoder = NewQwen(generation=request.param, hidden_size=32, limits=LIMITS).build().eval()
    for name, parameter in encoder.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.15)
    return encoder


def clip(frames, height, width, seed):
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), np.uint8)


BATCHES = {
    "reference": (
        [clip(4, 56, 96, 0), clip(6, 64, 168, 1)],
        ["Short.", "A longer instruction, so that the other is padded."],
        [(clip(1, 64, 64, 2)[0],), (clip(1, 90, 60, 3)[0], clip(1, 32, 64, 4)[0])],
    ),
    "video": ([clip(5, 64, 168, 5), clip(5, 64, 168, 6)], ["One.", "The second one."], [(), ()]),
    "image": ([clip(1, 64, 96, 7), clip(1, 64, 64, 8)], ["One.", "The second one."], [(), ()]),
}


@pytest.mark.parametrize("task", BATCHES)
def test_a_padded_batch_has_the_hidden_states_of_each_sample_in_transformers(encoder, task):
    """If the queries equal the placeholder's embedding, kiwi's MLLM computes the same as the model of transformers."""
    sources, instructions, images = BATCHES[task]
    query = encoder.model.get_input_embeddings().weight[encoder.prompter.ids["query"]]
    batch = encoder.prompter(sources, instructions, images, task, 3)
    with torch.no_grad():
        states = encoder(batch, query.expand(3, -1), (1, -1))
        for row in range(2):
            single = encoder.prompter(*(part[row : row + 1] for part in (sources, instructions, images)), task, 3)
            expected = encoder.model(
                input_ids=single.input_ids_BS,
                mm_token_type_ids=single.token_types_BS,
                pixel_values=single.pixel_values,
                pixel_values_videos=single.pixel_values_videos,
                image_grid_thw=single.image_grid_thw,
                video_grid_thw=single.video_grid_thw,
                output_hidden_states=True,
            )
            length = single.input_ids_BS.shape[1]
            assert expected.last_hidden_state.std() > 0.1
            assert torch.allclose(states[-1][row, :length], expected.last_hidden_state[0], atol=1e-5)
            assert torch.allclose(states[1][row, :length], expected.hidden_states[1][0], atol=1e-5)


def transformers_processor(encoder):
    """Build the processor of transformers for the encoder's generation, with its tokenizer and settings."""
    prompter, settings = encoder.prompter, encoder.preprocessor.image_processor
    names = ("patch_size", "temporal_patch_size", "merge_size", "image_mean", "image_std")
    shared_settings = {name: getattr(settings, name) for name in names}
    is_qwen3 = encoder.config.model_type == "qwen3_vl"
    videos = (Qwen3VLVideoProcessor if is_qwen3 else Qwen2VLVideoProcessor)(
        **shared_settings, do_resize=False, do_sample_frames=False
    )
    return (Qwen3VLProcessor if is_qwen3 else Qwen2_5_VLProcessor)(settings, prompter.tokenizer, videos)


def test_images_and_videos_become_the_same_tokens_and_pixels_as_in_transformers(encoder):
    side = encoder.preprocessor.token_side * 2
    source, image = clip(4, side, 2 * side, 0), clip(1, side, side, 1)[0]
    prompt = encoder.prompter([source], ["Use it."], [(image,)], "reference", 2)
    is_qwen3 = encoder.config.model_type == "qwen3_vl"
    # The processor of Qwen3-VL writes the start and end tokens itself, because times precede each span.
    video = "<|video_pad|>" if is_qwen3 else "<|vision_start|><|video_pad|><|vision_end|>"
    text = encoder.prompter.template["reference"].format(
        source=video,
        instruction="Use it.",
        references="<|vision_start|><|image_pad|><|vision_end|>",
        queries="<|object_ref_start|>" * 2,
    )
    expected = transformers_processor(encoder)(
        text=[text],
        images=[image],
        videos=[torch.from_numpy(source).permute(0, 3, 1, 2)],
        video_metadata=[VideoMetadata(total_num_frames=4, fps=2.0, frames_indices=[0, 1, 2, 3])],
        images_kwargs={"do_resize": False},
        videos_kwargs={"do_resize": False, "do_sample_frames": False},
        return_tensors="pt",
    )
    assert torch.equal(prompt.input_ids_BS, expected["input_ids"])
    assert torch.equal(prompt.video_grid_thw, expected["video_grid_thw"])
    assert torch.equal(prompt.image_grid_thw, expected["image_grid_thw"])
    assert torch.allclose(prompt.pixel_values_videos, expected["pixel_values_videos"], atol=1e-6)
    assert torch.allclose(prompt.pixel_values, expected["pixel_values"], atol=1e-6)


def test_text_after_a_long_narrow_video_starts_after_its_largest_position():
    """Newer versions of transformers differ from the published models here, because time extends further than space."""
    prompter_limits = LIMITS.replace(max_pixels_per_frame=56 * 56)
    encoder = NewQwen(limits=prompter_limits).build()
    prompt = encoder.prompter([clip(6, 56, 56, 0)], ["x"], [()], "video", 2)
    positions = encoder.compute_position_ids(prompt)[:, 0]
    video = (prompt.token_types_BS[0] == 2).nonzero().flatten()
    start = int(positions[0, video[0]])
    assert positions[0, video].unique().tolist() == [start, start + 2, start + 4]
    assert positions[:, video[-1] + 1].tolist() == [start + 5] * 3
