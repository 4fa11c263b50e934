"""Model folders, strict loading with a readable report, and the names of the published files.

A model folder holds config.json (the choices), model.safetensors (DiT, connectors, queries, injection),
and mllm/ and vae/ unless those are named by hub id or path in config.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kiwi import __version__
from kiwi.errors import CheckpointError, KiwiError
from kiwi.media.files import atomic_folder, resolve_inside, write_json
from kiwi.models.hub import is_hub_id
from kiwi.models.kiwi import KiwiConfig, KiwiEdit
from kiwi.models.mllm import QwenVL
from kiwi.models.sampling import EditingDefaults
from kiwi.models.vae import WanVae
from kiwi.spec import from_dict, to_dict

FORMAT = 1
TRAINED_PARTS = ("dit", "query", "latent", "source", "reference")
"""The parts of KiwiEdit that model.safetensors holds; VAE and MLLM are frozen and lie beside it."""

_PUBLISHED_NAMES = {
    "vae_condition.": "source.",
    "ref_vae_condition.": "reference.",
    "mllm.connetor.": "query.connector.",
    "mllm.ref_connector.": "latent.connector.",
    "mllm.image_queries.q": "query.queries.image",
    "mllm.video_queries.q": "query.queries.video",
    "mllm.ref_queries.q": "query.queries.reference",
}
_NEVER_APPLIED = "dit.text_embedding."
"""Wan's own text embedding is in the published files, but the context enters cross-attention directly."""


def from_published_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a published training checkpoint under this package's names (prefix `pipe.` already removed)."""
    renamed = {}
    for name, tensor in state.items():
        if name.startswith(_NEVER_APPLIED):
            continue
        prefix = next((old for old in _PUBLISHED_NAMES if name.startswith(old)), None)
        renamed[name if prefix is None else _PUBLISHED_NAMES[prefix] + name.removeprefix(prefix)] = tensor
    return renamed


def load_strict(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load every tensor of the module, or none.

    Args:
        module: the target.
        state: name to tensor.
        what: where the weights come from, for the message.

    Raises:
        CheckpointError: with every missing, unexpected and misshapen name (the first ten of each kind).
    """
    own = module.state_dict()
    shapes = {k: (tuple(state[k].shape), tuple(own[k].shape)) for k in own.keys() & state.keys()}
    problems = {
        "missing": sorted(own.keys() - state.keys()),
        "unexpected": sorted(state.keys() - own.keys()),
        "of another shape": [f"{k} is {a}, not {b}" for k, (a, b) in sorted(shapes.items()) if a != b],
    }
    if any(problems.values()):
        listed = [
            f"{len(n)} {kind} ({', '.join(n[:10])}{', ...' if len(n) > 10 else ''})"
            for kind, n in problems.items()
            if n
        ]
        raise CheckpointError(
            f"the weights of {what} do not fit the model",
            got="; ".join(listed),
            wanted=f"{len(own)} tensors, all of them and no others",
            fix="build the model with the configuration that the weights were saved with (config.json beside them)",
        )
    module.load_state_dict(dict(state))


def trained_state(model: KiwiEdit) -> dict[str, Tensor]:
    """The tensors that model.safetensors holds, on the CPU."""
    state = model.state_dict()
    return {k: v.detach().cpu().contiguous() for k, v in state.items() if k.split(".")[0] in TRAINED_PARTS}


def save_pretrained(
    model: KiwiEdit, folder: Path | str, editing: EditingDefaults, *, self_contained: bool = True
) -> None:
    """Write a model folder; what stood there before is replaced as a whole.

    Args:
        model: the editor.
        folder: made if need be; its parent must exist.
        editing: what `kiwi edit` takes as defaults.
        self_contained: copy VAE and MLLM into the folder; else config.json names the paths they came from. Parts
            named by hub id, and untrained ones, are not affected: the first stay names, the second are always copied.
    """
    config = model.config
    # As a whole or not at all: a kill while writing must not mix two models in one folder.
    with atomic_folder(folder) as new:
        if _must_copy(config.vae, self_contained):
            model.vae.save(new / "vae")
            config = config.replace(vae=WanVae(path="./vae"))
        if _must_copy(config.mllm, self_contained):
            model.mllm.save(new / "mllm")
            mllm = QwenVL(path="./mllm", dtype="float32", limits=config.mllm.limits)
            if model.mllm.model.dtype == torch.bfloat16:
                mllm = mllm.replace(dtype="bfloat16")
            config = config.replace(mllm=mllm)
        save_file(trained_state(model), new / "model.safetensors", metadata={"format": "pt", "kiwi": __version__})
        record = {"format": FORMAT, "kiwi": __version__, "config": to_dict(config), "editing": to_dict(editing)}
        write_json(new / "config.json", record)


def from_pretrained(folder: Path | str) -> tuple[KiwiEdit, EditingDefaults]:
    """Load a model folder, strictly.

    Args:
        folder: a local model folder, or the id of a hub repository that holds one.

    Raises:
        CheckpointError: no such folder, not a model folder, or weights that do not fit its config.json.
    """
    folder = _locate(str(folder))
    record = _read_record(folder / "config.json")
    try:
        config: KiwiConfig = from_dict(KiwiConfig, record["config"])
        editing: EditingDefaults = from_dict(EditingDefaults, record["editing"])
    except KiwiError as problem:
        raise CheckpointError(f"{folder / 'config.json'} does not describe a model: {problem}") from problem
    model = KiwiEdit(_absolute(config, folder))
    load_trained(model, folder / "model.safetensors")
    return model, editing


def load_trained(model: KiwiEdit, file: Path) -> None:
    """Load model.safetensors of a model folder into a model, strictly."""
    try:
        state = load_file(file)
    except (OSError, SafetensorError) as problem:
        raise CheckpointError(
            f"the weights {file} cannot be read", got=problem, fix="copy or download the file again"
        ) from problem
    parts = nn.ModuleDict({part: getattr(model, part) for part in TRAINED_PARTS})
    load_strict(parts, state, str(file))


def _must_copy(spec: Any, self_contained: bool) -> bool:
    path = getattr(spec, "path", None)
    return path is None or (self_contained and Path(path).exists())


def _locate(folder: str) -> Path:
    local = Path(folder)
    if local.is_dir():
        return local
    if local.exists() or not is_hub_id(folder):
        raise CheckpointError(
            f"there is no model folder {folder}", wanted="a folder with config.json and model.safetensors, or a hub id"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(folder, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as problem:
        raise CheckpointError(
            f"there is no model folder {folder}, and no such repository could be fetched from the hub",
            got=str(problem).strip().splitlines()[0],
            fix="check the path, or the id and the network",
        ) from problem


def _read_record(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise CheckpointError(
            f"{file.parent} is not a model folder", got=problem, wanted="a config.json that `kiwi fit` wrote"
        ) from problem
    if not isinstance(record, dict) or record.get("format") != FORMAT or not {"config", "editing"} <= record.keys():
        got = record.get("format") if isinstance(record, dict) else type(record).__name__
        raise CheckpointError(f"{file} is not of a known format", got=got, wanted=f"format {FORMAT}")
    return record


def _absolute(config: KiwiConfig, folder: Path) -> KiwiConfig:
    """Paths in config.json that start with ./ lie in the model folder."""
    parts = {}
    for name in ("vae", "mllm"):
        spec = getattr(config, name)
        path = getattr(spec, "path", "")
        if path.startswith("./"):
            parts[name] = spec.replace(path=str(resolve_inside(folder, path, f"the {name} of {folder}")))
    return config.replace(**parts)
