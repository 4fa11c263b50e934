"""The environment record: the versions, machine, commit and command line that produced a result.

It is written beside every result, so it is cheap (no library is imported for it) and safe to publish: no environment
variables, no home folders, no secrets from the command line.
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
"""Packages whose version can change a number."""

_SECRET_WORDS = {"key", "apikey", "token", "secret", "password", "passwd", "credential", "credentials", "auth"}
_SECRET_VALUE = re.compile(r"\b(?:hf_|sk-|ghp_|AIza)[\w-]{8,}|(?<=://)[^/@\s]+(?=@)")
_HIDDEN = "***"


def environment(command: Sequence[str] | None = None) -> dict[str, Any]:
    """The record, as plain data for JSON.

    Args:
        command: the command line as a list, program first; default: this process's.

    Returns:
        `kiwi`, `python`, `platform`, `packages` (name: version, of those installed), `hardware` and `devices` (see
        the functions of these names), `git` (`commit`, and `changed`: whether the package differs from it; None
        outside a git checkout) and `command`.
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
    """The version of an installed distribution, None if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def source_root() -> Path | None:
    """The root of the source tree that the package is imported from, None for an installed wheel."""
    root = Path(kiwi.__file__).resolve().parent.parent
    return root if (root / "setup.cfg").is_file() else None


def hardware() -> dict[str, Any]:
    """The machine: `cpu` (its name), `cores` that this process may use, `memory_bytes`, and `avx512_bf16` support.

    A value that the system does not report is None.
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
    """The accelerators that torch can use: `kind` (cuda, mps), `name`, `memory_bytes` and native `bf16` support.

    Empty as long as torch is not loaded: a process without torch uses no accelerator, and loading it takes seconds.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return []
    accelerators: list[dict[str, Any]] = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            bf16 = card.major >= 8 or torch.version.hip is not None
            accelerators.append({"kind": "cuda", "name": card.name, "memory_bytes": card.total_memory, "bf16": bf16})
    if torch.backends.mps.is_available():
        accelerators.append({"kind": "mps", "name": platform.processor(), "memory_bytes": None, "bf16": None})
    return accelerators


def redact_command(argv: Sequence[str]) -> str:
    """A command line that is safe to publish: `~` for home folders, `***` for secrets."""
    program = Path(argv[0])
    words = ["python", "-m", "kiwi"] if program.parts[-2:] == ("kiwi", "__main__.py") else [program.name]
    hide_next = False
    for word in argv[1:]:
        option, equals, _ = word.partition("=")
        secret = option.startswith("-") and re.split(r"[-_.]", option.lower())[-1] in _SECRET_WORDS
        if hide_next and not word.startswith("-"):
            words.append(_HIDDEN)
        elif secret and equals:
            words.append(f"{option}={_HIDDEN}")
        else:
            words.append(_redact(word))
        hide_next = secret and not equals
    return shlex.join(words)


def _redact(text: str) -> str:
    home = os.path.expanduser("~").rstrip("/")  # noqa: PTH111 (Path.home raises where there is none)
    homes = [r"/(?:home|Users)/[^/]+", *([re.escape(home)] if home else [])]
    text = re.sub(rf"(?<![\w.-])(?:{'|'.join(homes)})(?=/|$)", "~", text)
    return _SECRET_VALUE.sub(_HIDDEN, text)


def _git() -> dict[str, Any] | None:
    root = source_root()
    if root is None or not (root / ".git").exists():
        return None
    commit = _run_git(root, "rev-parse", "HEAD")
    if not commit:
        return None
    return {"commit": commit, "changed": bool(_run_git(root, "status", "--porcelain", "--", "kiwi"))}


def _run_git(root: Path, *arguments: str) -> str | None:
    try:
        process = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return process.stdout.strip()
