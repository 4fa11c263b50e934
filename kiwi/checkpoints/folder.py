"""Model folders: config.json (the choices), model.safetensors, and mllm/ and vae/ unless config.json names them.

model.safetensors holds what is not in the pretrained models that config.json names: the editor's own parts, and
adapters. A named model is recorded with its fingerprint, and loading refuses another model in its place.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kiwi import __version__
from kiwi.checkpoints.folder_config import FORMAT, absolute_path, map_paths, read_folder_config, unexpected_files
from kiwi.errors import CheckpointError
from kiwi.media.files import atomic_folder, write_json
from kiwi.models.config import PARTS, KiwiConfig
from kiwi.models.dit.base import NewBase, WanBase
from kiwi.models.kiwi import KiwiEdit
from kiwi.models.mllm.encoder import QwenVL
from kiwi.models.sampling import EditingDefaults
from kiwi.models.vae.wan import WanVae
from kiwi.spec import diff, to_dict
from kiwi.weights.adapters import is_adapter, split_adapters, without_base_layer
from kiwi.weights.files import read_weights, write_weights
from kiwi.weights.hub import locate
from kiwi.weights.strict import compare_shapes, fingerprint, load_preserving_requires_grad, shapes_of

log = logging.getLogger(__name__)


def names_to_save(config: KiwiConfig, names: Iterable[str]) -> list[str]:
    """Those of a KiwiEdit's tensor names that are not in the pretrained models which its configuration names."""

    def is_saved(name: str) -> bool:
        part, _, rest = name.partition(".")
        if part == "dit":
            return isinstance(config.dit.base, NewBase) or config.dit.tuning.is_trainable(rest)
        if part == "mllm":
            return rest.startswith("model.language_model.") and config.mllm.tuning.is_trainable(rest)
        return part in PARTS

    return [name for name in names if is_saved(name)]


def save_pretrained(
    model: KiwiEdit,
    folder: Path | str,
    editing: EditingDefaults,
    *,
    self_contained: bool = True,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a model folder; a model in its place is replaced as a whole.

    Args:
        model: the editor.
        folder: created if needed; its parent must exist.
        editing: the defaults of `kiwi edit` for this model.
        self_contained: copy VAE, MLLM and the DiT's base model into the folder; otherwise config.json names their
            absolute paths. Hub ids stay names, and untrained parts are always copied.
        dtype: of the editor's own weights in the file; None keeps theirs. VAE and MLLM always keep theirs.

    Raises:
        InputError: the folder cannot be written, or holds files that are not a model's; these are kept.
    """
    config = model.config
    if _must_copy(config.dit.base, self_contained) or config.dit.tuning.is_trainable(""):
        config = config.replace(dit=config.dit.replace(base=NewBase()))
    tensors = model.state_dict()
    state = {name: tensors[name].to(dtype or tensors[name].dtype) for name in names_to_save(config, tensors)}
    bases = {"vae": model.vae.fingerprint, "mllm": model.mllm.fingerprint}
    if isinstance(config.dit.base, WanBase):
        bases["dit"] = _base_fingerprint(model)
    savers: dict[str, Callable[[Path], None]] = {}
    for part in ("vae", "mllm"):
        if _must_copy(getattr(config, part), self_contained):
            savers[part] = getattr(model, part).save
            del bases[part]
    write_folder(folder, config, editing, state, bases, savers)


def write_folder(
    folder: Path | str,
    config: KiwiConfig,
    editing: EditingDefaults,
    state: Mapping[str, Tensor],
    bases: Mapping[str, str],
    savers: Mapping[str, Callable[[Path], None]],
) -> None:
    """Write a model folder from its pieces, as a whole or not at all.

    Args:
        folder: created if needed; its parent must exist.
        config: the choices; the paths of parts in `savers` become those of the copies.
        editing: the defaults of `kiwi edit`.
        state: the content of model.safetensors.
        bases: fingerprints of the pretrained parts that stay outside.
        savers: for "vae" and "mllm", a function that writes a copy into a folder.

    Raises:
        InputError: the folder cannot be written, or holds files that are not a model's; these are kept.
    """
    config = map_paths(config, absolute_path)
    with atomic_folder(folder, unexpected_files) as new:
        for part, save in savers.items():
            save(new / part)
        if "vae" in savers:
            config = config.replace(vae=WanVae(path="./vae", tiling=config.vae.tiling))
        if "mllm" in savers:
            dtype = config.mllm.dtype if isinstance(config.mllm, QwenVL) else "float32"
            mllm = QwenVL(path="./mllm", dtype=dtype, limits=config.mllm.limits, tuning=config.mllm.tuning)
            config = config.replace(mllm=mllm)
        write_weights(state, new)
        record = {"format": FORMAT, "kiwi": __version__, "config": to_dict(config), "editing": to_dict(editing)}
        write_json(new / "config.json", {**record, "bases": dict(bases)})


def from_pretrained(folder: Path | str) -> tuple[KiwiEdit, EditingDefaults]:
    """Load a model folder strictly, with the dtypes its weights were saved in (float16 is loaded as float32).

    Args:
        folder: a local model folder, or the id of a hub repository that holds one.

    Raises:
        CheckpointError: no such folder, not a model folder, weights that do not match its config.json, or another
            pretrained part than the one it was saved with.
    """
    folder = _locate_model_folder(folder)
    config, editing, bases = read_folder_config(folder)
    model = KiwiEdit(config, empty=True)
    _require_same_bases(model, bases, folder)
    state, tensors = read_weights(folder), model.state_dict()
    expected = shapes_of({name: tensors[name] for name in names_to_save(config, tensors)})
    compare_shapes(expected, shapes_of(state)).raise_if_any(str(folder))
    # Copied, because a memory-mapped tensor becomes invalid when something writes to its file.
    state = {name: t.float() if t.dtype == torch.float16 else t.clone() for name, t in state.items()}
    load_preserving_requires_grad(model, state, assign=True)
    return model, editing


def load_initial_weights(model: KiwiEdit, folder: Path | str) -> None:
    """Load the weights of a model folder into a model that is trained further, such as the next stage of training.

    Every tensor of the folder must have a place in the model. The folder may lack adapters of the model, which keep
    their initial values, and weights of pretrained models that it was saved with (a DiT that was frozen before).

    Args:
        model: with its initial weights.
        folder: the model folder, or a hub id.

    Raises:
        CheckpointError: weights that cannot be read or do not match, or another pretrained part.
    """
    folder = _locate_model_folder(folder)
    record, tensors = read_folder_config(folder), model.state_dict()
    _require_same_bases(model, record.bases, folder)
    _check_differences(record.config, model.config, folder)
    places = {without_base_layer(name): name for name in tensors if not is_adapter(name)} | {n: n for n in tensors}
    state = {places.get(name, name): tensor for name, tensor in read_weights(folder).items()}
    same_base = "dit" in record.bases  # the fingerprints are equal, wherever the weights lie
    optional = {
        name
        for name in tensors.keys() - state.keys()
        if is_adapter(name) or (same_base and name.startswith("dit.")) or name.startswith("mllm.")
    }
    required = {*names_to_save(model.config, tensors), *(state.keys() & tensors.keys())} - optional
    expected = shapes_of({name: tensors[name] for name in required})
    compare_shapes(expected, shapes_of(state)).raise_if_any(str(folder))
    load_preserving_requires_grad(model, state, assign=False)


def _locate_model_folder(folder: Path | str) -> Path:
    return locate(str(folder), "model folder", "name a folder with config.json and model.safetensors")


def _check_differences(saved: KiwiConfig, config: KiwiConfig, folder: Path) -> None:
    """Refuse different sizes that shapes do not show; log the other choices that change."""
    ignored = ("vae", "mllm", "dit.tuning", "dit.base", "dit.activations")
    changed = {path: values for path, values in diff(saved, config).items() if not path.startswith(ignored)}
    if wrong := sorted(changed.keys() & {"dit.num_heads", "dit.eps", "dit.freq_dim"}):
        expected, got = changed[wrong[0]]
        raise CheckpointError(
            f"{folder} was trained with another {wrong[0]}", code="mismatched-config", got=got, expected=expected
        )
    for path, (before, now) in changed.items():
        log.warning("%s was trained with %s = %s; training continues with %s", folder, path, before, now)


def _require_same_bases(model: KiwiEdit, bases: Mapping[str, str], folder: Path) -> None:
    """Refuse a model whose pretrained parts are not those that a folder was saved with."""
    fingerprints = {"vae": model.vae.fingerprint, "mllm": model.mllm.fingerprint}
    if "dit" in bases:
        fingerprints["dit"] = _base_fingerprint(model)
    for part, expected in bases.items():
        if fingerprints[part] != expected:
            spec = model.config.dit.base if part == "dit" else getattr(model.config, part)
            raise CheckpointError(
                f"the {part} {getattr(spec, 'path', '')!r} is not the one that {folder} was saved with",
                code="different-base-model",
                got=f"fingerprint {fingerprints[part][:12] or 'of new weights'}",
                expected=expected[:12],
                fix="restore the version that the folder was saved with",
            )


def _base_fingerprint(model: KiwiEdit) -> str:
    """The fingerprint of the DiT's base weights, with or without adapters attached."""
    weights, _ = split_adapters(model.dit.state_dict())
    return fingerprint({without_base_layer(name): tensor for name, tensor in weights.items()})


def _must_copy(spec: Any, self_contained: bool) -> bool:
    """Whether a part must be copied: it has new weights, or a path that need not exist elsewhere."""
    path = getattr(spec, "path", None)
    return path is None or (self_contained and Path(path).exists())
