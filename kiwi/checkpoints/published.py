"""The published training checkpoint: one safetensors file with what was trained, names that start with `pipe.`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from kiwi.checkpoints.assemble import Origin, Report, assemble
from kiwi.checkpoints.folder import read_record
from kiwi.errors import CheckpointError
from kiwi.media.files import atomic_path
from kiwi.models.base import WanBase
from kiwi.models.config import KiwiConfig
from kiwi.models.connectors import LatentConnector, QueryConnector
from kiwi.models.injection import AddSource, AppendReference, NoReference, NoSource, PrependReference
from kiwi.models.scaling import SigmaScale
from kiwi.weights.adapters import without_base_layer
from kiwi.weights.files import State, read_weights
from kiwi.weights.names import TEXT_EMBEDDING, from_published, to_published, without_prefix

TEXT_DIM = 4096
"""Width of Wan's text features; the published files hold a text embedding that is never applied."""


def import_published(file: Path, origin: Origin, folder: Path, report: Report) -> None:
    """A published training checkpoint as a model folder.

    Raises:
        CheckpointError: not such a file, or tensors that do not fit; see `assemble`.
    """
    assemble(from_published_state(read_weights(file), report), origin, folder, report)


def from_published_state(state: Mapping[str, Tensor], report: Report = lambda part, text: None) -> State:
    """Tensors of a training checkpoint under our names, whatever prefix it kept; `text_embedding` is left out."""
    short = without_prefix(state)
    renamed = {from_published(short[name]): tensor for name, tensor in state.items()}
    if len(renamed) < len(state):
        raise CheckpointError("the checkpoint names a tensor twice", got=f"{len(state)} names for {len(renamed)}")
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
        CheckpointError: choices that the published code does not have.
    """
    record = read_record(folder)
    require_expressible(record.config)
    state = read_weights(folder)
    named = {f"pipe.{to_published(without_base_layer(name))}": tensor for name, tensor in state.items()}
    if isinstance(record.config.dit.base, WanBase):
        report("dit", f"adapters only: whoever loads the file needs {record.config.dit.base.path}")
    else:
        zeros = text_embedding(record.config.dit.dim, state["dit.patch_embedding.weight"].dtype)
        named |= {f"pipe.dit.{name}": tensor for name, tensor in zeros.items()}
        report("text_embedding", "4 tensors of zeros: the format has them, nothing applies them")
    if file.suffix != ".safetensors":
        raise CheckpointError(f"cannot write {file}", wanted="a name ending in .safetensors")
    with atomic_path(file) as temporary:
        save_file({name: tensor.to(dtype or tensor.dtype) for name, tensor in named.items()}, temporary)
    for part in ("vae", "mllm"):
        report(part, f"not part of the format; it is {getattr(getattr(record.config, part), 'path', 'in the folder')}")
    order = {PrependReference: "prepended", AppendReference: "appended"}.get(type(record.config.reference))
    if order:
        report("reference", f"{order}, which the format does not say")


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
        "schedule.shift": None if config.schedule.shift == 5.0 else config.schedule.shift,
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
