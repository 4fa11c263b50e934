"""Locate pretrained models: a local folder, a model shipped with kiwi, or a repository of the Hugging Face hub."""

import re
from pathlib import Path, PureWindowsPath

from kiwi import shipped
from kiwi.errors import CheckpointError, first_line

_DOWNLOAD_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.jinja"]


def is_hub_id(path: str) -> bool:
    """Whether a string has the form of a hub id (owner/name)."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path) is not None


def locate(path: str, kind: str, fix: str, *, subfolder: str = "") -> Path:
    """Find the local folder (or file) of a model; a hub repository is downloaded unless it is cached.

    Args:
        path: a folder, a file, the name of a shipped model (`kiwi.shipped`), or a hub id such as
            "Wan-AI/Wan2.2-TI2V-5B-Diffusers".
        kind: kind of model, such as "VAE", for the error message.
        fix: what the user can do if it does not exist, for the error message.
        subfolder: folder in `path` that contains the model; only this folder of a repository is downloaded.

    Raises:
        CheckpointError: the model does not exist, cannot be downloaded, or its subfolder is outside `path`.
    """
    local_path, subpath = Path(path), PureWindowsPath(subfolder)
    # Folders called "sandbox" are common, so one takes precedence over the shipped model only if it is a model.
    exists = local_path.exists() if "/" in path else (local_path / "config.json").exists()
    if path in shipped.FOLDERS and not exists:
        local_path = shipped.FOLDERS[path]
    # Symbolic links are not resolved: files in the hub's cache, and those moved to a larger disk, are links.
    if subpath.anchor or ".." in subpath.parts:
        raise CheckpointError(
            f"the subfolder {subfolder!r} is outside {path}", code="path-outside-folder", expected=f"a folder in {path}"
        )
    model_path = local_path / subfolder
    if model_path.exists():
        return model_path
    if local_path.exists() or not is_hub_id(path):
        raise CheckpointError(
            f"there is no {kind} at {model_path}", code="missing-model", expected="a folder or a hub id", fix=fix
        )
    return _download(path, kind, fix, subfolder)


def _download(repository: str, kind: str, fix: str, subfolder: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    patterns = [f"{subfolder}/{pattern}" for pattern in _DOWNLOAD_PATTERNS] if subfolder else _DOWNLOAD_PATTERNS
    try:
        folder = Path(snapshot_download(repository, allow_patterns=patterns)) / subfolder
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise CheckpointError(
            f"there is no {kind} at {repository}, and it could not be downloaded from the hub",
            code="missing-model",
            got=first_line(error),
            fix=f"check the path or hub id and the network connection, or {fix}",
        ) from error
    if not folder.is_dir():
        raise CheckpointError(f"the repository {repository} has no folder {subfolder}", code="missing-model", fix=fix)
    return folder
