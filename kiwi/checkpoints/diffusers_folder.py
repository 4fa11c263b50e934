"""The published diffusers folder: a subfolder a part, the MLLM with its adapters merged, the VAE's original names.

Its Python files (the custom pipeline) are the publisher's: a folder written here needs them beside it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kiwi.checkpoints.assemble import Origin, Report, assemble
from kiwi.checkpoints.folder import read_record
from kiwi.checkpoints.published import TEXT_DIM, require_expressible, text_embedding
from kiwi.errors import CheckpointError
from kiwi.media.files import atomic_folder, write_json
from kiwi.models.base import WanBase, read_wan
from kiwi.models.config import KiwiConfig
from kiwi.models.connectors import QueryConnector
from kiwi.models.injection import PrependReference
from kiwi.models.mllm import MllmEncoder, QwenVL
from kiwi.models.prompting import VisionLimits
from kiwi.models.tuning import Frozen
from kiwi.models.vae import WanVae, published_config, raw_state
from kiwi.weights.adapters import is_adapter, merge, without_base_layer
from kiwi.weights.files import State, read_weights, saved_dtype, write_weights
from kiwi.weights.hub import locate
from kiwi.weights.names import TEXT_EMBEDDING, dit_from_diffusers, dit_to_diffusers

WEIGHTS = "diffusion_pytorch_model"
VERSION = "0.32.0"
"""Of diffusers, as the published model_index.json names it."""

_PARTS = {
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "vae": ["wan_video_vae", "VAE"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "mllm_encoder": ["mllm_encoder", "MLLMEncoder"],
    "source_embedder": ["conditional_embedder", "ConditionalEmbedder"],
    "ref_embedder": ["conditional_embedder", "ConditionalEmbedder"],
    "processor": ["transformers", "AutoProcessor"],
}
_EMBEDDERS = {"source_embedder": "source", "ref_embedder": "reference"}
_ENCODER = {
    "image_queries": "query.queries.image",
    "video_queries": "query.queries.video",
    "ref_queries": "query.queries.reference",
    "connector.": "query.connector.",
    "ref_connector.": "latent.connector.",
}
_ENCODER_NAMES = {ours: theirs for theirs, ours in _ENCODER.items()}


def import_diffusers(source: str, changes: Mapping[str, Any], folder: Path, report: Report, *, seed: int = 0) -> None:
    """A published diffusers folder (or hub id) as a model folder; VAE and MLLM are in it and are copied.

    Args:
        source: the folder or id.
        changes: choices other than the folder's, by dotted path.
        folder: to be written.
        report: told what was done.
        seed: of the initial values of what is absent.

    Raises:
        CheckpointError: a part that is missing, or tensors that do not fit; see `assemble`.
    """
    root = locate(source, "diffusers folder", "name a folder with model_index.json")
    state = {
        f"dit.{dit_from_diffusers(name)}": tensor
        for name, tensor in read_weights(root / "transformer").items()
        if not dit_from_diffusers(name).startswith(TEXT_EMBEDDING)
    }
    state |= {_renamed(name, _ENCODER): t for name, t in read_weights(_encoder_file(root)).items()}
    for part, ours in _EMBEDDERS.items():
        if (root / part).is_dir():
            state |= {f"{ours}.{name}": tensor for name, tensor in read_weights(root / part).items()}
    transformer = _read_json(root / "transformer/config.json")
    said = {"dit.num_heads": transformer.get("num_attention_heads"), "dit.eps": transformer.get("eps")}
    if (root / "ref_embedder").is_dir() and _read_json(root / "ref_embedder/config.json").get("ref_pad_first"):
        said["reference"] = "PrependReference"
    with tempfile.TemporaryDirectory() as temporary:
        mllm = _hub_layout(root, Path(temporary))
        limits = _limits(_read_json(root / "mllm_encoder/config.json"))
        origin = Origin(
            vae=WanVae(path=str(root / "vae")),
            mllm=QwenVL(path=str(mllm), limits=limits, dtype=saved_dtype(mllm)),
            changes={**{path: value for path, value in said.items() if value is not None}, **changes},
            seed=seed,
        )
        assemble(state, origin, folder, report)


def export_diffusers(folder: Path, target: Path, report: Report, dtype: torch.dtype | None = None) -> None:
    """A model folder as a published diffusers folder.

    Args:
        folder: the model folder.
        target: to be written; what stood there is replaced as a whole.
        report: told what was done.
        dtype: of the editor's own parts; None keeps theirs. VAE and MLLM keep theirs always.

    Raises:
        CheckpointError: choices that the published code does not have, or an MLLM that is no Qwen2.5-VL.
    """
    record = read_record(folder)
    config = record.config
    require_expressible(config)
    mllm, vae = config.mllm.replace(tuning=Frozen()).build(), config.vae.build()
    if mllm.config.model_type != "qwen2_5_vl":
        raise CheckpointError("the published folder holds a Qwen2.5-VL", got=mllm.config.model_type)
    state = read_weights(folder)
    own = {name: t.to(dtype or t.dtype) for name, t in state.items() if not name.startswith("mllm.")}
    with atomic_folder(target) as new:
        dit = _merged_dit(config, own)
        dit |= text_embedding(config, own)
        _write(new / "transformer", {dit_to_diffusers(n): t for n, t in dit.items()}, _transformer_config(config))
        _write(new / "vae", raw_state(vae), published_config(vae))
        for part, ours in _EMBEDDERS.items():
            weights = {n.removeprefix(f"{ours}."): t for n, t in own.items() if n.startswith(f"{ours}.")}
            if weights:
                _write(new / part, weights, _embedder_config(config))
            else:
                report(part, "the model has none: left out")
        encoder = {_renamed(n, _ENCODER_NAMES): t for n, t in own.items() if n.startswith(("query.", "latent."))}
        _write(new / "mllm_encoder", encoder, _encoder_config(config, mllm))
        adapters = {n.removeprefix("mllm."): t for n, t in state.items() if is_adapter(n) and n.startswith("mllm.")}
        weights = {f"model.{n}": t for n, t in mllm.model.state_dict().items()}
        write_weights({_classic(n): t for n, t in merge(weights, adapters).items()}, new / "mllm_encoder")
        mllm.save_processor(new / "processor")
        mllm.config.save_pretrained(new / "processor")
        (new / "processor/config.json").rename(new / "processor/qwen_config.json")
        _write_index(new, config)
    report("pipeline code", "not written: the publisher's .py files belong beside the folder's parts")
    if adapters:
        report("mllm", f"{len(adapters) // 2} adapters merged")


def _merged_dit(config: KiwiConfig, own: State) -> State:
    dit = {without_base_layer(n).removeprefix("dit."): t for n, t in own.items() if n.startswith("dit.")}
    weights = {name: tensor for name, tensor in dit.items() if not is_adapter(name)}
    if isinstance(config.dit.base, WanBase):
        weights = read_wan(config.dit.base.path, config.dit.base.subfolder)
    return merge(weights, {name: tensor for name, tensor in dit.items() if is_adapter(name)})


def _hub_layout(root: Path, folder: Path) -> Path:
    """The MLLM of a published folder as a folder that transformers reads: links, nothing is copied.

    Raises:
        CheckpointError: no configuration or no weights.
    """
    encoder, processor = root / "mllm_encoder", root / "processor"
    if not (processor / "qwen_config.json").is_file():
        raise CheckpointError(f"{root} is not a published diffusers folder", wanted="processor/qwen_config.json")
    for file in processor.iterdir():
        if file.is_file() and file.name != "config.json":
            (folder / file.name).symlink_to(file.resolve())
    for file in encoder.glob("model*.safetensors*"):
        (folder / file.name).symlink_to(file.resolve())
    (folder / "config.json").symlink_to((processor / "qwen_config.json").resolve())
    return folder


def _encoder_file(root: Path) -> Path:
    """Queries and connectors, which share their folder with the MLLM's weights."""
    index = root / "mllm_encoder" / f"{WEIGHTS}.safetensors.index.json"
    return index if index.is_file() else root / "mllm_encoder" / f"{WEIGHTS}.safetensors"


def _limits(encoder: Mapping[str, Any]) -> VisionLimits:
    """What the encoder's configuration says about the pictures; the published defaults where it does not."""
    known = {
        "max_frames": "max_frames",
        "max_pixels_per_frame": "max_pixels_per_frame",
        "min_pixels_per_frame": "min_pixels_per_frame",
        "max_reference_tokens": "max_object_token",
    }
    return VisionLimits(**{ours: encoder[theirs] for ours, theirs in known.items() if theirs in encoder})


def _encoder_config(config: KiwiConfig, mllm: MllmEncoder) -> dict[str, Any]:
    query, limits = config.query, config.mllm.limits
    assert isinstance(query, QueryConnector)
    found = {
        "_class_name": "MLLMEncoder",
        "_diffusers_version": VERSION,
        "mllm_model_path": ".",
        "dit_dim": config.dit.dim,
        "hidden_size": mllm.hidden_size,
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


def _transformer_config(config: KiwiConfig) -> dict[str, Any]:
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


def _embedder_config(config: KiwiConfig) -> dict[str, Any]:
    return {
        "_class_name": "ConditionalEmbedder",
        "_diffusers_version": VERSION,
        "in_dim": config.dit.latent_channels,
        "dim": config.dit.dim,
        "patch_size": list(config.dit.patch_size),
        "zero_init": True,
        "ref_pad_first": isinstance(config.reference, PrependReference),
    }


def _write_index(folder: Path, config: KiwiConfig) -> None:
    """The scheduler's configuration, which the published pipeline ships and does not use, and model_index.json."""
    (folder / "scheduler").mkdir()
    scheduler: dict[str, Any] = {"_class_name": "FlowMatchEulerDiscreteScheduler", "_diffusers_version": VERSION}
    scheduler |= {"shift": config.schedule.shift, "num_train_timesteps": config.schedule.num_train_timesteps}
    write_json(folder / "scheduler" / "scheduler_config.json", {**scheduler, "base_shift": 0.5, "max_shift": 1.15})
    index: dict[str, Any] = {"_class_name": ["pipeline_kiwi_edit", "KiwiEditPipeline"], "_diffusers_version": VERSION}
    write_json(folder / "model_index.json", index | {n: v for n, v in _PARTS.items() if (folder / n).is_dir()})


def _write(folder: Path, state: State, config: dict[str, Any]) -> None:
    folder.mkdir()
    write_weights(state, folder, WEIGHTS)
    write_json(folder / "config.json", config)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise CheckpointError(f"{file} cannot be read", got=problem) from problem
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} cannot be read", got=type(found).__name__, wanted="a JSON object")
    return found


def _classic(name: str) -> str:
    """The hub's name of a tensor of transformers' Qwen2.5-VL (without the language head)."""
    return name.removeprefix("model.").replace("language_model.", "model.", 1)


def _renamed(name: str, table: Mapping[str, str]) -> str:
    old = next((old for old in table if name.startswith(old)), None)
    return name if old is None else table[old] + name.removeprefix(old)
