"""Where pretrained parts lie: a local folder, what is shipped with this package, or a repository of the model hub."""

from __future__ import annotations

import re
from pathlib import Path, PureWindowsPath

import kiwi
from kiwi.errors import CheckpointError

SHIPPED = Path(kiwi.__file__).parent / "sandbox" / "weights"
"""The sandbox's own models, by the names `sandbox/NAME`; a folder of the same name comes first."""

EDITOR = "sandbox"
"""The name of the shipped editor; `sandbox/editor` is the same."""

_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.jinja"]


def is_hub_id(path: str) -> bool:
    """Whether a path that is no local folder can be a hub id (owner/name)."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path) is not None


def _shipped(path: str) -> Path | None:
    """The folder of a shipped model by its name; None if this is none."""
    named = re.fullmatch(r"sandbox/(\w+)", "sandbox/editor" if path == EDITOR else path)
    return folder if named is not None and (folder := SHIPPED / named[1]).is_dir() else None


def locate(path: str, what: str, fix: str, *, subfolder: str = "") -> Path:
    """The local folder (or file) of a path, name or hub id; a repository is fetched, or taken from the hub's cache.

    Args:
        path: a folder, a file, the name of a shipped model such as "sandbox/vae", or an id such as
            "Wan-AI/Wan2.2-TI2V-5B-Diffusers".
        what: what is looked for, for the message.
        fix: what to do when it is not there.
        subfolder: where in it the part lies; only this much of a repository is fetched.

    Raises:
        CheckpointError: nothing there, and no such repository could be fetched; a subfolder that leaves its folder.
    """
    local, inner = Path(path), PureWindowsPath(subfolder)
    # A folder "sandbox" is no rare thing: only one that holds a model stands before the shipped one.
    is_there = (local / "config.json").exists() if path == EDITOR else local.exists()
    if not is_there and (shipped := _shipped(path)) is not None:
        local = shipped
    # By its name alone: what is in the hub's cache, or moved to a larger disk, are links to elsewhere.
    if inner.anchor or ".." in inner.parts:
        raise CheckpointError(f"the subfolder {subfolder!r} leaves {path}", wanted=f"a folder in {path}")
    if (local / subfolder).exists():
        return local / subfolder
    if local.exists() or not is_hub_id(path):
        raise CheckpointError(f"there is no {what} {local / subfolder}", wanted="a folder, or a hub id", fix=fix)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    patterns = [f"{subfolder}/{pattern}" for pattern in _PATTERNS] if subfolder else _PATTERNS
    try:
        fetched = Path(snapshot_download(path, allow_patterns=patterns)) / subfolder
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as problem:
        raise CheckpointError(
            f"there is no {what} {path}, and no such repository could be fetched from the hub",
            got=str(problem).strip().splitlines()[0],
            fix=f"check the path, or the id and the network; or {fix}",
        ) from problem
    if not fetched.is_dir():
        raise CheckpointError(f"the repository {path} has no folder {subfolder}", fix=fix)
    return fetched
