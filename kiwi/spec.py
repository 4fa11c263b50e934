"""Specs: small frozen keyword-only dataclasses that describe a choice and build its module.

Every option of the paper is a node of a spec tree (`source=AddSource(scale=SigmaScale())`), and "off" is
a type (`NoSource`). This module gives every spec a dict round trip by *name* (never by import path,
so that data cannot name code to run), overrides by dotted path, and a diff against a baseline.
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

from kiwi.errors import SpecError, format_choices

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Base of all specs. Subclasses are frozen dataclasses; an abstract one is a family: a choice of its subclasses."""

    _registry: ClassVar[dict[str, type[Spec]]] = {}
    _renamed: ClassVar[dict[str, str]] = {}
    """Former names of specs, and the names that they have now."""

    def __init_subclass__(cls, formerly: tuple[str, ...] = (), **kwargs: Any) -> None:
        """Register a spec under its name.

        Args:
            formerly: names that it had in the previous release, which files may still use.
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
    """A dataclass field that had another name in the previous release.

    Args:
        former: the old name, which is still read, with a warning.
        arguments: of `dataclasses.field`, such as `default`.
    """
    return dataclasses.field(metadata={"formerly": former}, **arguments)


@functools.cache
def warn_renamed(former: str, current: str) -> None:
    """Warn, once for each name, that the next release will not read it."""
    log.warning("%s has been renamed to %s; the next release will not accept the old name", former, current)


def require_positive(spec: Spec, *names: str) -> None:
    """Check that fields, and all entries of those that are sequences, are at least 1; None is skipped.

    Raises:
        SpecError: names the first field that is not.
    """
    for name in names:
        value = getattr(spec, name)
        numbers = value if isinstance(value, (tuple, list)) else () if value is None else (value,)
        if any(number < 1 for number in numbers):
            raise SpecError(f"{type(spec).__name__}.{name} must be at least 1", code="out-of-range", got=value)


def abstract_specs() -> list[type[Spec]]:
    """Every family whose module has been imported."""
    return [cls for cls in Spec._registry.values() if inspect.isabstract(cls)]


def allowed_names(family: type[Spec]) -> list[str]:
    """Names of the specs that a field of type `family` accepts: its concrete subclasses, or the spec itself."""
    concrete = [cls for cls in Spec._registry.values() if not inspect.isabstract(cls)]
    return sorted(cls.__name__ for cls in concrete if issubclass(cls, family) and cls is not family) or [
        family.__name__
    ]


def to_dict(spec: Spec) -> dict[str, Any]:
    """The spec as plain data: `{"type": name, field: value, ...}`, nested specs likewise."""
    fields = {f.name: _plain(getattr(spec, f.name)) for f in dataclasses.fields(spec)}
    return {"type": type(spec).__name__, **fields}


def from_dict(family: type[Spec], data: Any, path: str = "") -> Any:
    """Build a spec of `family` from plain data.

    Args:
        family: the type of the spec, or a family of such types.
        data: what `to_dict` returns, a bare name, or a mapping with Lightning's `class_path` and `init_args`.
        path: of the data in a larger file, for messages.

    Raises:
        SpecError: an unknown name or field (with the choices), or a value of the wrong type.
    """
    cls, fields = _parse_node(family, data, path)
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls)}
    values = {}
    for key, value in fields.items():
        if key not in known:
            problem = f"{cls.__name__} has no field {_join(path, key)!r}"
            raise SpecError(problem, code="unknown-field", expected=_one_of(key, sorted(known)))
        value = _merge_with_default(known[key], hints[key], value)
        values[key] = _typed(hints[key], value, _join(path, key))
    missing = [f.name for f in dataclasses.fields(cls) if f.name not in values and _required(f)]
    if missing:
        problem = f"{cls.__name__}{path and f' at {path}'} is missing required fields"
        raise SpecError(problem, code="missing-field", expected=", ".join(missing))
    return cls(**values)


def resolve_type_name(name: str) -> str:
    """The name that a spec has now, with a warning if it was renamed since the previous release."""
    if name in Spec._renamed:
        warn_renamed(name, Spec._renamed[name])
    return Spec._renamed.get(name, name)


def resolve_field_names(specs: Iterable[type[Spec]], fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of one of these specs under the names that they have now, with a warning for each that was renamed."""
    known = [(spec.__name__, field) for spec in specs for field in dataclasses.fields(spec)]
    renamed = {field.metadata["formerly"]: (spec, field.name) for spec, field in known if "formerly" in field.metadata}
    for former in fields.keys() & renamed.keys():
        warn_renamed(f"{renamed[former][0]}.{former}", ".".join(renamed[former]))
    return {renamed[key][1] if key in renamed else key: value for key, value in fields.items()}


def _parse_node(family: type[Spec], data: Any, path: str) -> tuple[type[Spec], dict[str, Any]]:
    """The class that plain data names, which must be of the family, and its fields, both under their current names."""
    where = path or family.__name__
    if isinstance(data, Spec):
        data = to_dict(data)
    if isinstance(data, str):
        data = {"type": data}
    if not isinstance(data, dict):
        raise SpecError(f"{where} is not a spec", code="wrong-type", got=repr(data), expected="a name or a mapping")
    if data.keys() <= {"class_path", "init_args"} and "class_path" in data:
        data = {"type": str(data["class_path"]).rpartition(".")[2], **(data.get("init_args") or {})}
    allowed = allowed_names(family)
    name = data.get("type", allowed[0] if len(allowed) == 1 else None)
    if name is None:
        raise SpecError(f"{where} has no type", code="missing-type", got=data, expected=_one_of("", allowed))
    name = resolve_type_name(name) if isinstance(name, str) else name
    if name not in allowed:
        raise SpecError(f"{where} has no choice named {name!r}", code="unknown-choice", expected=_one_of(name, allowed))
    cls = Spec._registry[name]
    return cls, resolve_field_names([cls], {key: value for key, value in data.items() if key != "type"})


def override(spec: Spec, changes: dict[str, Any]) -> Any:
    """A copy of the spec with values set by dotted path: `{"source.scale": "LearnableScale", "source.scale.bins": 3}`.

    A node is replaced by a name (with all fields at their defaults) or by a mapping. The order of the
    changes does not matter: a node is always set before its fields.

    Raises:
        SpecError: a path that does not exist, with the choices at the point where it breaks.
    """
    if not all(isinstance(path, str) for path in changes):
        raise SpecError("the paths of overrides must be text", code="wrong-type", got=", ".join(map(str, changes)))
    data = to_dict(spec)
    for path in sorted(changes, key=lambda path: path.count(".")):
        *parents, last = path.split(".")
        node = data
        for depth, key in enumerate(parents):
            key = _current_key(node, key)
            child = with_defaults(node.get(key))
            if not isinstance(child, dict):
                problem = f"no spec at {'.'.join(parents[: depth + 1])!r} (in {path!r})"
                raise SpecError(problem, code="unknown-path", expected=_one_of(key, _field_names(node)))
            node[key] = node = child
        last = _current_key(node, last)
        if last not in _field_names(node):
            raise SpecError(f"no field at {path!r}", code="unknown-path", expected=_one_of(last, _field_names(node)))
        node[last] = changes[path]
    return from_dict(type(spec), data)


def diff(baseline: Spec, spec: Spec) -> dict[str, tuple[Any, Any]]:
    """The differences by dotted path, in the order of the fields: `{path: (baseline's value, spec's value)}`.

    For a node of another type these are both names, then the fields in which the spec's node differs from
    its type's defaults, so that `override(baseline, {path: new for path, (_, new) in diff.items()})` is the spec.
    """
    return dict(_diff(to_dict(baseline), to_dict(spec), ""))


def with_defaults(value: Any) -> Any:
    """A node given as a name or in part, with the defaults of its type; any other plain data is returned unchanged."""
    node = {"type": value} if isinstance(value, str) else value
    cls = Spec._registry.get(str(node.get("type"))) if isinstance(node, dict) else None
    if cls is None:
        return value
    return {"type": cls.__name__, **_defaults(cls), **node}


def _diff(a: Any, b: Any, path: str) -> typing.Iterator[tuple[str, tuple[Any, Any]]]:
    before = a["type"] if _is_node(a) else a
    if not _is_node(b):
        if a != b:
            yield path, (before, b)
    elif before == b["type"]:
        for key in b:
            yield from _diff(a.get(key), b[key], _join(path, key))
    else:
        yield path, (before, b["type"])
        yield from _diff(with_defaults(b["type"]), b, path)


def _is_node(value: Any) -> bool:
    """Whether plain data describes a spec; a mapping that merely has a key "type" does not."""
    return isinstance(value, dict) and isinstance(value.get("type"), str) and value["type"] in Spec._registry


def _defaults(cls: type[Spec]) -> dict[str, Any]:
    return {f.name: _plain(_default(f)) for f in dataclasses.fields(cls) if not _required(f)}


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _merge_with_default(field: dataclasses.Field[Any], hint: Any, value: Any) -> Any:
    """A mapping without a type, for a field that accepts one type only, over the field's default.

    jsonargparse does the same, and what fills a cache must agree with what trains from it.
    """
    if _required(field) or not isinstance(value, dict) or {"type", "class_path"} & set(value):
        return value
    default = _default(field)
    is_only_choice = (
        isinstance(default, Spec) and isinstance(hint, type) and allowed_names(hint) == [type(default).__name__]
    )
    return {**to_dict(default), **value} if is_only_choice else value


def _current_key(node: dict[str, Any], key: str) -> str:
    cls = Spec._registry.get(str(node.get("type")))
    return next(iter(resolve_field_names([cls], {key: None}))) if cls else key


def _field_names(node: dict[str, Any]) -> list[str]:
    cls = Spec._registry.get(str(node.get("type")))
    return sorted(f.name for f in dataclasses.fields(cls)) if cls else sorted(map(str, node))


def _plain(value: Any) -> Any:
    if isinstance(value, Spec):
        return to_dict(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _typed(hint: Any, value: Any, path: str) -> Any:
    """Plain data checked against a type annotation and converted to it."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _typed_union(args, value, path)
    if origin is typing.Literal:
        if not any(type(value) is type(arg) and value == arg for arg in args):
            # Right but for its type: YAML reads an unquoted 3 as a number.
            fix = "check the quotes" if str(value) in map(str, args) else None
            expected = _one_of(str(value), [repr(arg) if fix else str(arg) for arg in args])
            raise SpecError(f"{path} cannot be {value!r}", code="unknown-choice", expected=expected, fix=fix)
        return value
    if origin in (tuple, list):
        return _typed_sequence(origin, args, value, path)
    if origin is dict:
        if not isinstance(value, dict):
            raise SpecError(f"{path} is not a mapping", code="wrong-type", got=repr(value))
        return {_typed(args[0], k, f"{path}'s key"): _typed(args[1], v, _join(path, str(k))) for k, v in value.items()}
    if isinstance(hint, type) and issubclass(hint, Spec):
        return from_dict(hint, value, path)
    if hint is float and type(value) is int:
        return float(value)
    if hint is Path and isinstance(value, (str, Path)):
        return Path(value)
    if isinstance(hint, type) and type(value) is not hint:
        # YAML 1.1 reads 1e-6, which has no decimal point, as text.
        is_number = hint is float and re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", str(value), re.IGNORECASE)
        fix = "write it with a decimal point and without quotes, such as 1.0e-6" if is_number else None
        problem = f"{path} has the wrong type"
        raise SpecError(problem, code="wrong-type", got=repr(value), expected=hint.__name__, fix=fix)
    if hint is float and math.isnan(value):
        raise SpecError(f"{path} is not a number", code="out-of-range", got=value)
    return value


def _typed_union(options: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and type(None) in options:
        return None
    errors = []
    for option in (option for option in options if option is not type(None)):
        try:
            return _typed(option, value, path)
        except SpecError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    sentence, expected = f"{path} matches none of the allowed types", "; or ".join(map(str, errors))
    raise SpecError(sentence, code="wrong-type", got=repr(value), expected=expected)


def _typed_sequence(origin: Any, args: tuple[Any, ...], value: Any, path: str) -> Any:
    if not isinstance(value, (list, tuple)):
        raise SpecError(f"{path} is not a list", code="wrong-type", got=repr(value))
    if origin is tuple and Ellipsis not in args and len(args) != len(value):
        raise SpecError(f"{path} has the wrong length", code="wrong-type", got=len(value), expected=len(args))
    item_hints = args if origin is tuple and Ellipsis not in args else [args[0]] * len(value)
    items = (_typed(h, v, f"{path}[{i}]") for i, (h, v) in enumerate(zip(item_hints, value, strict=True)))
    return origin(items)


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _one_of(given: object, allowed: list[str]) -> str:
    return format_choices(allowed, given) if allowed else "no fields at all"


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
