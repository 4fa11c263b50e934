"""Check the installation: compare installed packages with kiwi's requirements, and list the machine's accelerators.

The requirements are read from the metadata of the installed kiwi package, so they always equal those in setup.cfg.
"""

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
_NATIVE_PACKAGES = ("torch", "torchvision", "av")
"""Packages with compiled libraries: they can be installed and still fail to import, so their import is tested."""

_ENCODER = "libx264"
_NOT_FROM_PIP = ("python", _ENCODER)


@dataclass(frozen=True, kw_only=True)
class Dependency:
    """A dependency of kiwi and whether it is installed.

    Args:
        name: name of the package.
        specifier: required version.
        installed: installed version; None if it is missing.
        status: "ok" or what is wrong.
        extra: optional extra that requires the package; None if it is always required.
    """

    name: str
    specifier: str
    installed: str | None
    status: str
    extra: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the package is installed in a suitable version and can be used."""
        return self.status == "ok"


def check_installation() -> dict[str, Any]:
    """Compare the installation with kiwi's requirements.

    Returns:
        A record for JSON: `dependencies` (see `Dependency`), `hardware`, `devices`, `disk_free_bytes` (of the current
        folder), `ok` (whether all required dependencies are) and `fixes` (see `fix_commands`).
    """
    try:
        metadata = importlib.metadata.metadata(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        raise InputError(
            "kiwi runs from a source tree but is not installed, so its requirements are unknown",
            code="missing-package",
            fix="run `pip install -e .` in the folder of setup.cfg",
        ) from None
    extras = metadata.get_all("Provides-Extra") or []
    dependencies = [
        _check_python(metadata["Requires-Python"]),
        *check_requirements(metadata.get_all("Requires-Dist") or [], extras),
        _check_encoder(),
    ]
    return {
        "dependencies": [asdict(dependency) for dependency in dependencies],
        "hardware": hardware(),
        "devices": devices(),
        "disk_free_bytes": shutil.disk_usage(".").free,
        "ok": all(dependency.ok for dependency in dependencies if dependency.extra is None),
        "fixes": fix_commands(dependencies),
    }


def check_requirements(requirements: Iterable[str], extras: Iterable[str]) -> list[Dependency]:
    """Compare requirements (as in package metadata) with the installation; skip those for other platforms."""
    dependencies = []
    for requirement in map(Requirement, requirements):
        if requirement.name == DISTRIBUTION:  # an extra that includes another extra
            continue
        marker = requirement.marker
        for extra in (None, *extras):
            if marker is None or marker.evaluate({"extra": extra or ""}):
                dependencies.append(_check_requirement(requirement, extra))
                break
    return dependencies


def fix_commands(dependencies: Iterable[Dependency]) -> dict[str, str]:
    """Return the pip commands that install unsatisfied dependencies: one for "required" and one for each extra."""
    missing = [item for item in dependencies if not item.ok]
    commands = {}
    required = [item for item in missing if item.extra is None and item.name not in _NOT_FROM_PIP]
    if required:
        names = " ".join(f'"{item.name}{item.specifier}"' for item in required)
        commands["required"] = f"pip install --upgrade {names}"
    elif any(item.name == _ENCODER for item in missing):  # av is another build, such as that of a Linux distribution
        commands[_ENCODER] = "pip install --force-reinstall --only-binary=:all: av"
    for extra in sorted({item.extra for item in missing if item.extra is not None}):
        commands[extra] = f'pip install -e ".[{extra}]"' if source_root() else f'pip install "{DISTRIBUTION}[{extra}]"'
    return commands


def _check_requirement(requirement: Requirement, extra: str | None) -> Dependency:
    name, specifier, version = requirement.name, requirement.specifier, installed_version(requirement.name)
    status = "missing" if version is None else _try_import(name) or _compare_version(specifier, version)
    return Dependency(name=name, specifier=str(specifier), installed=version, status=status, extra=extra)


def _try_import(name: str) -> str | None:
    """Import a native package and return the error, if any."""
    if name not in _NATIVE_PACKAGES:
        return None
    try:
        importlib.import_module(name)
    except Exception as error:  # a broken library can raise any exception
        return f"does not import: {error}"
    return None


def _compare_version(specifier: SpecifierSet, version: str) -> str:
    return "ok" if specifier.contains(version, prereleases=True) else "wrong version"


def _check_python(specifier: str) -> Dependency:
    version = platform.python_version()
    status = _compare_version(SpecifierSet(specifier), version)
    return Dependency(name="python", specifier=specifier, installed=version, status=status)


def _check_encoder() -> Dependency:
    """Check that av has libx264, which writing videos requires; FFmpeg builds without GPL code lack it."""
    try:
        import av

        av.codec.Codec(_ENCODER, "w")
    except Exception:  # av is missing, broken, or lacks the encoder
        return Dependency(name=_ENCODER, specifier="in av", installed=None, status="missing")
    return Dependency(name=_ENCODER, specifier="in av", installed="present", status="ok")
