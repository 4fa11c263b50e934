"""The published diffusers folder's layout: which part holds which tensor under which name, and the parts' settings.

Pure functions on named tensors; a name of ours has its part in front (`dit.`, `query.`, ...).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
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
"""Of diffusers, as the published model_index.json names it."""

PARTS = {
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "vae": ["wan_video_vae", "VAE"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "mllm_encoder": ["mllm_encoder", "MLLMEncoder"],
    "source_embedder": ["conditional_embedder", "ConditionalEmbedder"],
    "ref_embedder": ["conditional_embedder", "ConditionalEmbedder"],
    "processor": ["transformers", "AutoProcessor"],
}
"""The parts and the classes that the published model_index.json names for them."""

EMBEDDERS = {"source_embedder": "source", "ref_embedder": "reference"}
_ENCODER = {
    "image_queries": "query.queries.image",
    "video_queries": "query.queries.video",
    "ref_queries": "query.queries.reference",
    "connector.": "query.connector.",
    "ref_connector.": "latent.connector.",
}
_ENCODER_NAMES = {ours: theirs for theirs, ours in _ENCODER.items()}


def ours(parts: Mapping[str, State]) -> State:
    """The editor's own tensors of a folder, by part, under our names; the unused text embedding is left out.

    Raises:
        CheckpointError: two names of one tensor.
    """
    tensors = {f"{part}/{name}": tensor for part, weights in parts.items() for name, tensor in weights.items()}
    state = rename(tensors, _our_name, "the folder")
    return {name: tensor for name, tensor in state.items() if not name.startswith(f"dit.{TEXT_EMBEDDING}")}


def theirs(state: Mapping[str, Tensor]) -> dict[str, State]:
    """Our tensors (no adapters, the text embedding among them) as a folder's parts; absent parts are left out."""
    parts: dict[str, State] = {}
    embedders = {own: part for part, own in EMBEDDERS.items()}
    for name, tensor in state.items():
        part, _, rest = name.partition(".")
        match part:
            case "dit":
                parts.setdefault("transformer", {})[dit_to_diffusers(rest)] = tensor
            case "query" | "latent":
                parts.setdefault("mllm_encoder", {})[replace_prefix(name, _ENCODER_NAMES)] = tensor
            case _:
                parts.setdefault(embedders[part], {})[rest] = tensor
    return parts


def classic(name: str) -> str:
    """The hub's name of a tensor of transformers' Qwen2_5_VLModel."""
    return re.sub(r"^language_model\.", "model.", name)


def pads_first(embedder: Mapping[str, Any]) -> bool:
    """Whether the reference embedder's configuration says that references come before the video.

    Raises:
        CheckpointError: neither true nor false, such as the text "false".
    """
    first = embedder.get("ref_pad_first", False)
    if not isinstance(first, bool):
        raise CheckpointError(
            "ref_embedder/config.json is wrong: ref_pad_first", got=repr(first), wanted="true or false"
        )
    return first


def limits_of(encoder: Mapping[str, Any]) -> VisionLimits:
    """What the encoder's configuration says about the pictures; the published defaults where it does not.

    Raises:
        CheckpointError: a limit that is no whole number, or out of range.
    """
    known = {
        "max_frames": "max_frames",
        "max_pixels_per_frame": "max_pixels_per_frame",
        "min_pixels_per_frame": "min_pixels_per_frame",
        "max_reference_tokens": "max_object_token",
    }
    said = {theirs: encoder[theirs] for theirs in known.values() if theirs in encoder}
    if wrong := {name: value for name, value in said.items() if type(value) is not int}:
        raise CheckpointError("mllm_encoder/config.json is wrong", got=wrong, wanted="whole numbers")
    try:
        return VisionLimits(**{ours: said[theirs] for ours, theirs in known.items() if theirs in said})
    except SpecError as problem:
        raise CheckpointError(f"mllm_encoder/config.json is wrong: {problem}") from problem


def encoder_config(config: KiwiConfig, mllm_dim: int) -> dict[str, Any]:
    """config.json of `mllm_encoder`."""
    query, limits = config.query, config.mllm.limits
    assert isinstance(query, QueryConnector)
    found = {
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
        found["min_pixels_per_frame"] = limits.min_pixels_per_frame  # ours alone: the published one is a constant
    return found


def transformer_config(config: KiwiConfig) -> dict[str, Any]:
    """config.json of `transformer`."""
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


def embedder_config(config: KiwiConfig) -> dict[str, Any]:
    """config.json of `source_embedder` and `ref_embedder`."""
    return {
        "_class_name": "ConditionalEmbedder",
        "_diffusers_version": VERSION,
        "in_dim": config.dit.latent_channels,
        "dim": config.dit.dim,
        "patch_size": list(config.dit.patch_size),
        "zero_init": True,
        "ref_pad_first": isinstance(config.reference, PrependReference),
    }


def _our_name(name: str) -> str:
    """Of a tensor given as PART/NAME."""
    part, _, rest = name.partition("/")
    match part:
        case "transformer":
            return f"dit.{dit_from_diffusers(rest)}"
        case "mllm_encoder":
            return replace_prefix(rest, _ENCODER)
        case _:
            return f"{EMBEDDERS[part]}.{rest}"
