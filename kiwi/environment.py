"""The environment record: which versions, machine, commit and command line stood behind a result.

It is written beside every result, so it is cheap (no library is imported for it) and fit to be
published: no environment variables, no home folders, no secrets from the command line.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kiwi

PACKAGES = (
    "torch",
    "torchvision",
    "lightning",
    "deepspeed",
    "transformers",
    "tokenizers",
    "diffusers",
    "accelerate",
    "peft",
    "torchmetrics",
    "lpips",
    "av",
    "einops",
    "numpy",
    "pillow",
    "jsonargparse",
    "safetensors",
)
"""What can move a number."""

_SECRET_WORDS = {"key", "apikey", "token", "secret", "password", "passwd", "credential", "credentials", "auth"}
_SECRET_VALUE = re.compile(r"\b(?:hf_|sk-|ghp_|AIza)[\w-]{8,}|(?<=://)[^/@\s]+(?=@)")
_HIDDEN = "***"


def environment(command: Sequence[str] | None = None) -> dict[str, Any]:
    """The record, as plain data for JSON.

    Args:
        command: the command line as a list, program first; default: this process's.

    Returns:
        `kiwi`, `python`, `platform`, `packages` (name: version, of those installed), `hardware` and `devices`
        (see those functions), `git` (`commit`, and `changed`: whether the package differs from it; None
        outside a checkout) and `command`.
    """
    return {
        "kiwi": kiwi.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in PACKAGES if (version := installed_version(name)) is not None},
        "hardware": hardware(),
        "devices": devices(),
        "git": _git(),
        "command": redact_command(sys.argv if command is None else command),
    }


def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution, None if there is none."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def source_root() -> Path | None:
    """The root of the source tree that the package is imported from, None for an installed wheel."""
    root = Path(kiwi.__file__).resolve().parent.parent
    return root if (root / "setup.cfg").is_file() else None


def hardware() -> dict[str, Any]:
    """`cpu` (its name), `cores` that this process may use, `memory_bytes`, and whether it has `avx512_bf16`.

    What the system does not tell is None.
    """
    info = Path("/proc/cpuinfo")
    text = info.read_text(errors="replace") if info.is_file() else ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    affinity = getattr(os, "sched_getaffinity", None)
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        memory = None
    return {
        "cpu": name[1] if name else platform.processor() or platform.machine(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "memory_bytes": memory,
        "avx512_bf16": bool(re.search(r"\bavx512_bf16\b", text)) if text else None,
    }


def devices() -> list[dict[str, Any]]:
    """The accelerators torch sees: `kind` (cuda, mps), `name`, `memory_bytes`, and whether bf16 is native (`bf16`).

    Empty while torch is not loaded: a process that computes without it has no use for them, and loading
    it would take seconds.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return []
    found: list[dict[str, Any]] = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            bf16 = card.major >= 8 or torch.version.hip is not None
            found.append({"kind": "cuda", "name": card.name, "memory_bytes": card.total_memory, "bf16": bf16})
    if torch.backends.mps.is_available():
        found.append({"kind": "mps", "name": platform.processor(), "memory_bytes": None, "bf16": None})
    return found


def redact_command(argv: Sequence[str]) -> str:
    """A command line that may be shown: `~` for home folders, `***` for the values of options that hold secrets."""
    program = Path(argv[0])
    words = ["python", "-m", "kiwi"] if program.parts[-2:] == ("kiwi", "__main__.py") else [program.name]
    hide = False
    for word in argv[1:]:
        option, equals, _ = word.partition("=")
        secret = option.startswith("-") and re.split(r"[-_.]", option.lower())[-1] in _SECRET_WORDS
        if hide and not word.startswith("-"):
            words.append(_HIDDEN)
        elif secret and equals:
            words.append(f"{option}={_HIDDEN}")
        else:
            words.append(_public(word))
        hide = secret and not equals
    return shlex.join(words)


def _public(text: str) -> str:
    home = os.path.expanduser("~").rstrip("/")  # noqa: PTH111 (Path.home raises where there is none)
    homes = [r"/(?:home|Users)/[^/]+", *([re.escape(home)] if home else [])]
    text = re.sub(rf"(?<![\w.-])(?:{'|'.join(homes)})(?=/|$)", "~", text)
    return _SECRET_VALUE.sub(_HIDDEN, text)


def _git() -> dict[str, Any] | None:
    root = source_root()
    if root is None or not (root / ".git").exists():
        return None
    commit = _git_says(root, "rev-parse", "HEAD")
    if not commit:
        return None
    return {"commit": commit, "changed": bool(_git_says(root, "status", "--porcelain", "--", "kiwi"))}


def _git_says(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
