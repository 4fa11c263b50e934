"""Labels of arms: how an arm's resolved configuration differs from the base's."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kiwi.errors import SpecError
from kiwi.spec import Spec, diff, from_dict

OMITTED_PREFIXES = ("model.config.", "model.")
"""Beginnings of paths that a label leaves out."""

MAX_FOLDER_NAME = 60
MAX_VALUE = 48
"""Characters; longer names and values are cut and get a digest. study.json has the values in full."""


def changes(base: Any, other: Any) -> dict[str, Any]:
    """The values of another configuration that differ, by dotted path.

    Specs are compared by `kiwi.spec.diff`: a spec of another type appears as its name, followed by the fields that
    differ from its defaults.

    Args:
        base, other: resolved configurations, as `kiwi.training.fit.resolve` returns them.
    """
    return dict(_changes(_short_form(base), _short_form(other), ""))


def arm_label(stages: Mapping[str, Mapping[str, Any]], skipped: Iterable[str] = ()) -> str:
    """An arm's changes as text, such as "source=NoSource" or "stage2: optim.lr=0.01; without stage1".

    Args:
        stages: changes of each stage that is trained.
        skipped: stages that are not.
    """
    by_stage = [{_short_path(path): _value_text(value) for path, value in of.items()} for of in stages.values()]
    first = by_stage[0].items() if by_stage else ()
    everywhere = [item for item in first if all(item in of.items() for of in by_stage)]
    parts = [f"{path}={value}" for path, value in everywhere]
    for stage, of in zip(stages, by_stage, strict=True):
        specific = [f"{path}={value}" for path, value in of.items() if (path, value) not in everywhere]
        parts += [f"{stage}: {', '.join(specific)}"] if specific else []
    parts += [f"without {stage}" for stage in skipped]
    return "; ".join(parts) or "base"


def folder_name(label: str) -> str:
    """A file name for a label, the same for the same label and different for others."""
    name = re.sub(r"[^\w.=+-]+", "_", label, flags=re.ASCII).strip("_.") or "arm"
    if name == label and len(name) <= MAX_FOLDER_NAME:
        return name
    return f"{name[: MAX_FOLDER_NAME - 9]}_{_digest(label)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _short_path(path: str) -> str:
    return next((path.removeprefix(prefix) for prefix in OMITTED_PREFIXES if path.startswith(prefix)), path)


def _value_text(value: Any) -> str:
    text = _text(value)
    return text if len(text) <= MAX_VALUE else f"{text[: MAX_VALUE - 12]}... {_digest(text)}"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_text, value)) + "]"
    if isinstance(value, dict):
        fields = ", ".join(f"{key}={_text(item)}" for key, item in value.items() if key != "type" and item is not None)
        return f"{value['type']}({fields})" if "type" in value else "{" + fields + "}"
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return str(value)


def _changes(base: Any, other: Any, path: str) -> Iterator[tuple[str, Any]]:
    if base == other:
        return
    if (specs := _specs(base, other)) is not None:
        for field, (_, value) in diff(*specs).items():
            yield ".".join(filter(None, (path, field))), value
    elif isinstance(base, dict) and isinstance(other, dict) and base.get("type") == other.get("type"):
        for key in {**other, **base}:
            yield from _changes(base.get(key), other.get(key), f"{path}.{key}" if path else str(key))
    else:
        yield path, other


def _specs(base: Any, other: Any) -> tuple[Spec, Spec] | None:
    """Both as specs; None unless both have a type that is a spec, unlike that of a Lightning module or callback."""
    if not all(isinstance(value, dict) and "type" in value for value in (base, other)):
        return None
    try:
        return from_dict(Spec, base), from_dict(Spec, other)
    except SpecError:
        return None


def _short_form(value: Any) -> Any:
    """Classes of other packages too as `{type: Name, field: value}`, without their module."""
    if isinstance(value, list):
        return [_short_form(item) for item in value]
    if not isinstance(value, dict):
        return value
    if isinstance(value.get("class_path"), str):
        value = {"type": value["class_path"].rpartition(".")[2], **(value.get("init_args") or {})}
    return {key: _short_form(item) for key, item in value.items()}
