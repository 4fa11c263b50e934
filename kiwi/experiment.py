"""Experiments as YAML files that state only their differences: `base:` names the file, or files, to start from.

Everything of kiwi's that a file may choose is written in one short form: a name, or `{type: Name, field: value}`, as in
config.json. Files of the previous release, and Lightning's `class_path` and `init_args`, are read too.
"""

from __future__ import annotations

import functools
import logging
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from kiwi.errors import InputError
from kiwi.spec import Spec, allowed_names, resolve_field_names, resolve_type_name, warn_renamed

log = logging.getLogger(__name__)

BASE = "base"

RENAMED_KEYS: dict[str, str] = {"model.emphasis": "model.loss_weighting", "model.max_pixels": "data.max_pixels"}
"""Options of `fit` that have been renamed since the previous release, by dotted path: `{former: current}`.

For those that are not fields of specs; the latter are declared with `kiwi.spec.renamed_from`.
"""

DATA_SOURCES = {"path": "Manifest", "questions": "SandboxQuestions", "items": "SandboxEdits"}
"""Types of data sources by the field that the previous release recognised them by; it had no `type`."""


def read_experiment(file: Path | str) -> dict[str, Any]:
    """The configuration in a file, merged over those of its bases, each later base over the earlier ones.

    Mappings are merged key by key; all else is replaced. A mapping of another type (`type`, or a bare name in
    its place) replaces the one that was there: the fields of one choice mean nothing to another.

    Args:
        file: the paths in its `base` are relative to its own folder.

    Returns:
        The configuration in short form (`to_short_form`), with current names of options.

    Raises:
        InputError: a file that cannot be read or is not a mapping, or files that include each other.
    """
    return _read(Path(file), ())


def merge(below: Any, above: Any) -> Any:
    """One configuration merged over another, as `read_experiment` describes."""
    has_fields_only = isinstance(above, dict) and not above.keys() & {"type", "class_path"}
    if isinstance(below, str) and below[:1].isupper() and has_fields_only:
        below = {"type": below}  # a choice that was given as a bare name
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    for key in ("type", "class_path"):
        if key in above and above[key] != below.get(key, above[key]):
            return above
    return below | {key: merge(below[key], value) if key in below else value for key, value in above.items()}


def to_short_form(value: Any) -> Any:
    """A configuration with `{type: Name, field: value}` in place of Lightning's `{class_path: Name, init_args: {...}}`.

    Classes by a whole path outside kiwi, such as callbacks of Lightning, keep `class_path`.
    """
    if isinstance(value, list):
        return [to_short_form(item) for item in value]
    if not isinstance(value, dict):
        return value
    name = value.get("class_path")
    if isinstance(name, str) and "." in name and not name.startswith("kiwi."):
        return value
    if not value or not value.keys() <= {"class_path", "init_args"}:
        return {key: to_short_form(item) for key, item in value.items()}
    named = {} if name is None else {"type": str(name).rpartition(".")[2]}
    return named | {key: to_short_form(item) for key, item in (value.get("init_args") or {}).items()}


def with_current_keys(configuration: dict[str, Any]) -> dict[str, Any]:
    """A configuration in short form under current names (`RENAMED_KEYS`, `DATA_SOURCES`)."""
    for former, current in RENAMED_KEYS.items():
        configuration = _move(configuration, former.split("."), former, current)
    data = configuration.get("data")
    if isinstance(data, dict):
        typed = {key: _with_types(data[key]) for key in ("train", "validation") if key in data}
        configuration = configuration | {"data": data | typed}
    return configuration


def with_current_names(hint: Any, data: Any) -> Any:
    """Plain data in which renamed specs and fields of specs have their current names.

    Args:
        hint: the type annotation of the value that the data describes; whatever is not a spec in it is ignored.
        data: a name, a node, or a list of such; unknown names stay as they are.
    """
    arguments = typing.get_args(hint)
    if isinstance(data, list):
        return [functools.reduce(lambda item, inner: with_current_names(inner, item), arguments, item) for item in data]
    if arguments:
        return functools.reduce(lambda value, inner: with_current_names(inner, value), arguments, data)
    if not (isinstance(hint, type) and issubclass(hint, Spec)):
        return data
    if isinstance(data, str):
        return resolve_type_name(data)
    if not isinstance(data, dict):
        return data
    name = data.get("type")
    named = {"type": resolve_type_name(name)} if isinstance(name, str) else {}
    names = named.values() if named else allowed_names(hint)
    specs = [Spec._registry[name] for name in names if name in Spec._registry]
    fields = resolve_field_names(specs, {key: value for key, value in data.items() if key != "type"})
    hints = {key: inner for spec in reversed(specs) for key, inner in typing.get_type_hints(spec).items()}
    return named | {key: with_current_names(hints.get(key), value) for key, value in fields.items()}


def get_section(configuration: Mapping[str, Any], path: str, file: Path | str) -> dict[str, Any]:
    """A mapping inside a configuration, by dotted path; empty if it is absent.

    Raises:
        InputError: the value is not a mapping.
    """
    node: Any = configuration
    for name in path.split("."):
        node = node.get(name, {}) if isinstance(node, dict) else node
    if not isinstance(node, dict):
        raise InputError(f"{path} of {file} is not a mapping", code="wrong-type", got=repr(node))
    return node


def _read(file: Path, including: tuple[Path, ...]) -> dict[str, Any]:
    """Read a file, which the files `including` it may not include again."""
    if "\0" in str(file) or file.resolve() in including:
        chain = " -> ".join(str(path) for path in including)
        raise InputError(f"{file} is among its own bases", code="circular-base", got=chain)
    try:
        configuration = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as problem:
        reason = " ".join(str(problem).split())
        raise InputError(f"{file} cannot be read", code="unreadable-file", got=reason) from problem
    if not isinstance(configuration, dict):
        got = type(configuration).__name__
        raise InputError(f"{file} is not a configuration", code="wrong-type", got=got, expected="a mapping")
    bases = configuration.pop(BASE, [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        expected = "a path or a list of paths"
        raise InputError(f"`{BASE}` of {file} does not name files", code="wrong-type", got=bases, expected=expected)
    merged: dict[str, Any] = {}
    for base in bases:
        merged = merge(merged, _read(file.parent / base, (*including, file.resolve())))
    return merge(merged, with_current_keys(to_short_form(configuration)))


def _move(node: dict[str, Any], keys: list[str], former: str, current: str) -> dict[str, Any]:
    """A copy of a mapping in which the value at the path `keys`, if there is one, is at the path `current`."""
    value: Any = node
    for key in keys:
        if not isinstance(value, dict) or key not in value:
            return node
        value = value[key]
    warn_renamed(former, current)
    moved = functools.reduce(lambda inner, key: {key: inner}, reversed(current.split(".")), value)
    return merge(moved, _without(node, keys))


def _without(node: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    """A copy of a mapping without the value at a path."""
    first, *rest = keys
    others = {key: value for key, value in node.items() if key != first}
    return others | {first: _without(node[first], rest)} if rest else others


def _with_types(sources: Any) -> Any:
    """Data sources of the previous release with their types."""
    return [_with_type(source) for source in sources] if isinstance(sources, list) else sources


def _with_type(source: Any) -> Any:
    if not isinstance(source, dict) or "type" in source:
        return source
    name = next((name for field, name in DATA_SOURCES.items() if field in source), None)
    if name is None:
        return source
    log.warning("a data source without a type is read as %s; the next release will require {type: %s, ...}", name, name)
    return {"type": name, **source}
