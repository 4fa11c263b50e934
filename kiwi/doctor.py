"""What is installed, which accelerators there are, what is missing and how to install it.

The requirements come from the installed package's own metadata (setup.cfg), so the two cannot differ.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from kiwi.environment import devices, hardware, installed_version, source_root
from kiwi.errors import InputError

DISTRIBUTION = "kiwi-video"
_NATIVE = ("torch", "torchvision", "av")
"""Packages with compiled libraries, which can be installed and still fail to import, so importing them is tried."""

_ENCODER = "libx264"
_NOT_FROM_PIP = ("python", _ENCODER)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A requirement of kiwi and whether it is satisfied.

    Args:
        name: of the package.
        wanted: the version specifier.
        installed: the version, None if it is missing.
        state: "fits", or what is wrong.
        extra: the optional extra that needs it, None if it is always required.
    """

    name: str
    wanted: str
    installed: str | None
    state: str
    extra: str | None = None

    @property
    def fits(self) -> bool:
        """Whether it is installed and usable."""
        return self.state == "fits"


def examine() -> dict[str, Any]:
    """Compare the installation with kiwi's requirements.

    Returns:
        A record for JSON: `parts` (see `Part`), `hardware`, `devices`, `disk_free_bytes` (of the current folder),
        `fits` (whether every required part does) and `fixes` (see `fixes`).

    Raises:
        InputError: kiwi runs from a source tree without being installed, so its requirements are unknown.
    """
    try:
        metadata = importlib.metadata.metadata(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        raise InputError(
            "kiwi runs from a source tree but is not installed, so its requirements are unknown",
            code="not-installed",
            fix="pip install -e . in the folder of setup.cfg",
        ) from None
    extras = metadata.get_all("Provides-Extra") or []
    parts = [
        _check_python(metadata["Requires-Python"]),
        *check_requirements(metadata.get_all("Requires-Dist") or [], extras),
        _check_encoder(),
    ]
    return {
        "parts": [asdict(part) for part in parts],
        "hardware": hardware(),
        "devices": devices(),
        "disk_free_bytes": shutil.disk_usage(".").free,
        "fits": all(part.fits for part in parts if part.extra is None),
        "fixes": fixes(parts),
    }


def check_requirements(requirements: Iterable[str], extras: Iterable[str]) -> list[Part]:
    """Compare requirements (as in package metadata) with what is installed; those of other systems are left out."""
    parts = []
    for requirement in map(Requirement, requirements):
        if requirement.name == DISTRIBUTION:  # an extra that refers to another one
            continue
        marker = requirement.marker
        for extra in (None, *extras):
            if marker is None or marker.evaluate({"extra": extra or ""}):
                parts.append(_check(requirement, extra))
                break
    return parts


def fixes(parts: Iterable[Part]) -> dict[str, str]:
    """The pip commands that install what does not fit: one for "required", one for each extra."""
    missing = [part for part in parts if not part.fits]
    commands = {}
    names = [f'"{part.name}{part.wanted}"' for part in missing if part.extra is None and part.name not in _NOT_FROM_PIP]
    if names:
        commands["required"] = f"pip install --upgrade {' '.join(names)}"
    elif any(part.name == _ENCODER for part in missing):  # another build of av, such as a distribution's
        commands[_ENCODER] = "pip install --force-reinstall --only-binary=:all: av"
    for extra in sorted({part.extra for part in missing if part.extra is not None}):
        commands[extra] = f'pip install -e ".[{extra}]"' if source_root() else f'pip install "{DISTRIBUTION}[{extra}]"'
    return commands


def _check(requirement: Requirement, extra: str | None) -> Part:
    name, specifier, version = requirement.name, requirement.specifier, installed_version(requirement.name)
    if version is None:
        state = "missing"
    else:
        fits = specifier.contains(version, prereleases=True)
        state = _import_problem(name) or ("fits" if fits else "wrong version")
    return Part(name=name, wanted=str(specifier), installed=version, state=state, extra=extra)


def _import_problem(name: str) -> str | None:
    if name not in _NATIVE:
        return None
    try:
        importlib.import_module(name)
    except Exception as problem:  # a broken library can raise anything
        return f"does not import: {problem}"
    return None


def _check_python(wanted: str) -> Part:
    version = platform.python_version()
    fits = SpecifierSet(wanted).contains(version, prereleases=True)
    return Part(name="python", wanted=wanted, installed=version, state="fits" if fits else "wrong version")


def _check_encoder() -> Part:
    """H.264 by libx264, without which no video can be written; builds of FFmpeg under other licences lack it."""
    try:
        import av

        av.codec.Codec(_ENCODER, "w")
    except Exception:  # av is missing, broken, or lacks the encoder
        return Part(name=_ENCODER, wanted="in av", installed=None, state="missing")
    return Part(name=_ENCODER, wanted="in av", installed="present", state="fits")
