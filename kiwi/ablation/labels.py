"""What an arm is called: how its configuration, as `kiwi fit` understood it, differs from the base's."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kiwi.spec import filled

SHORTENED = ("model.config.", "model.")
"""Beginnings of paths that a label leaves out."""

LONGEST = 60
"""Characters of a folder's name."""

LONGEST_VALUE = 48
"""Characters of a value: longer ones are told by their beginning and a digest; study.json has them whole."""


def changes(base: Any, other: Any) -> dict[str, Any]:
    """What another configuration has otherwise, by dotted path.

    A choice of another class is told by its name, then by what differs from that class's defaults.

    Args:
        base, other: plain data as `kiwi fit` writes it into config.yaml; classes as `class_path` and `init_args`.
    """
    return dict(_changes(_plain(base), _plain(other), ""))


def label(stages: Mapping[str, Mapping[str, Any]], skipped: Iterable[str] = ()) -> str:
    """An arm's changes in words, such as "source=NoSource" or "stage2: optim.lr=0.01; without stage1".

    Args:
        stages: changes of each stage that is trained.
        skipped: stages that are not.
    """
    told = [{_short(path): _said(value) for path, value in changed.items()} for changed in stages.values()]
    everywhere = {item for item in told[0].items() if all(item in one.items() for one in told)} if told else set()
    parts = [f"{path}={value}" for path, value in told[0].items() if (path, value) in everywhere] if told else []
    for stage, one in zip(stages, told, strict=True):
        own = [f"{path}={value}" for path, value in one.items() if (path, value) not in everywhere]
        parts += [f"{stage}: {', '.join(own)}"] if own else []
    parts += [f"without {stage}" for stage in skipped]
    return "; ".join(parts) or "base"


def folder_name(label: str) -> str:
    """A name for the folder of an arm, the same for the same label and no other's."""
    name = re.sub(r"[^\w.=+-]+", "_", label, flags=re.ASCII).strip("_.") or "arm"
    if name == label:
        return name if len(name) <= LONGEST else f"{name[: LONGEST - 9]}_{_digest(label)}"
    return f"{name[: LONGEST - 9]}_{_digest(label)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _short(path: str) -> str:
    return next((path.removeprefix(start) for start in SHORTENED if path.startswith(start)), path)


def _said(value: Any) -> str:
    text = _text(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 12]}... {_digest(text)}"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_text, value)) + "]"
    if isinstance(value, dict):
        name = value.get("type", "")
        fields = ", ".join(f"{key}={_text(item)}" for key, item in value.items() if key != "type" and item is not None)
        return f"{name}({fields})" if name else "{" + fields + "}"
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return str(value)


def _changes(a: Any, b: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(a, dict) and isinstance(b, dict) and _kind(a) == _kind(b):
        for key in {**b, **a}:
            yield from _changes(a.get(key), b.get(key), f"{path}.{key}" if path else str(key))
    elif a != b and _kind(b) is not None:
        yield from _of_another(b, path)
    elif a != b:
        yield path, b


def _of_another(node: dict[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    yield path, node["type"]
    defaults = filled(node["type"])
    for key in (name for name in node if name != "type" and isinstance(defaults, dict)):
        yield from _changes(defaults.get(key), node[key], f"{path}.{key}")


def _kind(node: Any) -> str | None:
    return node.get("type") if isinstance(node, dict) else None


def _plain(value: Any) -> Any:
    """Classes as their names among their fields, `{"type": ...}`, wherever they are."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    if isinstance(value.get("class_path"), str):
        inside = {key: _plain(item) for key, item in (value.get("init_args") or {}).items()}
        return {"type": value["class_path"].rpartition(".")[2], **inside}
    return {key: _plain(item) for key, item in value.items()}
