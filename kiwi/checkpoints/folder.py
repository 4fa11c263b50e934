"""Model folders: config.json (the choices), model.safetensors, and mllm/ and vae/ unless config.json names them.

model.safetensors holds what is not in the pretrained models that config.json names: the editor's own parts, and
adapters. A named model is recorded with its fingerprint, and loading refuses another one in its place.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kiwi import __version__
from kiwi.errors import CheckpointError, KiwiError
from kiwi.media.files import atomic_folder, resolve_inside, write_json
from kiwi.models.config import PARTS, KiwiConfig
from kiwi.models.dit.base import NewBase, WanBase
from kiwi.models.kiwi import KiwiEdit
from kiwi.models.mllm.encoder import QwenVL
from kiwi.models.sampling import EditingDefaults
from kiwi.models.vae.wan import WanVae
from kiwi.spec import diff, from_dict, to_dict
from kiwi.weights.adapters import is_adapter, without_base_layer
from kiwi.weights.files import read_weights, write_weights
from kiwi.weights.hub import locate
from kiwi.weights.strict import compare_shapes, fingerprint, shapes_of

log = logging.getLogger(__name__)

FORMAT = 1
FOLDERS = ("mllm", "vae", "transformer", "scheduler", "mllm_encoder", "source_embedder", "ref_embedder", "processor")
"""Of a model folder and of a published one."""

_OF_A_FOLDER = re.compile(
    r"config\.json|model_index\.json|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
)
# Which files a part has is up to the libraries that write it, and changes with their versions.
_OF_A_PART = re.compile(r".+\.(json|safetensors|jinja)|merges\.txt")


class FolderConfig(NamedTuple):
    """What config.json of a model folder says."""

    config: KiwiConfig
    editing: EditingDefaults
    bases: dict[str, str]
    """Fingerprint of each pretrained part that lies outside the folder."""


def names_to_save(config: KiwiConfig, names: Iterable[str]) -> list[str]:
    """Which of a KiwiEdit's tensors are not in the pretrained models that its configuration names."""

    def is_owned(name: str) -> bool:
        part, _, rest = name.partition(".")
        if part == "dit":
            return isinstance(config.dit.base, NewBase) or config.dit.tuning.is_trainable(rest)
        if part == "mllm":
            return rest.startswith("model.language_model.") and config.mllm.tuning.is_trainable(rest)
        return part in PARTS

    return [name for name in names if is_owned(name)]


def save_pretrained(
    model: KiwiEdit,
    folder: Path | str,
    editing: EditingDefaults,
    *,
    self_contained: bool = True,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a model folder; a model that stood there before is replaced as a whole.

    Args:
        model: the editor.
        folder: made if need be; its parent must exist.
        editing: what `kiwi edit` takes as defaults.
        self_contained: copy VAE, MLLM and the DiT's base model into the folder; else config.json names the paths they
            came from, from the root. Hub ids stay names, and untrained parts are always copied.
        dtype: that the editor's own weights are written in, if they are to be of another; VAE and MLLM keep theirs.

    Raises:
        InputError: a folder that cannot be written, or holds other things than a model; they stay.
    """
    config = model.config
    if _is_local(config.dit.base, self_contained) or config.dit.tuning.is_trainable(""):
        config = config.replace(dit=config.dit.replace(base=NewBase()))
    state = model.state_dict()
    mine = {name: state[name].to(dtype or state[name].dtype) for name in names_to_save(config, state)}
    bases = {"vae": model.vae.fingerprint, "mllm": model.mllm.fingerprint}
    if isinstance(config.dit.base, WanBase):
        bases["dit"] = base_fingerprint(model.dit)
    saves: dict[str, Callable[[Path], None]] = {}
    for part in ("vae", "mllm"):
        if _is_local(getattr(config, part), self_contained):
            saves[part] = getattr(model, part).save
            del bases[part]
    write_folder(folder, config, editing, mine, bases, saves)


def write_folder(
    folder: Path | str,
    config: KiwiConfig,
    editing: EditingDefaults,
    state: Mapping[str, Tensor],
    bases: Mapping[str, str],
    saves: Mapping[str, Callable[[Path], None]],
) -> None:
    """Write a model folder from its pieces, as a whole or not at all.

    Args:
        folder: made if need be; its parent must exist.
        config: the choices; parts in `saves` are renamed to the copies.
        editing: defaults of `kiwi edit`.
        state: what model.safetensors holds.
        bases: fingerprints of the parts that stay outside.
        saves: for "vae" and "mllm", what writes a copy into a folder.

    Raises:
        InputError: a folder that cannot be written, or holds other things than a model; they stay.
    """
    config = _with_paths(config, _from_root)
    with atomic_folder(folder, unexpected_files) as new:
        for part, save in saves.items():
            save(new / part)
        if "vae" in saves:
            config = config.replace(vae=WanVae(path="./vae", tiling=config.vae.tiling))
        if "mllm" in saves:
            mllm = QwenVL(path="./mllm", dtype="float32", limits=config.mllm.limits, tuning=config.mllm.tuning)
            if isinstance(config.mllm, QwenVL):
                mllm = mllm.replace(dtype=config.mllm.dtype)
            config = config.replace(mllm=mllm)
        write_weights(state, new)
        record = {"format": FORMAT, "kiwi": __version__, "config": to_dict(config), "editing": to_dict(editing)}
        write_json(new / "config.json", {**record, "bases": dict(bases)})


def from_pretrained(folder: Path | str) -> tuple[KiwiEdit, EditingDefaults]:
    """Load a model folder, strictly, at the types its weights were saved in (float16, a type to store, as float32).

    Args:
        folder: a local model folder, or the id of a hub repository that holds one.

    Raises:
        CheckpointError: no such folder, not a model folder, weights that do not fit its config.json, or a pretrained
            part that is not the one it was made with.
    """
    folder = locate(str(folder), "model folder", "name a folder with config.json and model.safetensors")
    config, editing, bases = read_folder_config(folder)
    model = KiwiEdit(config, empty=True)
    _require_bases(model, bases, folder)
    state, own = read_weights(folder), model.state_dict()
    compare_shapes(shapes_of({name: own[name] for name in names_to_save(config, own)}), shapes_of(state)).raise_if_any(
        str(folder)
    )
    # Copied: tensors mapped from a file die with it when something writes over the file.
    _load(model, {n: t.float() if t.dtype == torch.float16 else t.clone() for n, t in state.items()}, assign=True)
    return model, editing


def load_initial_weights(model: KiwiEdit, folder: Path | str) -> None:
    """Load what a model folder holds into a model that goes on learning from it, another stage of training say.

    All of the folder's tensors must have their place. Of the model's own, those may be absent that are adapters, which
    start anew, and those of pretrained models that the folder was made with too (a DiT that did not learn before).

    Args:
        model: at its initial weights.
        folder: the model folder, or a hub id.

    Raises:
        CheckpointError: weights that cannot be read or do not fit, or a pretrained part that is another one.
    """
    folder = locate(str(folder), "model folder", "name a folder with config.json and model.safetensors")
    record, state, own = read_folder_config(folder), read_weights(folder), model.state_dict()
    _require_bases(model, record.bases, folder)
    _tell_differences(record.config, model.config, folder)
    places = {without_base_layer(name): name for name in own if not is_adapter(name)} | {n: n for n in own}
    state = {places.get(name, name): tensor for name, tensor in state.items()}
    same_base = "dit" in record.bases  # what was required is the same weights, wherever they lie
    absent = {
        name
        for name in own.keys() - state.keys()
        if is_adapter(name) or (same_base and name.startswith("dit.")) or name.startswith("mllm.")
    }
    wanted = [name for name in {*names_to_save(model.config, own), *(state.keys() & own.keys())} if name not in absent]
    compare_shapes(shapes_of({name: own[name] for name in wanted}), shapes_of(state)).raise_if_any(str(folder))
    _load(model, state, assign=False)


def _tell_differences(trained: KiwiConfig, config: KiwiConfig, folder: Path) -> None:
    """Refuse sizes that leave no trace in shapes; say which choices change from here on."""
    changed = {
        path: values for path, values in diff(trained, config).items() if path.split(".")[0] not in ("vae", "mllm")
    }
    meant = {"dit.tuning", "dit.base", "dit.activations"}
    changed = {path: values for path, values in changed.items() if not any(path.startswith(name) for name in meant)}
    if wrong := sorted(changed.keys() & {"dit.num_heads", "dit.eps", "dit.freq_dim"}):
        path = wrong[0]
        raise CheckpointError(
            f"{folder} was trained with another {path}", got=changed[path][1], wanted=changed[path][0]
        )
    for path, (before, now) in changed.items():
        log.warning("%s was trained with %s = %s and goes on with %s", folder, path, before, now)


def _load(model: KiwiEdit, state: Mapping[str, Tensor], *, assign: bool) -> None:
    """Put tensors that were compared before into their places; what learns stays as it is."""
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    model.load_state_dict(state, strict=False, assign=assign)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in learning)


def _require_bases(model: KiwiEdit, bases: Mapping[str, str], folder: Path) -> None:
    """Refuse a model whose pretrained parts are not those that a folder was made with."""
    found = {"vae": model.vae.fingerprint, "mllm": model.mllm.fingerprint}
    if "dit" in bases:
        found["dit"] = base_fingerprint(model.dit)
    for part, wanted in bases.items():
        if found[part] != wanted:
            spec = model.config.dit.base if part == "dit" else getattr(model.config, part)
            raise CheckpointError(
                f"the {part} {getattr(spec, 'path', '')!r} is not the one that {folder} was made with",
                got=f"fingerprint {found[part][:12] or 'of new weights'}",
                wanted=f"{wanted[:12]}",
                fix="restore that version of it",
            )


def read_folder_config(folder: Path) -> FolderConfig:
    """Read config.json of a model folder; paths in it that start with ./ become absolute.

    Raises:
        CheckpointError: not a model folder, another format, or choices that do not exist.
    """
    file = folder / "config.json"
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        wanted = "a config.json that `kiwi fit` wrote"
        raise CheckpointError(f"{folder} is not a model folder", got=problem, wanted=wanted) from problem
    if not isinstance(record, dict) or record.get("format") != FORMAT or not {"config", "editing"} <= record.keys():
        said = record if isinstance(record, dict) else {"format": type(record).__name__}
        got = next((said[name] for name in ("format", "_class_name", "model_type") if name in said), None)
        raise CheckpointError(f"{folder} holds no editor", got=got, wanted=f"a config.json of format {FORMAT}")
    try:
        config: KiwiConfig = from_dict(KiwiConfig, record["config"])
        editing: EditingDefaults = from_dict(EditingDefaults, record["editing"])
    except (KiwiError, RecursionError) as problem:
        raise CheckpointError(f"{file} does not describe a model: {problem}") from problem
    bases = record.get("bases", {})
    outside = {"vae", "mllm", "dit"} if isinstance(config.dit.base, WanBase) else {"vae", "mllm"}
    if (
        not isinstance(bases, dict)
        or not bases.keys() <= outside
        or not all(isinstance(value, str) for value in bases.values())
    ):
        wanted = f"fingerprints of {', '.join(sorted(outside))} at most"
        raise CheckpointError(f"{file} does not describe a model: its bases are wrong", wanted=wanted)
    inside = f"path in {file}"
    config = _with_paths(config, lambda p: str(resolve_inside(folder, p, inside)) if p.startswith("./") else p)
    return FolderConfig(config, editing, bases)


def pretrained_paths(folder: Path | str) -> list[Path]:
    """Where the pretrained parts lie that a model folder names, those in itself among them."""
    config = read_folder_config(Path(folder)).config
    specs = (config.vae, config.mllm, config.dit.base)
    return [
        Path(spec.path) / getattr(spec, "subfolder", "")
        for spec in specs
        if isinstance(spec, (WanVae, QwenVL, WanBase))
    ]


def is_model_folder(path: Path | str) -> bool:
    """Whether a path looks like a model folder of this package."""
    config = read_json_or_empty(Path(path) / "config.json").get("config")
    return isinstance(config, dict) and config.get("type") == "KiwiConfig"


def unexpected_files(folder: Path) -> list[str]:
    """What is lost if a folder makes way for a model: all that is no part of a model folder or a published one.

    Args:
        folder: an existing folder.

    Returns:
        Names in it, sorted, such as "notes.txt" or "mllm/notes.txt"; all of a folder that is neither.
    """
    items = sorted(folder.iterdir())
    if not is_model_folder(folder) and "KiwiEditPipeline" not in str(
        read_json_or_empty(folder / "model_index.json").get("_class_name")
    ):
        return [item.name for item in items]
    found = []
    for item in items:
        if item.is_dir() and item.name in FOLDERS:
            inner = (file for file in sorted(item.iterdir()) if file.is_dir() or not _OF_A_PART.fullmatch(file.name))
            found += [f"{item.name}/{file.name}" for file in inner]
        elif item.is_dir() or not _OF_A_FOLDER.fullmatch(item.name):
            found.append(item.name)
    return found


def read_json_or_empty(file: Path) -> dict[str, Any]:
    """What a JSON file says; nothing if it is not one."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def base_fingerprint(dit: nn.Module) -> str:
    """The fingerprint of a DiT's base weights, whether adapters are beside them or not."""
    state = dit.state_dict()
    return fingerprint({without_base_layer(name): state[name] for name in state if not is_adapter(name)})


def _is_local(spec: Any, self_contained: bool) -> bool:
    """Whether a part must be copied: it came from nowhere, or from a path that need not exist elsewhere."""
    path = getattr(spec, "path", None)
    return path is None or (self_contained and Path(path).exists())


def _from_root(path: str) -> str:
    """A path of the working folder for config.json, where ./ is the model folder, and whose reader may work elsewhere.

    Hub ids stay.
    """
    is_path = path.startswith("./") or Path(path).exists()
    return os.path.abspath(path) if is_path else path  # noqa: PTH100  (a link to a larger disk stays one)


def _with_paths(config: KiwiConfig, change: Callable[[str], str]) -> KiwiConfig:
    """The configuration with the paths (or hub ids) of pretrained parts changed."""

    def changed(spec: Any) -> Any:
        path = getattr(spec, "path", "")
        return spec.replace(path=change(path)) if path else spec

    dit = config.dit.replace(base=changed(config.dit.base))
    return config.replace(dit=dit, vae=changed(config.vae), mllm=changed(config.mllm))
