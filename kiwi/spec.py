"""Specs: small frozen keyword-only dataclasses, each of which describes a component and builds its module.

A configuration is a tree of specs (`source=AddSource(scale=SigmaScale())`), in which "off" is a type (`NoSource`).
This module converts specs to plain dictionaries and back, applies overrides by dotted path, and computes the
difference to a baseline. Types are looked up by *name*, never by import path, so that a file cannot run code.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import logging
import math
import re
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from kiwi.errors import SpecError, format_choices, repeated_option

log = logging.getLogger(__name__)

LARGEST = 10**9
"""Largest number that is accepted as a size or a count, in specs and in options."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Base class of all specs. A field whose type is an abstract spec accepts any of its concrete subclasses."""

    _registry: ClassVar[dict[str, type[Spec]]] = {}
    _renamed: ClassVar[dict[str, str]] = {}
    """Current names of renamed specs: `{former: current}`."""

    def __init_subclass__(cls, formerly: tuple[str, ...] = (), **kwargs: Any) -> None:
        """Register a spec under its name.

        Args:
            formerly: names of this spec in the previous release, which files may still use.
        """
        super().__init_subclass__(**kwargs)
        Spec._renamed.update(dict.fromkeys(formerly, cls.__name__))
        known = Spec._registry.setdefault(cls.__name__, cls)
        assert known.__module__ == cls.__module__, f"two specs are named {cls.__name__}"
        Spec._registry[cls.__name__] = cls

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)


def renamed_from(former: str, **arguments: Any) -> Any:
    """Declare a dataclass field that had another name in the previous release.

    Args:
        former: the old name, which files may still use; reading it logs a warning.
        arguments: arguments for `dataclasses.field`, such as `default`.
    """
    return dataclasses.field(metadata={"formerly": former}, **arguments)


@functools.cache
def warn_renamed(former: str, current: str) -> None:
    """Log, once for each name, that it was renamed and that the next release will reject the former name."""
    log.warning("%s has been renamed to %s; the next release will not accept the old name", former, current)


def require_positive(spec: Spec, *names: str) -> None:
    """Raise a SpecError if a named field, or an entry of a sequence in it, is not in 1 to LARGEST; None is accepted."""
    for name in names:
        value = getattr(spec, name)
        entries = value if isinstance(value, (tuple, list)) else () if value is None else (value,)
        if not all(1 <= entry <= LARGEST for entry in entries):
            bound = f"at most {LARGEST:,}" if any(entry > LARGEST for entry in entries) else "at least 1"
            problem, expected = f"{type(spec).__name__}.{name} must be {bound}", f"1 to {LARGEST:,}"
            raise SpecError(problem, code="out-of-range", got=value, expected=expected)


def abstract_specs() -> list[type[Spec]]:
    """All abstract specs whose modules have been imported."""
    return [cls for cls in Spec._registry.values() if inspect.isabstract(cls)]


def allowed_names(base: type[Spec]) -> list[str]:
    """Names of the specs that a field of type `base` accepts: its concrete subclasses, or else itself."""
    subclasses = [cls for cls in Spec._registry.values() if issubclass(cls, base) and cls is not base]
    return sorted(cls.__name__ for cls in subclasses if not inspect.isabstract(cls)) or [base.__name__]


def to_dict(spec: Spec) -> dict[str, Any]:
    """Convert a spec, and the specs in its fields, to plain data: `{"type": name, field: value, ...}`."""
    fields = {f.name: to_plain(getattr(spec, f.name)) for f in dataclasses.fields(spec)}
    return {"type": type(spec).__name__, **fields}


def from_dict(base: type[Spec], data: Any, path: str = "") -> Any:
    """Build a spec from plain data.

    Args:
        base: the type of the spec, or an abstract base class of the allowed types.
        data: the result of `to_dict`, the name of a type, or a mapping with Lightning's `class_path` and `init_args`.
        path: dotted path of the data in the whole configuration, for error messages.

    Raises:
        SpecError: an unknown type or field (the message lists the known ones), or a value of the wrong type.
    """
    cls, fields = _parse_node(base, data, path)
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls)}
    values = {}
    for key, value in fields.items():
        if key not in known:
            message = f"{cls.__name__} has no field {_join_path(path, key)!r}"
            raise SpecError(message, code="unknown-field", expected=format_choices(sorted(known), key))
        value = _merge_with_default(known[key], hints[key], value)
        values[key] = convert(hints[key], value, _join_path(path, key))
    missing = [f.name for f in dataclasses.fields(cls) if f.name not in values and _is_required(f)]
    if missing:
        message = f"{cls.__name__}{path and f' at {path}'} is missing required fields"
        raise SpecError(message, code="missing-field", expected=", ".join(missing))
    return cls(**values)


def resolve_type_name(name: str) -> str:
    """The current name of a spec; a name from the previous release is accepted with a warning."""
    if name in Spec._renamed:
        warn_renamed(name, Spec._renamed[name])
    return Spec._renamed.get(name, name)


def resolve_field_names(specs: Iterable[type[Spec]], fields: dict[str, Any]) -> dict[str, Any]:
    """Field values under the current names of these specs' fields; former names are accepted with a warning."""
    known = [(spec.__name__, field) for spec in specs for field in dataclasses.fields(spec)]
    renamed = {field.metadata["formerly"]: (spec, field.name) for spec, field in known if "formerly" in field.metadata}
    for former in fields.keys() & renamed.keys():
        if renamed[former][1] in fields:
            raise repeated_option(former, renamed[former][1])
        warn_renamed(f"{renamed[former][0]}.{former}", ".".join(renamed[former]))
    return {renamed[key][1] if key in renamed else key: value for key, value in fields.items()}


def _parse_node(base: type[Spec], data: Any, path: str) -> tuple[type[Spec], dict[str, Any]]:
    """The class that plain data names, a subclass of `base`, and its field values under current names."""
    label = path or base.__name__
    if isinstance(data, Spec):
        data = to_dict(data)
    if isinstance(data, str):
        data = {"type": data}
    if not isinstance(data, dict):
        raise SpecError(f"{label} is not a spec", code="wrong-type", got=repr(data), expected="a name or a mapping")
    if data.keys() <= {"class_path", "init_args"} and "class_path" in data:
        data = {"type": str(data["class_path"]).rpartition(".")[2], **(data.get("init_args") or {})}
    allowed = allowed_names(base)
    name = data.get("type", allowed[0] if len(allowed) == 1 else None)
    if name is None:
        raise SpecError(f"{label} has no type", code="missing-type", got=data, expected=format_choices(allowed, ""))
    name = resolve_type_name(name) if isinstance(name, str) else name
    if name not in allowed:
        message = f"{label} has no choice named {name!r}"
        raise SpecError(message, code="unknown-choice", expected=format_choices(allowed, name))
    cls = Spec._registry[name]
    return cls, resolve_field_names([cls], {key: value for key, value in data.items() if key != "type"})


def override(spec: Spec, changes: dict[str, Any]) -> Any:
    """Copy a spec with values set by dotted path: `{"source.scale": "LearnableScale", "source.scale.bins": 3}`.

    The new value of a nested spec is a name (all fields take their defaults) or a mapping. The order of the changes
    does not matter: a nested spec is always set before its fields.

    Raises:
        SpecError: a path that does not exist; the message lists the fields at the first unknown part of the path.
    """
    if not all(isinstance(path, str) for path in changes):
        raise SpecError("the paths of overrides must be text", code="wrong-type", got=", ".join(map(str, changes)))
    data = to_dict(spec)
    for path in sorted(changes, key=lambda path: path.count(".")):
        *parents, last = path.split(".")
        node = data
        for depth, key in enumerate(parents, 1):
            parent = ".".join(parents[:depth])
            key = _find_field(node, key, parent)
            child = with_defaults(node.get(key))
            if not isinstance(child, dict):
                raise SpecError(f"{parent!r} is not a spec, so {path!r} cannot be set", code="unknown-field", got=child)
            node[key] = node = child
        node[_find_field(node, last, path)] = changes[path]
    return from_dict(type(spec), data)


def diff(baseline: Spec, spec: Spec) -> dict[str, tuple[Any, Any]]:
    """The differences by dotted path, in the order of the fields: `{path: (baseline's value, spec's value)}`.

    Where the types differ, the result has both type names, then the fields in which the spec differs from the defaults
    of its type. Therefore `override(baseline, {path: new for path, (_, new) in diff.items()})` equals the spec.
    """
    return dict(_iterate_differences(to_dict(baseline), to_dict(spec), ""))


def with_defaults(value: Any) -> Any:
    """Complete a spec's plain data, a name or some of its fields, with defaults; other data is returned unchanged."""
    node = {"type": value} if isinstance(value, str) else value
    cls = Spec._registry.get(str(node.get("type"))) if isinstance(node, dict) else None
    if cls is None:
        return value
    defaults = {f.name: to_plain(_get_default(f)) for f in dataclasses.fields(cls) if not _is_required(f)}
    return {"type": cls.__name__, **defaults, **node}


def _iterate_differences(old: Any, new: Any, path: str) -> typing.Iterator[tuple[str, tuple[Any, Any]]]:
    old_label = old["type"] if _is_node(old) else old
    if not _is_node(new):
        if old != new:
            yield path, (old_label, new)
    elif old_label == new["type"]:
        for key in new:
            yield from _iterate_differences(old.get(key), new[key], _join_path(path, key))
    else:
        yield path, (old_label, new["type"])
        yield from _iterate_differences(with_defaults(new["type"]), new, path)


def _is_node(value: Any) -> bool:
    """Whether plain data describes a spec: its "type" must be the name of one."""
    return isinstance(value, dict) and isinstance(value.get("type"), str) and value["type"] in Spec._registry


def _get_default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _merge_with_default(field: dataclasses.Field[Any], hint: Any, value: Any) -> Any:
    """Merge a mapping without a type over the default of its field, if the field accepts one type only.

    jsonargparse does the same, so that `kiwi cache` and `kiwi fit` read a configuration alike.
    """
    if _is_required(field) or not isinstance(value, dict) or {"type", "class_path"} & set(value):
        return value
    default = _get_default(field)
    is_only_choice = (
        isinstance(default, Spec) and isinstance(hint, type) and allowed_names(hint) == [type(default).__name__]
    )
    return {**to_dict(default), **value} if is_only_choice else value


def _find_field(node: dict[str, Any], key: str, path: str) -> str:
    """The current name of the field `key` of a spec's plain data; `path` is that of the field, for the error."""
    cls = Spec._registry.get(str(node.get("type")))
    names = sorted(f.name for f in dataclasses.fields(cls)) if cls else sorted(map(str, node))
    name = next(iter(resolve_field_names([cls], {key: None}))) if cls else key
    if name not in names:
        message = f"{cls.__name__ if cls else 'the mapping'} has no field {path!r}"
        raise SpecError(message, code="unknown-field", expected=format_choices(names, name))
    return name


def to_plain(value: Any) -> Any:
    """Convert specs, paths, and numbers and arrays of NumPy, also inside lists and mappings, to plain data."""
    if isinstance(value, Spec):
        return to_dict(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    # Classes have the method too.
    return value.tolist() if hasattr(value, "tolist") and not isinstance(value, type) else value


def convert(hint: Any, value: Any, path: str) -> Any:
    """Check plain data against a type annotation and convert it; `path` is for error messages, which are SpecErrors."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(args, value, path)
    if origin is typing.Literal:
        if not any(type(value) is type(arg) and value == arg for arg in args):
            # The value is allowed but its type is wrong: YAML reads an unquoted 3 as a number.
            fix = "check the quotes" if str(value) in map(str, args) else None
            expected = format_choices([repr(arg) if fix else str(arg) for arg in args], value)
            raise SpecError(f"{path} cannot be {value!r}", code="unknown-choice", expected=expected, fix=fix)
        return value
    if origin in (tuple, list):
        return _convert_sequence(origin, args, value, path)
    if origin is dict:
        if not isinstance(value, dict):
            raise SpecError(f"{path} is not a mapping", code="wrong-type", got=repr(value))
        keys = [convert(args[0], key, f"{path}'s key") for key in value]
        return {key: convert(args[1], value[key], _join_path(path, str(key))) for key in keys}
    if isinstance(hint, type) and issubclass(hint, Spec):
        return from_dict(hint, value, path)
    if hint is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise SpecError(f"{path} is too large for a number", code="out-of-range") from None
    if hint is Path and isinstance(value, (str, Path)):
        if value == "":  # Path would make it the current folder
            raise SpecError(f"the path {path} is empty", code="empty-path", fix="write . for the current folder")
        return Path(value)
    if isinstance(hint, type) and type(value) is not hint:
        # YAML 1.1 reads 1e-6, which has no decimal point, as text.
        is_number = hint is float and re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", str(value), re.IGNORECASE)
        fix = "write it with a decimal point and without quotes, such as 1.0e-6" if is_number else None
        message = f"{path} has the wrong type"
        raise SpecError(message, code="wrong-type", got=repr(value), expected=hint.__name__, fix=fix)
    if hint is float and not math.isfinite(value):
        raise SpecError(f"{path} is not a finite number", code="out-of-range", got=value)
    return value


def _convert_union(options: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and type(None) in options:
        return None
    errors = []
    for option in (option for option in options if option is not type(None)):
        try:
            return convert(option, value, path)
        except SpecError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    message, expected = f"{path} matches none of the allowed types", "; or ".join(map(str, errors))
    raise SpecError(message, code="wrong-type", got=repr(value), expected=expected)


def _convert_sequence(origin: Any, args: tuple[Any, ...], value: Any, path: str) -> Any:
    if not isinstance(value, (list, tuple)):
        raise SpecError(f"{path} is not a list", code="wrong-type", got=repr(value))
    if origin is tuple and Ellipsis not in args and len(args) != len(value):
        raise SpecError(f"{path} has the wrong length", code="wrong-type", got=len(value), expected=len(args))
    item_hints = args if origin is tuple and Ellipsis not in args else [args[0]] * len(value)
    items = (convert(h, v, f"{path}[{i}]") for i, (h, v) in enumerate(zip(item_hints, value, strict=True)))
    return origin(items)


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _join_path(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
