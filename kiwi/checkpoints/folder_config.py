"""The config.json of a model folder, and the list of files that belong to a model folder."""

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
from kiwi.weights.files import read_json

FORMAT_VERSION = 1

_SUBFOLDERS = (
    "mllm", "vae", "transformer", "scheduler", "mllm_encoder", "source_embedder", "ref_embedder", "processor",
)  # fmt: skip
"""Subfolders of model folders and of published diffusers folders."""

_TOP_LEVEL_FILE = re.compile(
    r"config\.json|model_index\.json|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
)
# The exact file names of a part depend on the versions of diffusers and transformers, which write them.
_PART_FILE = re.compile(r".+\.(json|safetensors|jinja)|merges\.txt")


class FolderConfig(NamedTuple):
    """The content of a model folder's config.json."""

    config: KiwiConfig
    editing: EditingDefaults
    base_fingerprints: dict[str, str]
    """Fingerprint of the weights of each pretrained part that is referenced instead of copied into the folder."""


def read_folder_config(folder: Path) -> FolderConfig:
    """Read config.json of a model folder and make the paths in it that start with ./ absolute.

    Raises:
        CheckpointError: it is not a model folder, has another format version, or its config.json is invalid.
    """
    file = folder / "config.json"
    content = read_json_or_empty(file)
    if content.get("format") != FORMAT_VERSION or not {"config", "editing"} <= content.keys():
        kinds = [f"{key} {content[key]!r}" for key in ("format", "_class_name", "model_type") if key in content]
        raise CheckpointError(
            f"{folder} is not a model folder",
            code="not-a-model-folder",
            got=f"a config.json with {kinds[0]}" if kinds else "a missing or unreadable config.json",
            expected=f"a config.json with format {FORMAT_VERSION}, written by `kiwi fit` or `kiwi convert`",
        )
    try:
        config: KiwiConfig = from_dict(KiwiConfig, content["config"])
        editing: EditingDefaults = from_dict(EditingDefaults, content["editing"])
    except (KiwiError, RecursionError) as error:
        raise CheckpointError(f"{file} is invalid: {error}", code="invalid-model-config") from error
    base_fingerprints = content.get("bases", {})
    base_parts = {"vae", "mllm", "dit"} if isinstance(config.dit.base, WanBase) else {"vae", "mllm"}
    has_known_parts = isinstance(base_fingerprints, dict) and base_fingerprints.keys() <= base_parts
    if not has_known_parts or not all(isinstance(value, str) for value in base_fingerprints.values()):
        expected = f"fingerprints of weights, by part ({', '.join(sorted(base_parts))})"
        problem = f"the field 'bases' of {file} is invalid"
        raise CheckpointError(problem, code="invalid-model-config", got=base_fingerprints, expected=expected)

    def resolve(path: str) -> str:
        return str(resolve_inside(folder, path, f"path in {file}")) if path.startswith("./") else path

    return FolderConfig(map_paths(config, resolve), editing, base_fingerprints)


def list_pretrained_paths(folder: Path | str) -> list[Path]:
    """List the paths of all pretrained parts that a model folder references, including copies inside it."""
    config = read_folder_config(Path(folder)).config
    specs = [spec for spec in (config.vae, config.mllm, config.dit.base) if isinstance(spec, (WanVae, QwenVL, WanBase))]
    return [Path(spec.path) / getattr(spec, "subfolder", "") for spec in specs]


def is_model_folder(path: Path | str) -> bool:
    """Whether the config.json at a path is that of a model folder."""
    config = read_json_or_empty(Path(path) / "config.json").get("config")
    return isinstance(config, dict) and config.get("type") == "KiwiConfig"


def list_unexpected_files(folder: Path) -> list[str]:
    """List the files that do not belong to a model folder or published diffusers folder, so must not be deleted.

    They are sorted names such as "notes.txt" or "mllm/notes.txt"; all names if the folder is of neither kind.
    """
    entries = sorted(folder.iterdir())
    pipeline = str(read_json_or_empty(folder / "model_index.json").get("_class_name"))
    if not is_model_folder(folder) and "KiwiEditPipeline" not in pipeline:
        return [entry.name for entry in entries]
    unexpected = []
    for entry in entries:
        if entry.is_dir() and entry.name in _SUBFOLDERS:
            files = (file for file in sorted(entry.iterdir()) if file.is_dir() or not _PART_FILE.fullmatch(file.name))
            unexpected += [f"{entry.name}/{file.name}" for file in files]
        elif entry.is_dir() or not _TOP_LEVEL_FILE.fullmatch(entry.name):
            unexpected.append(entry.name)
    return unexpected


def read_json_or_empty(file: Path) -> dict[str, Any]:
    """Read the JSON object in a file; return an empty dict if the file cannot be read or holds something else."""
    try:
        return read_json(file)
    except CheckpointError:
        return {}


def make_path_absolute(path: str) -> str:
    """Make a path absolute for config.json, where "./" means the model folder; hub ids are returned unchanged."""
    is_path = path.startswith("./") or Path(path).exists()
    return os.path.abspath(path) if is_path else path  # noqa: PTH100  (unlike Path.resolve, it keeps symbolic links)


def map_paths(config: KiwiConfig, change: Callable[[str], str]) -> KiwiConfig:
    """Apply `change` to the paths (or hub ids) of all pretrained parts in a configuration."""

    def with_path(spec: Any) -> Any:
        path = getattr(spec, "path", "")
        return spec.replace(path=change(path)) if path else spec

    dit = config.dit.replace(base=with_path(config.dit.base))
    return config.replace(dit=dit, vae=with_path(config.vae), mllm=with_path(config.mllm))
