"""config.json of a model folder, and which files belong to a model folder."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from kiwi.errors import CheckpointError, KiwiError
from kiwi.media.files import resolve_inside
from kiwi.models.config import KiwiConfig
from kiwi.models.dit.base import WanBase
from kiwi.models.mllm.encoder import QwenVL
from kiwi.models.sampling import EditingDefaults
from kiwi.models.vae.wan import WanVae
from kiwi.spec import from_dict

FORMAT = 1

_SUBFOLDERS = (
    "mllm", "vae", "transformer", "scheduler", "mllm_encoder", "source_embedder", "ref_embedder", "processor",
)  # fmt: skip
"""Of a model folder and of a published diffusers folder."""

_TOP_LEVEL_FILE = re.compile(
    r"config\.json|model_index\.json|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
)
# Which files a part has is up to the libraries that write it, and changes with their versions.
_PART_FILE = re.compile(r".+\.(json|safetensors|jinja)|merges\.txt")


class FolderConfig(NamedTuple):
    """The content of a model folder's config.json."""

    config: KiwiConfig
    editing: EditingDefaults
    bases: dict[str, str]
    """Fingerprint of each pretrained part that lies outside the folder."""


def read_folder_config(folder: Path) -> FolderConfig:
    """Read config.json of a model folder; paths in it that start with ./ become absolute.

    Raises:
        CheckpointError: not a model folder, another format, or choices that do not exist.
    """
    file = folder / "config.json"
    content = read_json_or_empty(file)
    if content.get("format") != FORMAT or not {"config", "editing"} <= content.keys():
        labels = [content[name] for name in ("format", "_class_name", "model_type") if name in content]
        raise CheckpointError(
            f"{folder} is not a model folder",
            code="not-a-model-folder",
            got=labels[0] if labels else "no config.json, or one that cannot be read",
            expected=f"a config.json of format {FORMAT} that `kiwi fit` wrote",
        )
    try:
        config: KiwiConfig = from_dict(KiwiConfig, content["config"])
        editing: EditingDefaults = from_dict(EditingDefaults, content["editing"])
    except (KiwiError, RecursionError) as problem:
        raise CheckpointError(f"{file} is invalid: {problem}", code="invalid-model-config") from problem
    bases = content.get("bases", {})
    outside = {"vae", "mllm", "dit"} if isinstance(config.dit.base, WanBase) else {"vae", "mllm"}
    if (
        not isinstance(bases, dict)
        or not bases.keys() <= outside
        or not all(isinstance(value, str) for value in bases.values())
    ):
        raise CheckpointError(
            f"{file} is invalid: bases",
            code="invalid-model-config",
            got=bases,
            expected=f"fingerprints of some of {', '.join(sorted(outside))}",
        )

    def absolute(path: str) -> str:
        return str(resolve_inside(folder, path, f"path in {file}")) if path.startswith("./") else path

    return FolderConfig(map_paths(config, absolute), editing, bases)


def pretrained_paths(folder: Path | str) -> list[Path]:
    """Where the pretrained parts lie that a model folder names, including those inside it."""
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
    """Files that are not part of a model folder or a published one and would be lost if a model replaced the folder.

    Args:
        folder: an existing folder.

    Returns:
        Names in it, sorted, such as "notes.txt" or "mllm/notes.txt"; all names if the folder holds no model.
    """
    entries = sorted(folder.iterdir())
    pipeline = str(read_json_or_empty(folder / "model_index.json").get("_class_name"))
    if not is_model_folder(folder) and "KiwiEditPipeline" not in pipeline:
        return [entry.name for entry in entries]
    names = []
    for entry in entries:
        if entry.is_dir() and entry.name in _SUBFOLDERS:
            inner = (file for file in sorted(entry.iterdir()) if file.is_dir() or not _PART_FILE.fullmatch(file.name))
            names += [f"{entry.name}/{file.name}" for file in inner]
        elif entry.is_dir() or not _TOP_LEVEL_FILE.fullmatch(entry.name):
            names.append(entry.name)
    return names


def read_json_or_empty(file: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if the file does not hold one."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def absolute_path(path: str) -> str:
    """A path from the working folder as config.json records it: "./" means the model folder there. Hub ids stay."""
    is_path = path.startswith("./") or Path(path).exists()
    return os.path.abspath(path) if is_path else path  # noqa: PTH100  (a link to a larger disk stays a link)


def map_paths(config: KiwiConfig, change: Callable[[str], str]) -> KiwiConfig:
    """The configuration with the paths (or hub ids) of pretrained parts changed."""

    def with_path(spec: Any) -> Any:
        path = getattr(spec, "path", "")
        return spec.replace(path=change(path)) if path else spec

    dit = config.dit.replace(base=with_path(config.dit.base))
    return config.replace(dit=dit, vae=with_path(config.vae), mllm=with_path(config.mllm))
