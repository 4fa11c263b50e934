"""Specs: small frozen keyword-only dataclasses that describe a choice and build its module.

A toggle of the paper is a node of a spec tree (`source=AddSource(scale=SigmaScale())`), and "off" is
a type (`NoSource`). This module gives every spec a dict round trip by *name* (never by import path,
so that data cannot name code to run), overrides by dotted path, and a diff against a baseline.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import logging
import math
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from kiwi.errors import SpecError, one_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Base of all specs. A subclass is a frozen dataclass; a family is a direct subclass of Spec."""

    _registry: ClassVar[dict[str, type[Spec]]] = {}
    _former: ClassVar[dict[str, str]] = {}
    """Names of specs before they were renamed, and what they are called now."""

    def __init_subclass__(cls, formerly: tuple[str, ...] = (), **kwargs: Any) -> None:
        """Register a spec under its name.

        Args:
            formerly: names that it had in the release before, which files may still use.
        """
        super().__init_subclass__(**kwargs)
        Spec._former.update(dict.fromkeys(formerly, cls.__name__))
        known = Spec._registry.setdefault(cls.__name__, cls)
        assert known.__module__ == cls.__module__, f"two specs are named {cls.__name__}"
        Spec._registry[cls.__name__] = cls

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


def renamed_from(former: str, **arguments: Any) -> Any:
    """A field that files of the previous release call by another name.

    Args:
        former: the old name, still read with a warning.
        arguments: of `dataclasses.field`, such as `default`.
    """
    return dataclasses.field(metadata={"formerly": former}, **arguments)


@functools.cache
def _warn_renamed(former: str, now: str) -> None:
    log.warning("%s is now called %s; the old name will not be read by the next release", former, now)


def require_positive(spec: Spec, *names: str) -> None:
    """Refuse fields below 1; of a sequence every entry counts, and None is passed over.

    Raises:
        SpecError: naming the first such field.
    """
    for name in names:
        value = getattr(spec, name)
        numbers = value if isinstance(value, (tuple, list)) else () if value is None else (value,)
        if any(number < 1 for number in numbers):
            raise SpecError(f"{type(spec).__name__}.{name} must be at least 1", got=value)


def families() -> list[type[Spec]]:
    """Every family whose module has been imported: where one spec may be exchanged for another by name."""
    return [cls for cls in Spec._registry.values() if inspect.isabstract(cls)]


def choices(family: type[Spec]) -> list[str]:
    """Names that may stand where `family` is asked for: its concrete subclasses, or itself."""
    found = [name for name, cls in Spec._registry.items() if issubclass(cls, family) and cls is not family]
    return sorted(found) or [family.__name__]


def to_dict(spec: Spec) -> dict[str, Any]:
    """The spec as plain data: `{"type": name, field: value, ...}`, nested specs likewise."""
    fields = {f.name: _plain(getattr(spec, f.name)) for f in dataclasses.fields(spec)}
    return {"type": type(spec).__name__, **fields}


def from_dict(family: type[Spec], data: Any, path: str = "") -> Any:
    """Build a spec of `family` from what `to_dict` wrote, from a bare name, or from an experiment's `class_path`.

    Raises:
        SpecError: unknown name or field (the choices are listed), a value of the wrong type.
    """
    if isinstance(data, Spec):
        data = to_dict(data)
    if isinstance(data, str):
        data = {"type": data}
    if not isinstance(data, dict):
        raise SpecError(f"{path or family.__name__} is not a spec", got=repr(data), wanted="a name or a mapping")
    if data.keys() <= {"class_path", "init_args"} and "class_path" in data:
        data = {"type": str(data["class_path"]).rpartition(".")[2], **(data.get("init_args") or {})}
    allowed = choices(family)
    name = data.get("type", allowed[0] if len(allowed) == 1 else None)
    if name is None:
        raise SpecError(f"{path or family.__name__} does not say its type", got=data, wanted=_one_of("", allowed))
    if isinstance(name, str) and name in Spec._former:
        _warn_renamed(name, Spec._former[name])
        name = Spec._former[name]
    if name not in allowed:
        raise SpecError(f"{path or family.__name__} has no choice named {name!r}", wanted=_one_of(name, allowed))
    cls = Spec._registry[name]
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls)}
    former = {f.metadata["formerly"]: f.name for f in known.values() if "formerly" in f.metadata}
    values = {}
    for key, value in data.items():
        if key == "type":
            continue
        if key in former:
            _warn_renamed(f"{name}.{key}", f"{name}.{former[key]}")
            key = former[key]
        if key not in known:
            raise SpecError(f"{name} has no field {_join(path, key)!r}", wanted=_one_of(key, sorted(known)))
        values[key] = _typed(hints[key], _upon(known[key], hints[key], value), _join(path, key))
    missing = [f.name for f in dataclasses.fields(cls) if f.name not in values and _required(f)]
    if missing:
        raise SpecError(f"{name} at {path or 'the top'} needs {', '.join(missing)}")
    return cls(**values)


def override(spec: Spec, changes: dict[str, Any]) -> Any:
    """A copy of the spec with values set by dotted path: `{"source.scale": "LearnableScale", "source.scale.bins": 3}`.

    A node is replaced by a name (the rest of it at its defaults) or by a mapping. The order of the
    changes does not matter: a node is set before what stands in it.

    Raises:
        SpecError: a path that does not exist, with the choices at the place where it breaks.
    """
    if wrong := [path for path in changes if not isinstance(path, str)]:
        raise SpecError("an override is named by a dotted path", got=wrong[0], wanted="text, such as source.scale")
    data = to_dict(spec)
    for path in sorted(changes, key=lambda path: path.count(".")):
        *parents, last = path.split(".")
        node = data
        for depth, key in enumerate(parents):
            child = filled(node.get(key))
            if not isinstance(child, dict):
                where = ".".join(parents[: depth + 1])
                raise SpecError(f"no spec at {where!r} (in {path!r})", wanted=_one_of(key, _field_names(node)))
            node[key] = node = child
        if last not in _field_names(node):
            raise SpecError(f"no field at {path!r}", wanted=_one_of(last, _field_names(node)))
        node[last] = changes[path]
    return from_dict(type(spec), data)


def diff(baseline: Spec, spec: Spec) -> dict[str, tuple[Any, Any]]:
    """What differs, by dotted path in the order of the fields: `{path: (baseline's value, spec's value)}`.

    A node of another type is told by both names, then by the fields in which the spec's node differs from
    its type's defaults, so that `override(baseline, {path: new for path, (_, new) in diff.items()})` is the spec.
    """
    return dict(_diff(to_dict(baseline), to_dict(spec), ""))


def filled(value: Any) -> Any:
    """A node given as a name or in part, with the defaults of its type; what is no node comes back as it is."""
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
        yield from _diff(filled(b["type"]), b, path)


def _is_node(value: Any) -> bool:
    """Whether plain data is a spec's; a mapping with a key "type" of its own is not."""
    return isinstance(value, dict) and isinstance(value.get("type"), str) and value["type"] in Spec._registry


def _defaults(cls: type[Spec]) -> dict[str, Any]:
    fields = [f for f in dataclasses.fields(cls) if not _required(f)]
    return {
        f.name: _plain(f.default if f.default_factory is dataclasses.MISSING else f.default_factory()) for f in fields
    }


def _upon(field: dataclasses.Field[Any], hint: Any, value: Any) -> Any:
    """A part of a node that can be of one type only, over the field's default: as the command line reads it."""
    if _required(field) or not isinstance(value, dict) or {"type", "class_path"} & set(value):
        return value
    default: Any = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    alone = isinstance(default, Spec) and isinstance(hint, type) and choices(hint) == [type(default).__name__]
    return {**to_dict(default), **value} if alone else value


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
    """Check and convert `value` to what the annotation says; plain data only."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _typed_union(args, value, path)
    if origin is typing.Literal:
        if not any(type(value) is type(arg) and value == arg for arg in args):
            if str(value) in map(str, args):  # the right word of the wrong type, as YAML makes 3 of an unquoted "3"
                wanted = f"one of {', '.join(map(repr, args))}"
                raise SpecError(f"{path} cannot be {value!r}", wanted=wanted, fix="mind the quotes")
            raise SpecError(f"{path} cannot be {value!r}", wanted=_one_of(str(value), [str(arg) for arg in args]))
        return value
    if origin in (tuple, list):
        return _typed_sequence(origin, args, value, path)
    if origin is dict:
        if not isinstance(value, dict):
            raise SpecError(f"{path} is not a mapping", got=repr(value))
        return {_typed(args[0], k, f"{path}'s key"): _typed(args[1], v, _join(path, str(k))) for k, v in value.items()}
    if isinstance(hint, type) and issubclass(hint, Spec):
        return from_dict(hint, value, path)
    if hint is float and type(value) is int:
        return float(value)
    if hint is Path and isinstance(value, (str, Path)):
        return Path(value)
    if isinstance(hint, type) and type(value) is not hint:
        # YAML 1.1 reads 1e-6, which has no point, as text.
        is_number = hint is float and _is_number(value)
        fix = "write it with a point and without quotes, such as 1.0e-6" if is_number else None
        raise SpecError(f"{path} has the wrong type", got=repr(value), wanted=hint.__name__, fix=fix)
    if hint is float and math.isnan(value):
        raise SpecError(f"{path} is not a number", got=value)
    return value


def _typed_union(options: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and type(None) in options:
        return None
    errors = []
    for option in (option for option in options if option is not type(None)):
        try:
            return _typed(option, value, path)
        except SpecError as problem:
            errors.append(problem)
    if len(errors) == 1:
        raise errors[0]
    raise SpecError(f"{path} fits nothing that it may be", got=repr(value), wanted="; or ".join(str(e) for e in errors))


def _typed_sequence(origin: Any, args: tuple[Any, ...], value: Any, path: str) -> Any:
    if not isinstance(value, (list, tuple)):
        raise SpecError(f"{path} is not a list", got=repr(value))
    if origin is tuple and Ellipsis not in args and len(args) != len(value):
        raise SpecError(f"{path} has the wrong length", got=len(value), wanted=len(args))
    item_hints = args if origin is tuple and Ellipsis not in args else [args[0]] * len(value)
    items = (_typed(h, v, f"{path}[{i}]") for i, (h, v) in enumerate(zip(item_hints, value, strict=True)))
    return origin(items)


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _is_number(value: object) -> bool:
    try:
        return isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        return False


def _one_of(given: object, allowed: list[str]) -> str:
    if not allowed:
        return "nothing: it has no fields"
    return one_of(allowed, given)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
