"""Experiments as YAML files, each of which contains only its differences to the files that its `base:` names.

Specs are written in short form, as in config.json: a name, or `{type: Name, field: value}`. Files of the previous
release, and Lightning's `class_path` and `init_args`, are accepted too.
"""

import functools
import logging
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kiwi.errors import InputError, format_choices, repeated_option
from kiwi.reading import follow_links, read_yaml
from kiwi.spec import Spec, allowed_names, resolve_field_names, resolve_type_name, warn_renamed

log = logging.getLogger(__name__)

BASE_KEY = "base"
"""Key of the file, or list of files, that a file is merged over."""

RENAMED_KEYS: dict[str, str] = {"model.emphasis": "model.loss_weighting", "model.max_pixels": "data.max_pixels"}
"""Options of `fit` that were renamed since the previous release, by dotted path: `{former: current}`.

Only options that are not fields of specs; a renamed field declares `kiwi.spec.renamed_from`.
"""

GROUPS = ("trainer", "model", "data", "checkpoint", "export", "previews", "quality", "log")
"""Keys of an experiment that hold mappings; one without a value, as when its fields are commented out, is absent."""

SOURCE_LISTS = ("data.train", "data.validation")
SOURCES_SYNTAX = (
    "a list, such as [{type: Manifest, path: pairs.csv}], which replaces the list of the experiment; on the command "
    "line, --data.train+={type: Manifest, path: pairs.csv} appends an entry"
)

SOURCE_TYPES_BY_FIELD = {"path": "Manifest", "questions": "SandboxQuestions", "items": "SandboxEdits"}
"""Types of data sources by a field that only they have: files of the previous release have no `type` there."""


def read_experiment(file: Path | str) -> dict[str, Any]:
    """Read the configuration in a file, merged over the files that its `base` names, later ones over earlier ones.

    Mappings are merged key by key; other values are replaced. A mapping with another `type`, or a bare type name,
    replaces the previous mapping, since its fields belong to another spec.

    The result is in short form (`to_short_form`) and has the current names of options. Paths in `base` are relative to
    the folder of the file.

    Raises:
        InputError: a file cannot be read, is not a mapping, or is among its own bases.
    """
    return _read_with_bases(Path(file), ())


def merge_configurations(base: Any, changes: Any) -> Any:
    """Merge `changes` over `base`, by the rules of `read_experiment`."""
    has_fields_only = isinstance(changes, dict) and not changes.keys() & {"type", "class_path"}
    if isinstance(base, str) and base[:1].isupper() and has_fields_only:
        base = {"type": base}  # a spec given by its bare name
    if not isinstance(base, dict) or not isinstance(changes, dict):
        return changes
    if any(key in changes and changes[key] != base.get(key, changes[key]) for key in ("type", "class_path")):
        return changes
    merged = {key: merge_configurations(base[key], value) for key, value in changes.items() if key in base}
    return base | changes | merged


def to_short_form(value: Any) -> Any:
    """Convert Lightning's `{class_path: Name, init_args: {...}}` to `{type: Name, field: value}`.

    Classes with an import path outside kiwi, such as Lightning's callbacks, keep `class_path`.
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
    if not isinstance(fields := value.get("init_args") or {}, dict):
        raise InputError(f"the init_args of {name} are not a mapping", code="wrong-type", got=repr(fields))
    return named | {key: to_short_form(item) for key, item in fields.items()}


def with_current_keys(configuration: dict[str, Any]) -> dict[str, Any]:
    """Update a configuration in short form to current option names (`RENAMED_KEYS`, `SOURCE_TYPES_BY_FIELD`)."""
    for former, current in RENAMED_KEYS.items():
        configuration = _move_value(configuration, former.split("."), former, current)
    data = configuration.get("data")
    if isinstance(data, dict):
        lists = {key: data[key] for key in ("train", "validation") if data.get(key) is not None}
        for key, sources in lists.items():
            if not isinstance(sources, list):
                problem = f"data.{key} is not a list"
                raise InputError(problem, code="wrong-type", got=repr(sources), expected=SOURCES_SYNTAX)
        typed = {key: [_add_source_type(source) for source in sources] for key, sources in lists.items()}
        configuration = configuration | {"data": data | typed}
    return configuration


def with_current_names(hint: Any, data: Any) -> Any:
    """Update plain data to the current names of specs and their fields.

    Args:
        hint: type annotation of the value that the data describes; types other than specs are ignored.
        data: name of a spec, mapping of its fields, or list of these; unknown names are not changed.
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
    name = data.get("type", "")
    if not isinstance(name, str):
        expected = format_choices(allowed_names(hint), name)
        raise InputError("the type of a spec is not a name", code="wrong-type", got=repr(name), expected=expected)
    named = {"type": resolve_type_name(name)} if name else {}
    names = named.values() if named else allowed_names(hint)
    specs = [Spec._registry[name] for name in names if name in Spec._registry]
    fields = resolve_field_names(specs, {key: value for key, value in data.items() if key != "type"})
    hints = {key: inner for spec in reversed(specs) for key, inner in typing.get_type_hints(spec).items()}
    return named | {key: with_current_names(hints.get(key), value) for key, value in fields.items()}


def get_section(configuration: Mapping[str, Any], path: str, file: Path | str) -> dict[str, Any]:
    """Get a mapping inside a configuration by dotted path, empty if it is absent; `file` is for error messages."""
    node: Any = configuration
    for name in path.split("."):
        node = node.get(name, {}) if isinstance(node, dict) else node
    if not isinstance(node, dict):
        raise InputError(f"{path} of {file} is not a mapping", code="wrong-type", got=repr(node))
    return node


def _read_with_bases(file: Path, including: tuple[Path, ...]) -> dict[str, Any]:
    """Read a file and its bases; `including` are the files that have it as a base, which it may not name."""
    if follow_links(file) in including:
        chain = " -> ".join(str(path) for path in including)
        raise InputError(f"{file} is among its own bases", code="circular-base", got=chain)
    configuration = read_yaml(file, what="configuration")
    bases = configuration.pop(BASE_KEY, []) if isinstance(configuration, dict) else []
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        expected = "a path or a list of paths"
        raise InputError(f"`{BASE_KEY}` of {file} does not name files", code="wrong-type", got=bases, expected=expected)
    merged: dict[str, Any] = {}
    for base in bases:
        merged = merge_configurations(merged, _read_with_bases(file.parent / base, (*including, follow_links(file))))
    return merge_configurations(merged, update_configuration(configuration, str(file)))


def update_configuration(configuration: Any, origin: str) -> dict[str, Any]:
    """Convert a configuration to short form and current option names; errors call it `origin`.

    Raises:
        InputError: it is not a mapping of groups (`GROUPS`), or has a key that is not text or two names of one option.
    """
    if not isinstance(configuration, dict):
        got = type(configuration).__name__
        raise InputError(f"{origin} is not a configuration", code="wrong-type", got=got, expected="a mapping")
    if key := _find_key_that_is_no_text(configuration):
        fix = "write names as keys, and put numbers and words such as yes, no, on and off in quotes"
        raise InputError(f"a key in {origin} is not text", code="wrong-type", got=key, fix=fix)
    configuration = {key: value for key, value in configuration.items() if value is not None or key not in GROUPS}
    for group in GROUPS:
        value = configuration.get(group, {})
        if not isinstance(value, dict) and not (group == "model" and isinstance(value, str)):
            problem, expected = f"{group} of {origin} is not a mapping", "a mapping of options to values"
            raise InputError(problem, code="wrong-type", got=repr(value), expected=expected)
    return with_current_keys(to_short_form(configuration))


def _find_key_that_is_no_text(value: Any, path: str = "") -> str | None:
    """The dotted path of the first key that is not text; None if there is none."""
    if isinstance(value, list):
        return next(filter(None, (_find_key_that_is_no_text(item, path) for item in value)), None)
    for key, item in value.items() if isinstance(value, dict) else ():
        inner = f"{path}.{key}" if path else str(key)
        if not isinstance(key, str):
            return inner
        if found := _find_key_that_is_no_text(item, inner):
            return found
    return None


def _move_value(node: dict[str, Any], keys: list[str], former: str, current: str) -> dict[str, Any]:
    """Copy a mapping with the value at the path `keys`, if there is one, moved to the path `current`."""
    value, present = _get_value(node, keys), _get_value(node, current.split("."))
    if value is _ABSENT:
        return node
    # The previous release wrote model.max_pixels, which was null or the same, beside data.max_pixels.
    if present is not _ABSENT and value not in (None, present):
        raise repeated_option(former, current)
    warn_renamed(former, current)
    moved = functools.reduce(lambda inner, key: {key: inner}, reversed(current.split(".")), value)
    return merge_configurations(moved, _remove_value(node, keys))


_ABSENT = object()


def _get_value(node: Any, keys: list[str]) -> Any:
    for key in keys:
        node = node.get(key, _ABSENT) if isinstance(node, dict) else _ABSENT
    return node


def _remove_value(node: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    """Copy a mapping without the value at a path, and without mappings that become empty."""
    first, *rest = keys
    others = {key: value for key, value in node.items() if key != first}
    inner = _remove_value(node[first], rest) if rest else {}
    return others | {first: inner} if inner else others


def _add_source_type(source: Any) -> Any:
    """Add its type to a data source in the form of the previous release."""
    if isinstance(source, str) and source.lower().endswith((".csv", ".jsonl", ".parquet")):
        expected = f"{{type: Manifest, path: {source}}}"
        raise InputError("a data source is not a mapping", code="wrong-type", got=repr(source), expected=expected)
    if not isinstance(source, dict) or "type" in source:
        return source
    name = next((name for field, name in SOURCE_TYPES_BY_FIELD.items() if field in source), None)
    if name is None:
        return source
    log.warning("a data source without a type is read as %s; the next release requires {type: %s, ...}", name, name)
    return {"type": name, **source}
