"""The environment record: the versions, machine, commit and command line that produced a result.

It is written with every result, so it is cheap (it imports no other package) and safe to publish: it contains no
environment variables, home folders or secrets from the command line.
"""

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
    "torch", "torchvision", "lightning", "deepspeed", "transformers", "tokenizers", "diffusers", "accelerate", "peft",
    "torchmetrics", "lpips", "av", "einops", "numpy", "pillow", "jsonargparse", "safetensors",
)  # fmt: skip
"""Packages whose versions can change results."""

_SECRET_WORDS = {"key", "apikey", "token", "secret", "password", "passwd", "credential", "credentials", "auth"}
_SECRET_VALUE = re.compile(r"\b(?:hf_|sk-|ghp_|AIza)[\w-]{8,}|(?<=://)[^/@\s]+(?=@)")
_HIDDEN = "***"


def environment(command: Sequence[str] | None = None) -> dict[str, Any]:
    """Collect the record as plain data for JSON.

    Args:
        command: command line, program first; None is that of this process.

    Returns:
        A dict of `kiwi`, `python`, `platform`, `packages` (installed versions by name), `hardware` and `devices` (see
        the functions with these names), `git` (`commit`, and `changed`: whether kiwi/ differs from it; None outside a
        git checkout) and `command`.
    """
    return {
        "kiwi": kiwi.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in PACKAGES if (version := installed_version(name)) is not None},
        "hardware": hardware(),
        "devices": devices(),
        "git": _read_git_state(),
        "command": redact_command(sys.argv if command is None else command),
    }


def installed_version(distribution: str) -> str | None:
    """Return the version of a distribution, or None if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def source_root() -> Path | None:
    """Return the root of the source tree that kiwi is imported from, or None if it is an installed wheel."""
    root = Path(kiwi.__file__).resolve().parent.parent
    return root if (root / "setup.cfg").is_file() else None


def hardware() -> dict[str, Any]:
    """Describe the machine: `cpu` (name), `cores` that this process may use, `memory_bytes` and `avx512_bf16` support.

    Values that the system does not report are None.
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
    """List the accelerators that PyTorch can use: `kind` (cuda, mps), `name`, `memory_bytes` and native `bf16` support.

    The list is empty if torch has not been imported: such a process uses no accelerator, and importing takes seconds.
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
    """Format a command line that is safe to publish: `~` replaces home folders and `***` replaces secrets."""
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
            words.append(_redact_word(word))
        hide_next = secret and not equals
    return shlex.join(words)


def _redact_word(text: str) -> str:
    home = os.path.expanduser("~").rstrip("/")  # noqa: PTH111 (Path.home raises where there is none)
    homes = [r"/(?:home|Users)/[^/]+", *([re.escape(home)] if home else [])]
    text = re.sub(rf"(?<![\w.-])(?:{'|'.join(homes)})(?=/|$)", "~", text)
    return _SECRET_VALUE.sub(_HIDDEN, text)


def _read_git_state() -> dict[str, Any] | None:
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
