"""Labels of arms (variants of the configuration), computed from their differences from the base configuration."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kiwi.errors import SpecError
from kiwi.spec import Spec, diff, from_dict

OMITTED_PREFIXES = ("model.config.", "model.")
"""Prefixes of option paths that labels omit."""

MAX_FOLDER_NAME = 60
"""Length of the longest folder name; longer names are cut and end with a hash."""

WINDOWS_DEVICES = r"con|prn|aux|nul|com\d|lpt\d"
"""Regular expression of the names that no file can have on Windows, whatever its suffix and case."""

MAX_VALUE = 48
"""Length of the longest value in a label; longer values are cut and end with a hash. study.json has the full values."""


def list_changed_values(base: Any, variant: Any) -> dict[str, Any]:
    """List the values of an arm's configuration that differ from the base, by dotted path.

    Both are resolved (`kiwi.training.fit.resolve`). A spec of another type appears as the name of its type, followed by
    the fields that differ from its defaults (`kiwi.spec.diff`).
    """
    return dict(_iterate_changes(_shorten_classes(base), _shorten_classes(variant), ""))


def make_arm_label(stages: Mapping[str, Mapping[str, Any]], skipped: Iterable[str] = ()) -> str:
    """Format the changes of an arm, such as "source=NoSource" or "stage2: optim.lr=0.01; without stage1".

    Args:
        stages: changed values by dotted path, for each trained stage.
        skipped: names of the stages that the arm skips.
    """
    by_stage = [
        {_shorten_path(path): _format_short(value) for path, value in stage.items()} for stage in stages.values()
    ]
    first = by_stage[0].items() if by_stage else ()
    common = [item for item in first if all(item in stage.items() for stage in by_stage)]
    parts = [f"{path}={value}" for path, value in common]
    for stage, changes in zip(stages, by_stage, strict=True):
        specific = [f"{path}={value}" for path, value in changes.items() if (path, value) not in common]
        parts += [f"{stage}: {', '.join(specific)}"] if specific else []
    parts += [f"without {stage}" for stage in skipped]
    return "; ".join(parts) or "base"


def make_folder_name(label: str) -> str:
    """Make a safe folder name from a label; different labels have different names."""
    name = re.sub(r"[^\w.=+-]+", "_", label, flags=re.ASCII).strip("_.") or "arm"
    if re.fullmatch(WINDOWS_DEVICES, name.partition(".")[0], re.IGNORECASE):
        name = f"arm_{name}"
    if name == label and len(name) <= MAX_FOLDER_NAME:
        return name
    return f"{name[: MAX_FOLDER_NAME - 9]}_{_short_hash(label)}"


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _shorten_path(path: str) -> str:
    return next((path.removeprefix(prefix) for prefix in OMITTED_PREFIXES if path.startswith(prefix)), path)


def _format_short(value: Any) -> str:
    text = _format_value(value)
    return text if len(text) <= MAX_VALUE else f"{text[: MAX_VALUE - 12]}... {_short_hash(text)}"


def _format_value(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_format_value, value)) + "]"
    if isinstance(value, dict):
        items = [(key, item) for key, item in value.items() if key != "type" and item is not None]
        fields = ", ".join(f"{key}={_format_value(item)}" for key, item in items)
        return f"{value['type']}({fields})" if "type" in value else "{" + fields + "}"
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return str(value)


def _iterate_changes(base: Any, variant: Any, path: str) -> Iterator[tuple[str, Any]]:
    if base == variant:
        return
    if (specs := _parse_specs(base, variant)) is not None:
        for field, (_, value) in diff(*specs).items():
            yield ".".join(filter(None, (path, field))), value
    elif isinstance(base, dict) and isinstance(variant, dict) and base.get("type") == variant.get("type"):
        for key in {**variant, **base}:
            yield from _iterate_changes(base.get(key), variant.get(key), f"{path}.{key}" if path else str(key))
    else:
        yield path, variant


def _parse_specs(base: Any, variant: Any) -> tuple[Spec, Spec] | None:
    """Parse both values as specs; None if one of them is something else, such as a Lightning callback."""
    if not all(isinstance(value, dict) and "type" in value for value in (base, variant)):
        return None
    try:
        return from_dict(Spec, base), from_dict(Spec, variant)
    except SpecError:
        return None


def _shorten_classes(value: Any) -> Any:
    """Rewrite Lightning's `class_path` and `init_args` as `{type: Name, field: value}`, without the module."""
    if isinstance(value, list):
        return [_shorten_classes(item) for item in value]
    if not isinstance(value, dict):
        return value
    if isinstance(value.get("class_path"), str):
        value = {"type": value["class_path"].rpartition(".")[2], **(value.get("init_args") or {})}
    return {key: _shorten_classes(item) for key, item in value.items()}
