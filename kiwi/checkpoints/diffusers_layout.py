"""Layout of the published diffusers folder: tensor names and config.json of each part.

All functions are pure; kiwi's tensor names begin with the part (`dit.`, `query.`, ...).
"""

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor

from kiwi.checkpoints.published import TEXT_DIM
from kiwi.errors import CheckpointError, SpecError
from kiwi.models.config import KiwiConfig
from kiwi.models.connectors import QueryConnector
from kiwi.models.injection import PrependReference
from kiwi.models.mllm.vision_input import VisionLimits
from kiwi.weights.files import State
from kiwi.weights.names import TEXT_EMBEDDING, dit_from_diffusers, dit_to_diffusers, rename, replace_prefix

VERSION = "0.32.0"
"""Version of diffusers that the published model_index.json records."""

PARTS = {
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "vae": ["wan_video_vae", "VAE"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "mllm_encoder": ["mllm_encoder", "MLLMEncoder"],
    "source_embedder": ["conditional_embedder", "ConditionalEmbedder"],
    "ref_embedder": ["conditional_embedder", "ConditionalEmbedder"],
    "processor": ["transformers", "AutoProcessor"],
}
"""Part -> module and class, as in the published model_index.json."""

EMBEDDERS = {"source_embedder": "source", "ref_embedder": "reference"}
_FROM_ENCODER = {
    "image_queries": "query.queries.image",
    "video_queries": "query.queries.video",
    "ref_queries": "query.queries.reference",
    "connector.": "query.connector.",
    "ref_connector.": "latent.connector.",
}
_TO_ENCODER = {kiwi_name: published for published, kiwi_name in _FROM_ENCODER.items()}


def from_diffusers_parts(parts: Mapping[str, State]) -> State:
    """Rename the tensors of all parts to kiwi's names, which must differ, and drop the unused text embedding."""
    tensors = {f"{part}/{name}": tensor for part, weights in parts.items() for name, tensor in weights.items()}
    state = rename(tensors, _from_diffusers, "the folder")
    return {name: tensor for name, tensor in state.items() if not name.startswith(f"dit.{TEXT_EMBEDDING}")}


def to_diffusers_parts(state: Mapping[str, Tensor]) -> dict[str, State]:
    """Rename kiwi's tensors (without adapters, with the text embedding) and group them by part; skip absent parts."""
    parts: dict[str, State] = {}
    embedders = {kiwi_name: part for part, kiwi_name in EMBEDDERS.items()}
    for name, tensor in state.items():
        kiwi_part, _, rest = name.partition(".")
        match kiwi_part:
            case "dit":
                part, rest = "transformer", dit_to_diffusers(rest)
            case "query" | "latent":
                part, rest = "mllm_encoder", replace_prefix(name, _TO_ENCODER)
            case _:
                part = embedders[kiwi_part]
        parts.setdefault(part, {})[rest] = tensor
    return parts


def to_hub_name(name: str) -> str:
    """Convert a tensor name of transformers' Qwen2_5_VLModel to the name in files on the hub."""
    return re.sub(r"^language_model\.", "model.", name)


def prepends_reference(embedder: Mapping[str, Any]) -> bool:
    """Whether reference tokens come before the video's, according to the config.json of `ref_embedder`."""
    prepends = embedder.get("ref_pad_first", False)
    if not isinstance(prepends, bool):
        message, expected = "'ref_pad_first' in ref_embedder/config.json is invalid", "true or false"
        raise CheckpointError(message, code="invalid-model-config", got=repr(prepends), expected=expected)
    return prepends


def read_vision_limits(encoder: Mapping[str, Any]) -> VisionLimits:
    """Read the limits on images and video from the config.json of `mllm_encoder`; missing ones get their defaults.

    Raises:
        CheckpointError: a limit is not an integer or is out of range.
    """
    keys = {field.name: field.name for field in fields(VisionLimits)} | {"max_reference_tokens": "max_object_token"}
    values = {name: encoder[key] for name, key in keys.items() if key in encoder}
    if invalid := {keys[name]: value for name, value in values.items() if type(value) is not int}:
        raise CheckpointError(
            "mllm_encoder/config.json is invalid", code="invalid-model-config", got=invalid, expected="integers"
        )
    try:
        return VisionLimits(**values)
    except SpecError as error:
        raise CheckpointError(f"mllm_encoder/config.json is invalid: {error}", code="invalid-model-config") from error


def make_encoder_config(config: KiwiConfig, mllm_dim: int) -> dict[str, Any]:
    """Build the config.json of `mllm_encoder`."""
    query, limits = config.query, config.mllm.limits
    assert isinstance(query, QueryConnector)
    content = {
        "_class_name": "MLLMEncoder",
        "_diffusers_version": VERSION,
        "mllm_model_path": ".",
        "dit_dim": config.dit.dim,
        "hidden_size": mllm_dim,
        "num_image_queries": query.image,
        "num_video_queries": query.video,
        "num_ref_queries": query.reference,
        "max_object_token": limits.max_reference_tokens,
        "max_frames": limits.max_frames,
        "max_pixels_per_frame": limits.max_pixels_per_frame,
    }
    if limits.min_pixels_per_frame != VisionLimits().min_pixels_per_frame:
        content["min_pixels_per_frame"] = limits.min_pixels_per_frame  # a constant in the published code
    return content


def make_transformer_config(config: KiwiConfig) -> dict[str, Any]:
    """Build the config.json of `transformer`."""
    dit = config.dit
    return {
        "_class_name": "WanTransformer3DModel",
        "_diffusers_version": VERSION,
        "patch_size": list(dit.patch_size),
        "in_channels": dit.latent_channels,
        "out_channels": dit.latent_channels,
        "num_attention_heads": dit.num_heads,
        "attention_head_dim": dit.head_dim,
        "text_dim": TEXT_DIM,
        "freq_dim": dit.freq_dim,
        "ffn_dim": dit.ffn_dim,
        "num_layers": dit.num_layers,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": dit.eps,
        "rope_max_seq_len": 1024,
    }


def make_embedder_config(config: KiwiConfig) -> dict[str, Any]:
    """Build the config.json of `source_embedder` and `ref_embedder`."""
    return {
        "_class_name": "ConditionalEmbedder",
        "_diffusers_version": VERSION,
        "in_dim": config.dit.latent_channels,
        "dim": config.dit.dim,
        "patch_size": list(config.dit.patch_size),
        "zero_init": True,
        "ref_pad_first": isinstance(config.reference, PrependReference),
    }


def _from_diffusers(name: str) -> str:
    """Convert PART/NAME to kiwi's name."""
    part, _, rest = name.partition("/")
    match part:
        case "transformer":
            return f"dit.{dit_from_diffusers(rest)}"
        case "mllm_encoder":
            return replace_prefix(rest, _FROM_ENCODER)
        case _:
            return f"{EMBEDDERS[part]}.{rest}"
