"""Where pretrained parts lie: a local folder, or a repository of the model hub named by its id."""

from __future__ import annotations

import re
from pathlib import Path

from kiwi.errors import CheckpointError


def is_hub_id(path: str) -> bool:
    """Whether a path that is no local folder can be a hub id (owner/name)."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path) is not None


def require_source(path: str, subfolder: str, what: str, fix: str) -> None:
    """Refuse a path that is neither a folder with a config.json nor a hub id.

    Raises:
        CheckpointError: naming the folder that was looked at.
    """
    folder = Path(path) / subfolder
    if (folder / "config.json").is_file() or (is_hub_id(path) and not Path(path).exists()):
        return
    raise CheckpointError(f"no {what} at {folder}", wanted="a folder with config.json and its weights", fix=fix)
