"""Model folders: config.json, model.safetensors, and mllm/ and vae/ unless config.json references them by path.

model.safetensors holds what the referenced pretrained models do not: the editor's own parts and adapters. config.json
records the fingerprints of referenced models, and loading raises an error if their weights are different.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kiwi import __version__
from kiwi.checkpoints.folder_config import (
    FORMAT_VERSION,
    list_unexpected_files,
    make_path_absolute,
    map_paths,
    read_folder_config,
)
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
from kiwi.weights.headers import require_plausible_sizes
from kiwi.weights.hub import locate
from kiwi.weights.strict import compare_shapes, fingerprint, load_preserving_requires_grad, shapes_of

log = logging.getLogger(__name__)


def select_saved_names(config: KiwiConfig, names: Iterable[str]) -> list[str]:
    """Select the tensor names of a KiwiEdit that belong in model.safetensors, not in referenced pretrained models."""

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
    """Write a model folder; an existing model folder is replaced.

    Args:
        model: the editor.
        folder: created if missing; its parent must exist.
        editing: defaults of `kiwi edit` for this model.
        self_contained: copy VAE, MLLM and the DiT's base model into the folder; otherwise config.json references their
            absolute paths. Hub ids are always referenced, and randomly initialised parts always copied.
        dtype: dtype for the editor's own weights; None keeps theirs. VAE and MLLM always keep theirs.

    Raises:
        InputError: the folder cannot be written, or contains unrelated files, which are kept.
    """
    config = model.config
    if must_copy(config.dit.base, self_contained) or config.dit.tuning.is_trainable(""):
        config = config.replace(dit=config.dit.replace(base=NewBase()))
    tensors = model.state_dict()
    state = {name: tensors[name].to(dtype or tensors[name].dtype) for name in select_saved_names(config, tensors)}
    copied = [part for part in ("vae", "mllm") if must_copy(getattr(config, part), self_contained)]
    referenced = [part for part in ("vae", "mllm") if part not in copied]
    referenced += ["dit"] if isinstance(config.dit.base, WanBase) else []
    savers = {part: getattr(model, part).save for part in copied}
    write_folder(folder, config, editing, state, _compute_fingerprints(model, referenced), savers)


def write_folder(
    folder: Path | str,
    config: KiwiConfig,
    editing: EditingDefaults,
    state: Mapping[str, Tensor],
    base_fingerprints: Mapping[str, str],
    savers: Mapping[str, Callable[[Path], None]],
) -> None:
    """Write a model folder atomically; it raises the errors of `save_pretrained`.

    Args:
        folder, editing: as in `save_pretrained`.
        config: configuration of the model; the paths of parts in `savers` are replaced by those of the copies.
        state: tensors of model.safetensors.
        base_fingerprints: fingerprints of the weights of pretrained parts that are referenced instead of copied.
        savers: functions that write a copy of "vae" or "mllm" into a folder.
    """
    config = map_paths(config, make_path_absolute)
    with atomic_folder(folder, list_unexpected_files) as new:
        for part, save in savers.items():
            save(new / part)
        if "vae" in savers:
            config = config.replace(vae=WanVae(path="./vae", tiling=config.vae.tiling))
        if "mllm" in savers:
            dtype = config.mllm.dtype if isinstance(config.mllm, QwenVL) else "float32"
            mllm = QwenVL(path="./mllm", dtype=dtype, limits=config.mllm.limits, tuning=config.mllm.tuning)
            config = config.replace(mllm=mllm)
        write_weights(state, new)
        record = {"format": FORMAT_VERSION, "kiwi": __version__, "config": to_dict(config), "editing": to_dict(editing)}
        write_json(new / "config.json", {**record, "bases": dict(base_fingerprints)})


def from_pretrained(folder: Path | str) -> tuple[KiwiEdit, EditingDefaults]:
    """Load a model folder (a path or a hub id) strictly, in the dtypes of its weights; float16 is loaded as float32.

    Raises:
        CheckpointError: the folder does not exist or is not a model folder, its weights do not match its config.json,
            or a referenced pretrained model differs from the one it was saved with.
    """
    folder = _locate_model_folder(folder)
    config, editing, base_fingerprints = read_folder_config(folder)
    _require_buildable(folder, config)
    model = KiwiEdit(config, empty=True)
    _check_base_fingerprints(model, base_fingerprints, folder)
    state, tensors = read_weights(folder), model.state_dict()
    expected = shapes_of({name: tensors[name] for name in select_saved_names(config, tensors)})
    compare_shapes(expected, shapes_of(state)).raise_if_any(str(folder))
    # Cloned, because memory-mapped tensors become invalid if their file is overwritten.
    state = {name: t.float() if t.dtype == torch.float16 else t.clone() for name, t in state.items()}
    load_preserving_requires_grad(model, state, assign=True)
    return model, editing


def describe_folder(folder: Path | str) -> tuple[str, EditingDefaults]:
    """Compute the fingerprint of a model folder (a path or a hub id) without building the model; read its defaults.

    The fingerprint covers the configuration apart from the places of pretrained parts, and all weights; those of
    referenced parts are known by the fingerprints that the folder was saved with.

    Raises:
        CheckpointError: it is not a model folder, or weights cannot be read.
    """
    folder = _locate_model_folder(folder)
    config, editing, base_fingerprints = read_folder_config(folder)
    parts = {"": fingerprint(read_weights(folder)), **base_fingerprints}
    for part, spec in {"vae": config.vae, "mllm": config.mllm, "dit": config.dit.base}.items():
        if (path := getattr(spec, "path", None)) is not None and part not in parts:
            found = locate(path, part.upper(), "correct the path", subfolder=getattr(spec, "subfolder", ""))
            parts[part] = fingerprint(read_weights(found))
    record = {"config": to_dict(map_paths(config, lambda path: Path(path).name)), "parts": parts}
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest(), editing


def _require_buildable(folder: Path, config: KiwiConfig) -> None:
    """Raise if building the model could take all memory: a part is not saved, or a size exceeds the weights'."""
    for part in ("vae", "mllm"):
        if getattr(spec := getattr(config, part), "path", None) is None:
            raise CheckpointError(
                f"the config.json of {folder} has no path for the {part}",
                code="invalid-model-config",
                got=type(spec).__name__,
                expected="a copy in the folder, or the path or hub id of one",
            )
    others = []
    if isinstance(base := config.dit.base, WanBase):
        others = [locate(base.path, "Wan base model", "correct the path", subfolder=base.subfolder)]
    require_plausible_sizes(to_dict(config), folder, *others)


def load_initial_weights(model: KiwiEdit, folder: Path | str) -> None:
    """Load the weights of a model folder into a model for further training, such as the next training stage.

    Every tensor of the folder (a path or a hub id) must exist in the model. The folder may lack the model's adapters,
    which keep their initial values, and weights of pretrained models that it references (such as a DiT that was frozen
    before).

    Raises:
        CheckpointError: the weights cannot be read or do not match, or a pretrained part is different.
    """
    folder = _locate_model_folder(folder)
    record, tensors = read_folder_config(folder), model.state_dict()
    _check_base_fingerprints(model, record.base_fingerprints, folder)
    _check_differences(record.config, model.config, folder)
    model_names = {without_base_layer(name): name for name in tensors if not is_adapter(name)} | {n: n for n in tensors}
    state = {model_names.get(name, name): tensor for name, tensor in read_weights(folder).items()}
    same_base = "dit" in record.base_fingerprints  # the fingerprints are equal
    referenced_parts = ("mllm.", "dit.") if same_base else ("mllm.",)
    absent = tensors.keys() - state.keys()
    optional = {name for name in absent if is_adapter(name) or name.startswith(referenced_parts)}
    required = {*select_saved_names(model.config, tensors), *(state.keys() & tensors.keys())} - optional
    expected = shapes_of({name: tensors[name] for name in required})
    compare_shapes(expected, shapes_of(state)).raise_if_any(str(folder))
    load_preserving_requires_grad(model, state, assign=False)


def _locate_model_folder(folder: Path | str) -> Path:
    return locate(str(folder), "model folder", "pass a folder with config.json and model.safetensors")


def _check_differences(saved: KiwiConfig, config: KiwiConfig, folder: Path) -> None:
    """Raise if sizes that shapes do not show differ; log a warning for each other option that differs."""
    ignored = ("vae", "mllm", "dit.tuning", "dit.base", "dit.activations")
    changed = {path: values for path, values in diff(saved, config).items() if not path.startswith(ignored)}
    if mismatched := sorted(changed.keys() & {"dit.num_heads", "dit.eps", "dit.freq_dim"}):
        expected, got = changed[mismatched[0]]
        problem = f"{mismatched[0]} of the model differs from that of {folder}"
        raise CheckpointError(problem, code="mismatched-config", got=got, expected=expected)
    for path, (saved_value, new_value) in changed.items():
        log.warning("%s was trained with %s = %s; training continues with %s", folder, path, saved_value, new_value)


def _check_base_fingerprints(model: KiwiEdit, base_fingerprints: Mapping[str, str], folder: Path) -> None:
    """Raise if the pretrained parts of a model differ from those that a folder was saved with."""
    for part, actual in _compute_fingerprints(model, base_fingerprints).items():
        if actual != (expected := base_fingerprints[part]):
            spec = model.config.dit.base if part == "dit" else getattr(model.config, part)
            raise CheckpointError(
                f"the {part} {getattr(spec, 'path', '')!r} is not the one that {folder} was saved with",
                code="mismatched-base-model",
                got=f"weights with fingerprint {actual[:12]}" if actual else "randomly initialised weights",
                expected=f"weights with fingerprint {expected[:12]}",
                fix="restore the version that the folder was saved with",
            )


def _compute_fingerprints(model: KiwiEdit, parts: Collection[str]) -> dict[str, str]:
    """Compute the fingerprints of the pretrained weights of some parts; attached adapters do not change them."""
    fingerprints = {"vae": model.vae.fingerprint, "mllm": model.mllm.fingerprint}
    if "dit" in parts:
        weights, _ = split_adapters(model.dit.state_dict())
        fingerprints["dit"] = fingerprint({without_base_layer(name): tensor for name, tensor in weights.items()})
    return {part: fingerprints[part] for part in parts}


def must_copy(spec: Any, self_contained: bool) -> bool:
    """Whether to copy a part: it has no path, or `self_contained` is set and its path is local."""
    path = getattr(spec, "path", None)
    return path is None or (self_contained and Path(path).exists())
