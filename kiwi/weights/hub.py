"""Where pretrained parts lie: a local folder, or a repository of the model hub named by its id."""

from __future__ import annotations

import re
from pathlib import Path, PureWindowsPath

from kiwi.errors import CheckpointError

_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.jinja"]


def is_hub_id(path: str) -> bool:
    """Whether a path that is no local folder can be a hub id (owner/name)."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path) is not None


def locate(path: str, what: str, fix: str, *, subfolder: str = "") -> Path:
    """The local folder (or file) of a path or hub id; a repository is fetched, or taken from the hub's cache.

    Args:
        path: a folder, a file, or an id such as "Wan-AI/Wan2.2-TI2V-5B-Diffusers".
        what: what is looked for, for the message.
        fix: what to do when it is not there.
        subfolder: where in it the part lies; only this much of a repository is fetched.

    Raises:
        CheckpointError: nothing there, and no such repository could be fetched; a subfolder that leaves its folder.
    """
    local, inner = Path(path), PureWindowsPath(subfolder)
    # By its name alone: what is in the hub's cache, or moved to a larger disk, are links to elsewhere.
    if inner.anchor or ".." in inner.parts:
        raise CheckpointError(f"the subfolder {subfolder!r} leaves {path}", wanted=f"a folder in {path}")
    if (local / subfolder).exists():
        return local / subfolder
    if local.exists() or not is_hub_id(path):
        raise CheckpointError(f"there is no {what} {local / subfolder}", wanted="a folder, or a hub id", fix=fix)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    patterns = [f"{subfolder}/{pattern}" for pattern in _PATTERNS] if subfolder else _PATTERNS
    try:
        fetched = Path(snapshot_download(path, allow_patterns=patterns)) / subfolder
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as problem:
        raise CheckpointError(
            f"there is no {what} {path}, and no such repository could be fetched from the hub",
            got=str(problem).strip().splitlines()[0],
            fix=f"check the path, or the id and the network; or {fix}",
        ) from problem
    if not fetched.is_dir():
        raise CheckpointError(f"the repository {path} has no folder {subfolder}", fix=fix)
    return fetched
