"""Locate pretrained models: a local folder, a model shipped with kiwi, or a repository of the Hugging Face hub."""

import logging
import os
import re
from pathlib import Path, PureWindowsPath

from kiwi import reading, shipped
from kiwi.errors import CheckpointError, first_line

log = logging.getLogger(__name__)

_DOWNLOAD_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.jinja"]


def is_hub_id(path: str) -> bool:
    """Whether a string has the form of a hub id (owner/name)."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path) is not None


def is_offline() -> bool:
    """Whether the environment forbids requests to the hub, as `--offline` does."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def locate(path: str, kind: str, fix: str, *, subfolder: str = "") -> Path:
    """Find the local folder (or file) of a model; a hub repository is downloaded unless it is cached.

    A request to the hub is logged before it is made; with `--offline`, or HF_HUB_OFFLINE=1, none is made.

    Args:
        path: a folder, a file, the name of a shipped model (`kiwi.shipped`), or a hub id such as
            "Wan-AI/Wan2.2-TI2V-5B-Diffusers".
        kind: kind of model, such as "VAE", for the error message.
        fix: what the user can do if it does not exist, for the error message.
        subfolder: folder in `path` that contains the model; only this folder of a repository is downloaded.

    Raises:
        CheckpointError: the model does not exist, cannot be downloaded, or its subfolder is outside `path`; or a JSON
            file in it is a pipe, a device or too large.
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
    if model_path.exists() or local_path.is_file():  # in a file, the subfolder is the name of a set of weights
        _require_regular_files(model_path)
        return model_path
    if local_path.exists() or not is_hub_id(path):
        raise CheckpointError(
            f"there is no {kind} at {model_path}", code="missing-model", expected="a folder or a hub id", fix=fix
        )
    return _download(path, kind, fix, subfolder)


def locate_local(path: str, kind: str, fix: str, *, subfolder: str = "") -> Path | None:
    """Find a model as `locate` does, without a request: None for the id of a hub repository."""
    if path in shipped.FOLDERS or Path(path).exists() or not is_hub_id(path):
        return locate(path, kind, fix, subfolder=subfolder)
    return None


def _require_regular_files(folder: Path) -> None:
    """Raise a CheckpointError if a JSON file of a model is a pipe, a device, or too large to be one."""
    for file in folder.glob("*.json") if folder.is_dir() else ():
        reading.require_file(file, CheckpointError, code="unreadable-file")
        if (size := file.stat().st_size) > reading.MAX_CHARACTERS:
            expected = f"at most {reading.MAX_CHARACTERS} bytes"
            raise CheckpointError(
                f"{file} is too large", code="unreadable-file", got=f"{size} bytes", expected=expected
            )


def _download(repository: str, kind: str, fix: str, subfolder: str) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    patterns = [f"{subfolder}/{pattern}" for pattern in _DOWNLOAD_PATTERNS] if subfolder else _DOWNLOAD_PATTERNS
    # Read here, because huggingface_hub reads the variable when it is imported, before `--offline` can set it.
    offline = is_offline()
    if not offline:
        log.info("asking %s for the %s %s; --offline forbids it", constants.ENDPOINT, kind, repository)
    try:
        folder = Path(snapshot_download(repository, allow_patterns=patterns, local_files_only=offline)) / subfolder
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise CheckpointError(
            f"there is no {kind} at {repository}, and it could not be downloaded from the hub",
            code="missing-model",
            got="it is not in the cache, and --offline or HF_HUB_OFFLINE forbids requests"
            if offline
            else first_line(error),
            fix=f"check the path or hub id and the network connection, or {fix}",
        ) from error
    if not folder.is_dir():
        raise CheckpointError(f"the repository {repository} has no folder {subfolder}", code="missing-model", fix=fix)
    return folder
