"""`python -m kiwi doctor`: what is installed, which accelerators there are, what is missing and how to get it.

What is wanted comes from the installed package's own metadata (setup.cfg), so the two cannot differ.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import platform
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from kiwi import console
from kiwi.cli import parser
from kiwi.environment import devices, hardware, installed_version, source_root
from kiwi.errors import InputError

DISTRIBUTION = "kiwi-video"
NATIVE = ("torch", "torchvision", "av")
"""Parts with compiled libraries, which can be installed and still not import: these are tried."""
ENCODER = "libx264"
NOT_FROM_PIP = ("python", ENCODER)


@dataclass(frozen=True, kw_only=True)
class Part:
    """One thing that kiwi needs: `extra` names the optional part it belongs to, None for a required one."""

    name: str
    wanted: str
    installed: str | None
    state: str
    extra: str | None = None

    @property
    def fits(self) -> bool:
        """Whether it is there and usable."""
        return self.state == "fits"


def main(argv: list[str]) -> int:
    """Print the report; the exit code is 0 if every required part fits, 1 otherwise."""
    options = parser(
        argv[0], "Tell what is installed, which accelerators there are, what is missing and how to get it."
    )
    options.add_argument("--json", action="store_true", help="print the record as JSON")
    as_json = options.parse_args(argv[1:]).json
    record = examine()
    if as_json:
        console.print(json.dumps(record, indent=2))
    else:
        _show(record)
    return 0 if record["fits"] else 1


def examine() -> dict[str, Any]:
    """The record: `parts` (see Part), `hardware`, `devices`, `disk_free_bytes` (current folder), `fits`, `fixes`.

    Raises:
        InputError: kiwi runs from a source tree without being installed, so its requirements are not known.
    """
    try:
        metadata = importlib.metadata.metadata(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        raise InputError(
            "kiwi runs from a source tree but is not installed, so what it requires is not known",
            fix="pip install -e . in the folder of setup.cfg",
        ) from None
    extras = metadata.get_all("Provides-Extra") or []
    parts = [
        _python(metadata["Requires-Python"]),
        *required(metadata.get_all("Requires-Dist") or [], extras),
        _encoder(),
    ]
    return {
        "parts": [asdict(part) for part in parts],
        "hardware": hardware(),
        "devices": devices(),
        "disk_free_bytes": shutil.disk_usage(".").free,
        "fits": all(part.fits for part in parts if part.extra is None),
        "fixes": fixes(parts),
    }


def required(requirements: Iterable[str], extras: Iterable[str]) -> list[Part]:
    """Hold each requirement (as in package metadata) against what is installed; those of other systems are left out."""
    found = []
    for requirement in map(Requirement, requirements):
        if requirement.name == DISTRIBUTION:  # an extra that stands for another
            continue
        marker = requirement.marker
        for extra in (None, *extras):
            if marker is None or marker.evaluate({"extra": extra or ""}):
                found.append(_part(requirement, extra))
                break
    return found


def fixes(parts: Iterable[Part]) -> dict[str, str]:
    """The pip command that brings what does not fit: one for "required", one for each extra."""
    missing = [part for part in parts if not part.fits]
    commands = {}
    names = [f'"{part.name}{part.wanted}"' for part in missing if part.extra is None and part.name not in NOT_FROM_PIP]
    if names:
        commands["required"] = f"pip install --upgrade {' '.join(names)}"
    elif any(part.name == ENCODER for part in missing):  # another build of av, such as a distribution's
        commands[ENCODER] = "pip install --force-reinstall --only-binary=:all: av"
    for extra in sorted({part.extra for part in missing if part.extra is not None}):
        commands[extra] = f'pip install -e ".[{extra}]"' if source_root() else f'pip install "{DISTRIBUTION}[{extra}]"'
    return commands


def _part(requirement: Requirement, extra: str | None) -> Part:
    version = installed_version(requirement.name)
    problem = None if version is None else _import_problem(requirement.name)
    if version is None:
        state = "missing"
    elif problem is not None:
        state = problem
    else:
        state = "fits" if requirement.specifier.contains(version, prereleases=True) else "wrong version"
    wanted = str(requirement.specifier)
    return Part(name=requirement.name, wanted=wanted, installed=version, state=state, extra=extra)


def _import_problem(name: str) -> str | None:
    if name not in NATIVE:
        return None
    try:
        importlib.import_module(name)
    except Exception as problem:  # a broken library can raise anything
        return f"does not import: {problem}"
    return None


def _python(wanted: str) -> Part:
    version = platform.python_version()
    fits = SpecifierSet(wanted).contains(version, prereleases=True)
    return Part(name="python", wanted=wanted, installed=version, state="fits" if fits else "wrong version")


def _encoder() -> Part:
    """H.264 by libx264, without which no video can be written; builds of FFmpeg under other licences lack it."""
    try:
        import av

        av.codec.Codec(ENCODER, "w")
    except Exception:  # av is missing, broken, or lacks the encoder
        return Part(name=ENCODER, wanted="in av", installed=None, state="missing")
    return Part(name=ENCODER, wanted="in av", installed="present", state="fits")


def _show(record: dict[str, Any]) -> None:
    rows = [
        (part["name"], part["wanted"], part["installed"] or "-", part["extra"] or "kiwi", part["state"])
        for part in record["parts"]
    ]
    console.table("Parts", ("part", "wanted", "installed", "for", "state"), rows)
    machine = record["hardware"]
    found = [
        ("CPU", f"{machine['cpu']}, {machine['cores']} cores, bf16 {_said(machine['avx512_bf16'])}"),
        ("memory", _gigabytes(machine["memory_bytes"])),
        ("free disk here", _gigabytes(record["disk_free_bytes"])),
    ]
    found += [
        (device["kind"], f"{device['name']}, {_gigabytes(device['memory_bytes'])}, bf16 {_said(device['bf16'])}")
        for device in record["devices"]
    ] or [("accelerator", "none: everything runs on the CPU")]
    console.table("Machine", ("what", "found"), found)
    for what, command in record["fixes"].items():
        console.print(f"{what}: {command}")
    if record["fits"]:
        console.print("Every required part fits.")
    else:
        console.error("a required part is missing or does not fit; the commands above bring what is missing.")


def _gigabytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 1e9:.1f} GB"


def _said(value: bool | None) -> str:
    return {True: "yes", False: "no", None: "unknown"}[value]
