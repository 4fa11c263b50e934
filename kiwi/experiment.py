"""Experiments as YAML that says only how they differ: `base:` names the file, or files, that a file starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from kiwi.errors import InputError

BASE = "base"


def read_experiment(file: Path | str) -> dict[str, Any]:
    """A configuration with everything that its bases say, each later file over those before it.

    Mappings are merged key by key; all else is replaced. A mapping of another type (`type`, or a bare name in
    its place) replaces the one that was there: the fields of one choice mean nothing to another.

    Returns:
        The configuration in short form (`short_form`).

    Args:
        file: its paths in `base` are relative to its own folder.

    Raises:
        InputError: a file that cannot be read or is no mapping, or files that name each other.
    """
    return _read(Path(file), ())


def merge(below: Any, above: Any) -> Any:
    """One configuration over another, as `read_experiment` describes."""
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    for key in ("type", "class_path"):
        if key in above and above[key] != below.get(key, above[key]):
            return above
    return below | {key: merge(below[key], value) if key in below else value for key, value in above.items()}


def short_form(value: Any) -> Any:
    """Configuration with choices as `{type: Name, field: value}`, as in config.json, wherever Lightning's form stands.

    That is `{class_path: Name, init_args: {field: value}}`. Classes that are not kiwi's, such as callbacks of Lightning
    by their whole path, keep it.
    """
    if isinstance(value, list):
        return [short_form(item) for item in value]
    if not isinstance(value, dict):
        return value
    name = value.get("class_path")
    if isinstance(name, str) and "." in name and not name.startswith("kiwi."):
        return value
    fields = value
    if value and value.keys() <= {"class_path", "init_args"}:
        fields = value.get("init_args") or {}
    named = {} if fields is value or name is None else {"type": name.rpartition(".")[2]}
    return {**named, **{key: short_form(item) for key, item in fields.items()}}


def section(found: dict[str, Any], path: str, file: Path | str) -> dict[str, Any]:
    """A mapping inside a configuration, by dotted path; empty where there is none.

    Raises:
        InputError: something else stands there.
    """
    node: Any = found
    for name in path.split("."):
        node = node.get(name, {}) if isinstance(node, dict) else node
    if not isinstance(node, dict):
        raise InputError(f"{path} of {file} is no mapping", got=repr(node))
    return node


def _read(file: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if "\0" in str(file) or file.resolve() in seen:
        raise InputError(f"{file} is among its own bases", got=" -> ".join(str(path) for path in seen))
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as problem:
        raise InputError(f"{file} cannot be read", got=" ".join(str(problem).split())) from problem
    if not isinstance(found, dict):
        raise InputError(f"{file} is no configuration", got=type(found).__name__, wanted="a mapping")
    bases = found.pop(BASE, [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise InputError(f"`{BASE}` of {file} names no files", got=bases, wanted="a path or a list of paths")
    merged: dict[str, Any] = {}
    for base in bases:
        merged = merge(merged, _read(file.parent / base, (*seen, file.resolve())))
    return merge(merged, short_form(found))
