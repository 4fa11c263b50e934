"""The published training checkpoint: one safetensors file with trained tensors, whose names start with `pipe.`."""

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from kiwi.checkpoints.assemble import ImportSettings, Report, assemble, drop_replaced_options
from kiwi.checkpoints.folder_config import read_folder_config
from kiwi.errors import CheckpointError
from kiwi.flow.schedule import FlowSchedule
from kiwi.media.files import atomic_path
from kiwi.models.config import KiwiConfig
from kiwi.models.connectors import LatentConnector, QueryConnector
from kiwi.models.dit.base import WanBase
from kiwi.models.dit.transformer import DiTConfig
from kiwi.models.injection import AddSource, AppendReference, NoReference, NoSource, PrependReference
from kiwi.models.mllm.vision_input import VisionLimits
from kiwi.models.scaling import SigmaScale
from kiwi.reading import parse_json
from kiwi.spec import diff
from kiwi.weights.adapters import is_adapter, split_adapters, without_base_layer
from kiwi.weights.files import State, read_metadata, read_weights
from kiwi.weights.lora_files import read_lora_scale, standardise_lora, write_names
from kiwi.weights.names import (
    TEXT_EMBEDDING,
    from_published,
    rename,
    select_prefix,
    strip_checkpoint_prefixes,
    to_published,
)
from kiwi.weights.strict import require_finite_floats

TEXT_DIM = 4096
"""Width of Wan's text features; the published files contain a text embedding that is never used."""

OPTIONS_KEY = "kiwi_choices"
"""Key in the metadata of files that kiwi wrote, with the options that tensors do not show as JSON."""


def import_published(file: Path, settings: ImportSettings, folder: Path, report: Report) -> None:
    """Convert a published training checkpoint, or a LoRA file of another program, to a model folder.

    Raises:
        CheckpointError: the file has another format, contains a DiT although a base model is given, or its tensors do
            not match; see `assemble`.
    """
    state, factor = standardise_lora(read_weights(file), read_lora_scale(file))
    state = from_published_state(state, report)
    if factor:
        report("adapters", factor)
    if not state:
        raise CheckpointError(f"{file} contains no tensors", code="missing-weights", fix="copy or download it again")
    if settings.base and "dit.patch_embedding.weight" in state:
        raise CheckpointError(
            f"{file} contains a DiT, so a base model would have no effect", code="unused-option", fix="remove --base"
        )
    recorded = drop_replaced_options(_read_recorded_options(file), settings.changes, report)
    if recorded:
        report("options", f"read from the file's metadata: {_format_set_options(recorded)}")
    assemble(state, replace(settings, changes={**recorded, **settings.changes}), folder, report)


def from_published_state(state: Mapping[str, Tensor], report: Report = lambda part, text: None) -> State:
    """Convert a training checkpoint's tensor names to kiwi's and drop `text_embedding`; prefixes may be missing."""
    unprefixed = strip_checkpoint_prefixes(state)
    renamed = rename(state, lambda name: from_published(unprefixed[name]), "the checkpoint")
    used = {name: tensor for name, tensor in renamed.items() if not name.startswith(f"dit.{TEXT_EMBEDDING}")}
    if len(used) < len(renamed):
        report("text_embedding", f"{len(renamed) - len(used)} tensors dropped: they are never used")
    return used


def export_published(folder: Path, file: Path, report: Report, dtype: torch.dtype | None = None) -> None:
    """Convert a model folder to a published training checkpoint in `dtype`; None keeps each tensor's.

    Raises:
        CheckpointError: the published code does not support the model's options, or the suffix is not .safetensors.
        InputError: the file cannot be written.
    """
    if file.suffix != ".safetensors":
        raise CheckpointError(f"cannot write {file}", code="wrong-suffix", expected="a name that ends in .safetensors")
    config, state = read_publishable_folder(folder)
    published = {f"pipe.{to_published(without_base_layer(name))}": tensor for name, tensor in state.items()}
    if isinstance(config.dit.base, WanBase):
        report("dit", f"adapters only: loading the file requires the base model {config.dit.base.path}")
    else:
        zeros = make_zero_text_embedding(config.dit.dim, state["dit.patch_embedding.weight"].dtype)
        published |= {f"pipe.dit.{name}": tensor for name, tensor in zeros.items()}
        report("text_embedding", "4 tensors of zeros, which the format requires but the model never uses")
    options = find_unrecorded_options(config)
    with atomic_path(file) as temporary:
        tensors = {name: tensor.to(dtype or tensor.dtype) for name, tensor in published.items()}
        save_file(tensors, temporary, {"format": "pt", OPTIONS_KEY: json.dumps(options)})
    for part in ("vae", "mllm"):
        report(part, f"not part of the format; it is at {getattr(getattr(config, part), 'path', folder)}")
    if options:
        report("options", f"written to the file's metadata; a copy without it needs {_format_set_options(options)}")


def export_lora(folder: Path, file: Path, style: str, report: Report, dtype: torch.dtype | None = None) -> None:
    """Write the adapters of a model folder's DiT as a LoRA file for ComfyUI ("lora-comfyui") or diffusers.

    Raises:
        CheckpointError: the DiT has no adapters, or the suffix is not .safetensors.
        InputError: the file cannot be written.
    """
    if file.suffix != ".safetensors":
        raise CheckpointError(f"cannot write {file}", code="wrong-suffix", expected="a name that ends in .safetensors")
    state = read_weights(folder)
    require_finite_floats(state, str(folder))
    _, adapters = split_adapters(select_prefix(state, "dit."))
    if not adapters:
        raise CheckpointError(
            f"the DiT of {folder} has no adapters",
            code="missing-adapters",
            got="adapters of the MLLM only" if any(map(is_adapter, state)) else "no adapters",
            expected="a model trained with dit.tuning Lora, or converted with --adapters keep",
        )
    tensors = {name: tensor.to(dtype or tensor.dtype) for name, tensor in write_names(adapters, style).items()}
    with atomic_path(file) as temporary:
        save_file(tensors, temporary, {"format": "pt"})
    report(
        "dit", f"{len(adapters) // 2} adapters written; alpha is their rank, which is what a file without alpha means"
    )
    report("other parts", "not part of the format: other programs apply the adapters to the base model alone")


def find_unrecorded_options(config: KiwiConfig) -> dict[str, Any]:
    """Return the options that tensors do not show and that differ from the defaults of import, by dotted path."""
    dit, limits = config.dit, config.mllm.limits
    options: dict[str, Any] = {"dit.num_heads": dit.num_heads} if dit.num_heads != max(1, dit.dim // 128) else {}
    options |= {"dit.eps": dit.eps} if dit.eps != DiTConfig.eps else {}
    options |= {f"mllm.limits.{name}": value for name, (_, value) in diff(VisionLimits(), limits).items()}
    options |= {"source": "NoSource"} if config.source == NoSource() else {}
    options |= {"reference": "PrependReference"} if isinstance(config.reference, PrependReference) else {}
    return options


def _read_recorded_options(file: Path) -> dict[str, Any]:
    """Read the options that `export_published` recorded in a file; raise if there are others, such as a path."""
    text = read_metadata(file).get(OPTIONS_KEY, "{}")
    try:
        options = parse_json(text)
    except ValueError:
        options = None
    types = {"dit.num_heads": int, "dit.eps": float, "source": str, "reference": str}
    types |= {f"mllm.limits.{field.name}": int for field in fields(VisionLimits)}
    if not isinstance(options, dict) or not all(type(value) is types.get(path) for path, value in options.items()):
        expected = f"values for {', '.join(types)}"
        raise CheckpointError(
            f"the options recorded in {file} are invalid", code="invalid-metadata", got=text[:200], expected=expected
        )
    return options


def _format_set_options(options: Mapping[str, Any]) -> str:
    return " ".join(f"--set {path}={value}" for path, value in options.items())


def read_publishable_folder(folder: Path) -> tuple[KiwiConfig, State]:
    """Read configuration and weights of a model folder; raise if the published code does not support its options."""
    config = read_folder_config(folder).config
    query = config.query
    is_tail_query = isinstance(query, QueryConnector) and query.readout == "tail" and query.layers == (-1,)
    supported = {
        "source": config.source in (AddSource(scale=SigmaScale()), NoSource()),
        "reference": isinstance(config.reference, (AppendReference, PrependReference, NoReference)),
        "query": is_tail_query,
        "latent": config.latent == LatentConnector(),
        "schedule": config.schedule == FlowSchedule(),
    }
    if unsupported := [f"{name} = {getattr(config, name)}" for name, ok in supported.items() if not ok]:
        raise CheckpointError(
            "the published code does not support some options of this model",
            code="unsupported-config",
            got="; ".join(unsupported),
            expected="AddSource with SigmaScale, appended, prepended or no references, both connectors reading the "
            "last layer, queries read at the tail (query.readout=tail), shift 5",
            fix="use the model folder, or train a model with these options",
        )
    state = read_weights(folder)
    require_finite_floats(state, str(folder))
    return config, state


def make_zero_text_embedding(dim: int, dtype: torch.dtype) -> State:
    """Make the zero tensors of Wan's text embedding, which published formats contain; names are without `dit.`."""
    shapes = {"0.weight": (dim, TEXT_DIM), "0.bias": (dim,), "2.weight": (dim, dim), "2.bias": (dim,)}
    return {f"{TEXT_EMBEDDING}{name}": torch.zeros(shape, dtype=dtype) for name, shape in shapes.items()}
