"""Where pretrained models are found: a local folder, a model shipped with the package, or a repository of the hub."""

from __future__ import annotations

import re
from pathlib import Path, PureWindowsPath

from kiwi import shipped
from kiwi.errors import CheckpointError

_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.jinja"]


def is_hub_id(path: str) -> bool:
    """Whether a path that is not a local folder can be a hub id (owner/name)."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path) is not None


def locate(path: str, kind: str, fix: str, *, subfolder: str = "") -> Path:
    """Find the local folder (or file) of a model; a hub repository is downloaded unless the hub's cache has it.

    Args:
        path: a folder, a file, the name of a shipped model (`kiwi.shipped`), or a hub id such as
            "Wan-AI/Wan2.2-TI2V-5B-Diffusers".
        kind: what is looked for, such as "VAE", for the error message.
        fix: what to do when it is not there, for the error message.
        subfolder: the folder inside it that holds the model; nothing else of a repository is downloaded.

    Raises:
        CheckpointError: nothing is there and no such repository could be downloaded, or the subfolder leaves `path`.
    """
    local, inner = Path(path), PureWindowsPath(subfolder)
    # A folder called "sandbox" is common: it takes precedence over the shipped model only if it holds a model.
    exists = local.exists() if "/" in path else (local / "config.json").exists()
    if path in shipped.FOLDERS and not exists:
        local = shipped.FOLDERS[path]
    # Only the name is checked: files in the hub's cache, or moved to a larger disk, are links to other places.
    if inner.anchor or ".." in inner.parts:
        raise CheckpointError(
            f"the subfolder {subfolder!r} leaves {path}", code="path-outside-folder", expected=f"a folder in {path}"
        )
    if (local / subfolder).exists():
        return local / subfolder
    if local.exists() or not is_hub_id(path):
        raise CheckpointError(
            f"there is no {kind} {local / subfolder}", code="missing-model", expected="a folder, or a hub id", fix=fix
        )
    return _download(path, kind, fix, subfolder)


def _download(repository: str, kind: str, fix: str, subfolder: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    patterns = [f"{subfolder}/{pattern}" for pattern in _PATTERNS] if subfolder else _PATTERNS
    try:
        folder = Path(snapshot_download(repository, allow_patterns=patterns)) / subfolder
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as problem:
        raise CheckpointError(
            f"there is no {kind} {repository}, and no such repository could be downloaded from the hub",
            code="missing-model",
            got=str(problem).strip().splitlines()[0],
            fix=f"check the path, or the id and the network; or {fix}",
        ) from problem
    if not folder.is_dir():
        raise CheckpointError(f"the repository {repository} has no folder {subfolder}", code="missing-model", fix=fix)
    return folder
