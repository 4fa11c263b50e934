"""The golden cases of the multimodal LLM: hidden states, and preprocessing of images and videos."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel, Qwen2VLImageProcessor

from kiwi.checkpoints.published import from_published_state
from kiwi.encoded import VIDEO, TaskKind
from kiwi.media.resize import letterbox
from kiwi.models.connectors import LatentConnector, QueryConnector, join_contexts
from kiwi.models.mllm.encoder import MllmEncoder
from kiwi.models.mllm.new_qwen import NewQwen, make_byte_tokenizer
from kiwi.models.mllm.prompting import Prompt, gather_tokens, read_template
from kiwi.models.mllm.vision_input import VisionInput, VisionLimits
from kiwi.parity.golden import Case
from kiwi.weights.names import select_prefix
from kiwi.weights.strict import load_strict

SECONDS = ("0.0833", "0.999", "1.0", "2.5", "missing")
"""Durations of a temporal patch for which position ids are recorded; the published code casts them to int."""


def compute_mllm(case: Case) -> dict[str, Tensor]:
    """Compute embeddings, position ids, hidden states, query features and contexts of the three task kinds."""
    weights, sizes = from_published_state(case.group("weights/")), case.meta["config"]
    encoder = _build_encoder(case.meta)
    counts = sizes["num_queries"]
    spec = QueryConnector(image=counts["image"], video=counts["video"], reference=counts["ref"], readout="tail")
    query = spec.build(encoder.hidden_size, sizes["dit_dim"])
    latent = LatentConnector().build(encoder.hidden_size, sizes["dit_dim"])
    for part, module in (("mllm", encoder), ("query", query), ("latent", latent)):
        load_strict(module, select_prefix(weights, f"{part}."), case.name)
    out: dict[str, Tensor] = {}
    prompts = {kind: _build_prompt(case, kind) for kind in TaskKind}
    for kind, prompt in prompts.items():
        queries = query.queries_for(kind)
        states = encoder(prompt, queries, query.layers + latent.layers)
        vision = encoder.vision_features(prompt)
        out[f"{kind}/inputs_embeds"] = encoder.embed(prompt, vision, queries).embeds_BSM
        out[f"{kind}/position_ids"] = encoder.compute_position_ids(prompt)
        out[f"{kind}/hidden_states"] = states[-1]
        out[f"{kind}/query_features"] = gather_tokens(states[-1], prompt.tail_BS(len(queries)))[0]
        out[f"{kind}/context"] = join_contexts(latent(states, prompt), query(states, prompt)).tokens_BND
        name = "ref" if kind == "reference" else str(kind)
        out[f"vision_{name}"] = torch.cat(vision.videos if kind == "video" else vision.images, dim=1)[0]
        if kind == "reference":
            out["reference/ref_features"] = gather_tokens(states[-1], prompt.references_BS)[0]
    for seconds in SECONDS:
        whole_seconds = 1 if seconds == "missing" else int(float(seconds))
        positions = encoder.compute_position_ids(prompts[TaskKind.video], whole_seconds)
        out[f"position_ids_video_second_per_grid_{seconds}"] = positions
    return out


def compute_mllm_preprocess(case: Case) -> dict[str, Tensor]:
    """Compute patches and grids of an image and a video, a resized clip, and a letterboxed reference image."""
    pixels = case.meta["pixels"]
    preprocessor = NewQwen(limits=VisionLimits()).build().preprocessor
    image, video = _render_pattern(pixels["image"]), _render_pattern(pixels["video"])
    prepared_image = preprocessor.prepare_source(image)
    # The vector of this clip starts after resizing.
    clip = VisionInput(VIDEO, video)
    resized = preprocessor.resize_video(_render_pattern(pixels["resized_clip"]))
    samples = torch.from_numpy(resized).permute(0, 3, 1, 2).float().flatten()
    width, height = pixels["ref_padded"]["target_w_h"]
    return {
        "image_pixel_values": preprocessor.to_patches(prepared_image),
        "image_grid_thw": torch.tensor([preprocessor.patch_grid(prepared_image.size)]),
        "video_pixel_values": preprocessor.to_patches(clip),
        "video_grid_thw": torch.tensor([preprocessor.patch_grid(clip.size)]),
        "resized_clip_samples": samples[case.group("in/")["resized_clip_sample_index"]],
        "ref_padded_96x64": torch.from_numpy(letterbox(_render_pattern(pixels["ref_padded"])[0], height, width)),
    }


def _build_encoder(meta: dict[str, Any]) -> MllmEncoder:
    """Build an encoder with the sizes and the compact vocabulary in a case's NAME.json."""
    ids, text = meta["compact_special_ids"], dict(meta["config"]["text"])
    theta, sections = text.pop("rope_theta"), text.pop("mrope_section")
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": theta, "mrope_section": sections}
    config = Qwen2_5_VLConfig(
        text_config={**text, "vocab_size": max(ids.values()) + 1, "bos_token_id": None, "eos_token_id": None},
        vision_config=meta["config"]["vision"],
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
    )
    model, image_processor = Qwen2_5_VLModel(config).eval(), Qwen2VLImageProcessor()
    return MllmEncoder(model, make_byte_tokenizer(), image_processor, VisionLimits(), read_template())


def _build_prompt(case: Case, kind: TaskKind) -> Prompt:
    """Build the prompt from the recorded token sequence of a task kind."""
    inputs, special = case.group("in/"), case.meta["compact_special_ids"]
    ids = inputs[f"{kind}/input_ids_compact"]
    is_image, is_video = ids == special["image_pad"], ids == special["video_pad"]
    pixel_names = {"image": "pixel_values_image", "reference": "pixel_values_ref"}
    has_video = kind != "image"
    return Prompt(
        input_ids_BS=ids,
        attention_mask_BS=torch.ones_like(ids),
        queries_BS=ids == special["query_placeholder_object_ref_start"],
        references_BS=is_image & (kind == "reference"),
        token_types_BS=is_image.int() + 2 * is_video.int(),
        pixel_values=inputs[pixel_names[kind]] if kind in pixel_names else None,
        image_grid_thw=inputs.get(f"{kind}/image_grid_thw"),
        pixel_values_videos=inputs["pixel_values_videos"] if has_video else None,
        video_grid_thw=inputs[f"{kind}/video_grid_thw"] if has_video else None,
    )


def _render_pattern(spec: dict[str, int]) -> np.ndarray:
    """Render a test video: pixel(n, y, x, c) = (a y + b x + c_coef c + 31 n) mod 256."""
    n, y, x, c = np.meshgrid(
        np.arange(spec.get("frames", 1)), np.arange(spec["h"]), np.arange(spec["w"]), np.arange(3), indexing="ij"
    )
    return ((spec["a"] * y + spec["b"] * x + spec["c_coef"] * c + 31 * n) % 256).astype(np.uint8)
