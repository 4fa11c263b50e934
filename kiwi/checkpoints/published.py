"""The published training checkpoint: one safetensors file with the trained tensors, whose names start with `pipe.`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from kiwi.checkpoints.assemble import ImportSettings, Report, assemble
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
from kiwi.spec import diff
from kiwi.weights.adapters import is_adapter, without_base_layer
from kiwi.weights.files import State, read_metadata, read_weights
from kiwi.weights.names import TEXT_EMBEDDING, from_published, rename, strip_checkpoint_prefixes, to_published
from kiwi.weights.strict import require_finite_floats

TEXT_DIM = 4096
"""Width of Wan's text features; the published files hold a text embedding that is never applied."""

CHOICES_KEY = "kiwi_choices"
"""Metadata key of `unrecorded_choices` (JSON) in files that this package wrote; other files have none."""


def import_published(file: Path, settings: ImportSettings, folder: Path, report: Report) -> None:
    """Convert a published training checkpoint to a model folder.

    Raises:
        CheckpointError: not such a file, a base model for a file that holds its DiT, or tensors that do not match; see
            `assemble`.
    """
    state = from_published_state(read_weights(file), report)
    if settings.base and any(name.startswith("dit.") and not is_adapter(name) for name in state):
        raise CheckpointError(
            f"{file} holds a DiT, so a base model would have no effect", code="unused-option", fix="leave out --base"
        )
    recorded = _read_choices(file)
    # A choice of the user for a node replaces everything that the file records for the node and the fields in it.
    used = {
        path: value
        for path, value in recorded.items()
        if not any(f"{path}.".startswith(f"{node}.") for node in settings.changes)
    }
    if used:
        report("choices", f"as recorded in the file: {_set_options(used)}")
    for path, value in recorded.items():
        if settings.changes.get(path, value) != value:
            report(path, f"{settings.changes[path]}, although the file records {value}")
    assemble(state, replace(settings, changes={**used, **settings.changes}), folder, report)


def from_published_state(state: Mapping[str, Tensor], report: Report = lambda part, text: None) -> State:
    """Tensors of a training checkpoint under this package's names, without `text_embedding`; any prefix is accepted."""
    short = strip_checkpoint_prefixes(state)
    renamed = rename(state, lambda name: from_published(short[name]), "the checkpoint")
    used = {name: tensor for name, tensor in renamed.items() if not name.startswith(f"dit.{TEXT_EMBEDDING}")}
    if len(used) < len(renamed):
        report("text_embedding", f"{len(renamed) - len(used)} tensors left out: they are never applied")
    return used


def export_published(folder: Path, file: Path, report: Report, dtype: torch.dtype | None = None) -> None:
    """Convert a model folder to a published training checkpoint.

    Args:
        folder: the model folder.
        file: where to write, .safetensors.
        report: called with what was done.
        dtype: of all tensors; None keeps theirs.

    Raises:
        CheckpointError: choices that the published code does not have, or another file name suffix.
        InputError: the file cannot be written.
    """
    if file.suffix != ".safetensors":
        raise CheckpointError(
            f"cannot write {file}", code="unknown-format", expected="a file name that ends in .safetensors"
        )
    config = read_folder_config(folder).config
    require_publishable(config)
    state = read_weights(folder)
    require_finite_floats(state, str(folder))
    published = {f"pipe.{to_published(without_base_layer(name))}": tensor for name, tensor in state.items()}
    if isinstance(config.dit.base, WanBase):
        report("dit", f"adapters only: loading the file requires the base model {config.dit.base.path}")
    else:
        zeros = zero_text_embedding(config.dit.dim, state["dit.patch_embedding.weight"].dtype)
        published |= {f"pipe.dit.{name}": tensor for name, tensor in zeros.items()}
        report("text_embedding", "4 tensors of zeros: the format has them, nothing applies them")
    choices = unrecorded_choices(config)
    with atomic_path(file) as temporary:
        tensors = {name: tensor.to(dtype or tensor.dtype) for name, tensor in published.items()}
        save_file(tensors, temporary, {"format": "pt", CHOICES_KEY: json.dumps(choices)})
    for part in ("vae", "mllm"):
        report(part, f"not part of the format; it is {getattr(getattr(config, part), 'path', 'in the folder')}")
    if choices:
        report(
            "choices", f"recorded in the file's metadata; without it, reading the file needs {_set_options(choices)}"
        )


def unrecorded_choices(config: KiwiConfig) -> dict[str, Any]:
    """Choices by dotted path that the format does not record and that differ from what reading it assumes."""
    dit, limits = config.dit, config.mllm.limits
    choices: dict[str, Any] = {}
    if dit.num_heads != max(1, dit.dim // 128):
        choices["dit.num_heads"] = dit.num_heads
    if dit.eps != DiTConfig.eps:
        choices["dit.eps"] = dit.eps
    choices |= {f"mllm.limits.{name}": value for name, (_, value) in diff(VisionLimits(), limits).items()}
    if isinstance(config.source, NoSource):
        choices["source"] = "NoSource"
    if isinstance(config.reference, PrependReference):
        choices["reference"] = "PrependReference"
    return choices


def _read_choices(file: Path) -> dict[str, Any]:
    """The `unrecorded_choices` in a file's metadata; anything else there, such as a path, is refused."""
    text = read_metadata(file).get(CHOICES_KEY, "{}")
    try:
        choices = json.loads(text)
    except (ValueError, RecursionError):
        choices = None
    types = {"dit.num_heads": int, "dit.eps": float, "source": str, "reference": str}
    types |= {f"mllm.limits.{field.name}": int for field in fields(VisionLimits)}
    if not isinstance(choices, dict) or not all(type(value) is types.get(path) for path, value in choices.items()):
        raise CheckpointError(
            f"the choices recorded in {file} cannot be used",
            code="invalid-metadata",
            got=text[:200],
            expected=f"values of {', '.join(types)}",
        )
    return choices


def _set_options(choices: Mapping[str, Any]) -> str:
    return " ".join(f"--set {path}={value}" for path, value in choices.items())


def require_publishable(config: KiwiConfig) -> None:
    """Refuse choices that the published code does not have.

    Raises:
        CheckpointError: naming each.
    """
    query = config.query
    is_tail_query = isinstance(query, QueryConnector) and query.readout == "tail" and query.layers == (-1,)
    supported = {
        "source": config.source in (AddSource(scale=SigmaScale()), NoSource()),
        "reference": isinstance(config.reference, (AppendReference, PrependReference, NoReference)),
        "query": is_tail_query,
        "latent": config.latent == LatentConnector(),
        "schedule": config.schedule == FlowSchedule(),
    }
    if unsupported := [f"{name} = {getattr(config, name)}" for name, holds in supported.items() if not holds]:
        raise CheckpointError(
            "the published code does not support the choices of this model",
            code="unsupported-config",
            got="; ".join(unsupported),
            expected="AddSource with SigmaScale, appended, prepended or no references, both connectors reading the "
            "last layer, queries read at the tail (query.readout=tail), shift 5",
            fix="keep the model folder, or train with these choices",
        )


def zero_text_embedding(dim: int, dtype: torch.dtype) -> State:
    """Zeros for Wan's text embedding, which the published formats hold; names without `dit.`."""
    shapes = {"0.weight": (dim, TEXT_DIM), "0.bias": (dim,), "2.weight": (dim, dim), "2.bias": (dim,)}
    return {f"{TEXT_EMBEDDING}{name}": torch.zeros(shape, dtype=dtype) for name, shape in shapes.items()}
