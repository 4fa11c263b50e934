"""The published training checkpoint: one safetensors file with what was trained, names that start with `pipe.`."""

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
from kiwi.checkpoints.folder import read_folder_config
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

NOTED = "kiwi_choices"
"""Where in the metadata of a file that was written here `unsaid` stands, as JSON; other files have none."""


def import_published(file: Path, origin: ImportSettings, folder: Path, report: Report) -> None:
    """A published training checkpoint as a model folder.

    Raises:
        CheckpointError: not such a file, a base model for a file that holds its DiT, or tensors that do not fit; see
            `assemble`.
    """
    state = from_published_state(read_weights(file), report)
    if origin.base and any(name.startswith("dit.") and not is_adapter(name) for name in state):
        raise CheckpointError(f"{file} holds a DiT, so that a base model means nothing", fix="leave out --base")
    # What the user says of a node goes before all that the file says of it or of what lies in it.
    noted = {
        path: value
        for path, value in _noted(file).items()
        if not any(f"{path}.".startswith(f"{given}.") for given in origin.changes)
    }
    if noted:
        report("choices", f"as noted in the file: {_settings(noted)}")
    for path, value in _noted(file).items():
        if origin.changes.get(path, value) != value:
            report(path, f"{origin.changes[path]}, though the file says {value}")
    assemble(state, replace(origin, changes={**noted, **origin.changes}), folder, report)


def from_published_state(state: Mapping[str, Tensor], report: Report = lambda part, text: None) -> State:
    """Tensors of a training checkpoint under our names, whatever prefix it kept; `text_embedding` is left out."""
    short = strip_checkpoint_prefixes(state)
    renamed = rename(state, lambda name: from_published(short[name]), "the checkpoint")
    kept = {name: tensor for name, tensor in renamed.items() if not name.startswith(f"dit.{TEXT_EMBEDDING}")}
    if len(kept) < len(renamed):
        report("text_embedding", f"{len(renamed) - len(kept)} tensors left out: they are never applied")
    return kept


def export_published(folder: Path, file: Path, report: Report, dtype: torch.dtype | None = None) -> None:
    """A model folder as a published training checkpoint.

    Args:
        folder: the model folder.
        file: to be written, .safetensors.
        report: told what was done.
        dtype: of all tensors; None keeps theirs.

    Raises:
        CheckpointError: choices that the published code does not have, or another ending of the name.
        InputError: a file that cannot be written.
    """
    if file.suffix != ".safetensors":
        raise CheckpointError(f"cannot write {file}", wanted="a name ending in .safetensors")
    record = read_folder_config(folder)
    require_expressible(record.config)
    state = read_weights(folder)
    require_finite_floats(state, str(folder))
    named = {f"pipe.{to_published(without_base_layer(name))}": tensor for name, tensor in state.items()}
    if isinstance(record.config.dit.base, WanBase):
        report("dit", f"adapters only: whoever loads the file needs {record.config.dit.base.path}")
    else:
        zeros = text_embedding(record.config.dit.dim, state["dit.patch_embedding.weight"].dtype)
        named |= {f"pipe.dit.{name}": tensor for name, tensor in zeros.items()}
        report("text_embedding", "4 tensors of zeros: the format has them, nothing applies them")
    choices = unsaid(record.config)
    with atomic_path(file) as temporary:
        tensors = {name: tensor.to(dtype or tensor.dtype) for name, tensor in named.items()}
        save_file(tensors, temporary, {"format": "pt", NOTED: json.dumps(choices)})
    for part in ("vae", "mllm"):
        report(part, f"not part of the format; it is {getattr(getattr(record.config, part), 'path', 'in the folder')}")
    if choices:
        report("choices", f"noted in the file; where the note is lost, reading it back needs {_settings(choices)}")


def unsaid(config: KiwiConfig) -> dict[str, Any]:
    """Choices that the format does not say and that are not those which reading it assumes, by dotted path."""
    dit, limits = config.dit, config.mllm.limits
    found: dict[str, Any] = {}
    if dit.num_heads != max(1, dit.dim // 128):
        found["dit.num_heads"] = dit.num_heads
    if dit.eps != DiTConfig.eps:
        found["dit.eps"] = dit.eps
    found |= {f"mllm.limits.{name}": value for name, (_, value) in diff(VisionLimits(), limits).items()}
    kinds = {"source": (config.source, NoSource), "reference": (config.reference, PrependReference)}
    return found | {path: kind.__name__ for path, (spec, kind) in kinds.items() if isinstance(spec, kind)}


def _noted(file: Path) -> dict[str, Any]:
    """What `unsaid` was when the file was written; refused where it names anything else, a path say."""
    text = read_metadata(file).get(NOTED, "{}")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    known = {"dit.num_heads": int, "dit.eps": float, "source": str, "reference": str}
    known |= {f"mllm.limits.{field.name}": int for field in fields(VisionLimits)}
    if not isinstance(found, dict) or not all(type(value) is known.get(path) for path, value in found.items()):
        raise CheckpointError(
            f"the choices noted in {file} cannot be used", got=text[:200], wanted=f"values of {', '.join(known)}"
        )
    return found


def _settings(choices: Mapping[str, Any]) -> str:
    return " ".join(f"--set {path}={value}" for path, value in choices.items())


def require_expressible(config: KiwiConfig) -> None:
    """Refuse choices that the published code does not have.

    Raises:
        CheckpointError: naming each.
    """
    query, latent = config.query, config.latent
    wrong = {
        "source": None if config.source in (AddSource(scale=SigmaScale()), NoSource()) else config.source,
        "reference": None
        if isinstance(config.reference, (AppendReference, PrependReference, NoReference))
        else config.reference,
        "query": None
        if isinstance(query, QueryConnector) and query.readout == "tail" and query.layers == (-1,)
        else query,
        "latent": None if latent == LatentConnector() else latent,
        "schedule": None if config.schedule == FlowSchedule() else config.schedule,
    }
    if found := [f"{name} = {value}" for name, value in wrong.items() if value is not None]:
        raise CheckpointError(
            "the published code cannot express this model",
            got="; ".join(found),
            wanted="AddSource with SigmaScale, appended, prepended or no references, both connectors reading the last "
            "layer, queries read at the tail (query.readout=tail), shift 5",
            fix="keep the model folder, or train with these choices",
        )


def text_embedding(dim: int, dtype: torch.dtype) -> State:
    """Zeros in the place of Wan's text embedding, for formats that have one; names without `dit.`."""
    shapes = {"0.weight": (dim, TEXT_DIM), "0.bias": (dim,), "2.weight": (dim, dim), "2.bias": (dim,)}
    return {f"{TEXT_EMBEDDING}{name}": torch.zeros(shape, dtype=dtype) for name, shape in shapes.items()}
