"""The one reader of YAML and the one of JSON, for all files and texts that users hand in.

Both bound what a small file can cost: its size, its depth, the values that its aliases stand for, and its numbers.
"""

import json
import math
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from kiwi.errors import InputError, KiwiError

ObjectHook = Callable[[dict[str, Any]], Any]
PairsHook = Callable[[list[tuple[str, Any]]], Any]

MAX_CHARACTERS = 64 * 2**20
"""Length of a text that is parsed; the largest files, the vocabularies of tokenizers, have about 12 million."""

MAX_DEPTH = 100
"""Mappings and lists inside one another; a configuration has about ten."""

MAX_YAML_VALUES = 200_000
"""Values in a YAML text if every alias is replaced by what it stands for; PyYAML reads this many in half a minute."""

MAX_INSTRUCTION = 10_000
"""Characters of an instruction, a caption or another description; the memory of attention grows with their square."""

_MAX_INTEGER = 2**64


def require_file(
    path: str | Path, error: type[KiwiError] = InputError, what: str = "file", code: str | None = None
) -> Path:
    """Return `path` as a Path if it is a file that can be read. Pipes and devices, which may wait forever, are refused.

    Args:
        path: path of the file.
        error: class of the error for anything else.
        what: name of the file in the message.
        code: code of the error, instead of one that depends on the problem.
    """
    path, check = Path(path), "check the path"
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise error(f"the {what} {path} does not exist", code=code or "missing-file", fix=check) from None
    except (OSError, ValueError) as reason:  # a name that is too long or has a NUL, a folder that may not be searched
        got = getattr(reason, "strerror", None) or reason
        raise error(f"the {what} {path} cannot be read", code=code or "unreadable-file", got=got, fix=check) from None
    if not stat.S_ISREG(mode):
        kind = "folder" if stat.S_ISDIR(mode) else "device or pipe"
        fix = f"give the path of a {what}"
        raise error(f"{path} is a {kind}, not a {what}", code=code or "not-a-file", fix=fix)
    if not os.access(path, os.R_OK):
        problem, fix = f"the {what} {path} cannot be read", "change its permissions (chmod +r)"
        raise error(problem, code=code or "unreadable-file", got="permission denied", fix=fix)
    return path


def follow_links(path: str | Path) -> Path:
    """The absolute path without symbolic links; unlike `Path.resolve`, it does not raise for a loop of links.

    Raises:
        InputError: a path that no file can have, because it has a NUL character.
    """
    try:
        return Path(os.path.realpath(path))
    except ValueError as error:
        problem = f"the path {path} cannot be used"
        raise InputError(problem, code="unusable-path", got=error, fix="check the path") from None


def require_text(text: str, what: str = "instruction", longest: int = MAX_INSTRUCTION) -> None:
    """Raise an InputError for a text that is too long, or that has characters that tokenizers and files do not take.

    These are NUL and lone surrogates, as from broken JSON or a wrongly decoded command line. Errors call it `what`.
    """
    if len(text) > longest:
        problem, expected = f"the {what} has {len(text)} characters", f"at most {longest}"
        raise InputError(problem, code="too-long", expected=expected, fix="shorten it")
    if any(char == "\0" or "\ud800" <= char <= "\udfff" for char in text):
        problem = f"the {what} is not valid Unicode text: it contains a NUL or a lone surrogate"
        raise InputError(problem, code="invalid-unicode", got=ascii(text)[:200], fix="write it again as UTF-8")


def read_yaml(file: str | Path, error: type[KiwiError] = InputError, what: str = "file") -> Any:
    """Read a YAML file with `parse_yaml`; raise `error` if it cannot be read. Errors call the file `what`."""
    return _read(file, error, what, parse_yaml)


def read_json(
    file: str | Path, error: type[KiwiError] = InputError, what: str = "file", object_hook: ObjectHook | None = None
) -> Any:
    """Read a JSON file with `parse_json`; raise `error` if it cannot be read. Errors call the file `what`."""
    return _read(file, error, what, lambda text: parse_json(text, object_hook=object_hook))


def parse_yaml(text: str) -> Any:
    """Parse YAML with plain values only: no infinite or huge numbers, no repeated keys, and no dates that do not exist.

    Raises:
        ValueError: the text is invalid or too large; the message is one line.
    """
    _require_length(text)
    try:
        return yaml.load(text, _BoundedLoader)
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from None
    except Exception as error:  # PyYAML raises IndexError, KeyError and others for tags that do not fit their values
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None


def parse_json(
    text: str,
    *,
    allow_nan: bool = False,
    object_hook: ObjectHook | None = None,
    object_pairs_hook: PairsHook | None = None,
) -> Any:
    """Parse JSON.

    Args:
        text: JSON text.
        allow_nan: whether numbers may be NaN or infinite, as in logs of metrics.
        object_hook, object_pairs_hook: convert every object, as in `json.loads`.

    Raises:
        ValueError: the text is invalid or too large; the message is one line.
    """
    _require_length(text)
    try:
        value = json.loads(
            text,
            object_hook=object_hook,
            object_pairs_hook=object_pairs_hook,
            parse_int=_parse_integer,
            parse_float=float if allow_nan else _parse_finite,
            parse_constant=float if allow_nan else _parse_finite,
        )
        _require_depth(value)
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from None
    return value


def _read(file: str | Path, error: type[KiwiError], what: str, parse: Callable[[str], Any]) -> Any:
    file = require_file(file, error, what, code="unreadable-file")
    try:
        if file.stat().st_size > 4 * MAX_CHARACTERS:
            raise ValueError(f"it has more than {MAX_CHARACTERS} characters")
        return parse(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as reason:
        raise error(f"the {what} {file} cannot be read", code="unreadable-file", got=reason) from None


def _require_length(text: str) -> None:
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"it has more than {MAX_CHARACTERS} characters")


def _require_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [item for node in level if isinstance(node, dict | list) for item in _list_items(node)]
        if not level:
            return
    raise ValueError(f"it is nested more than {MAX_DEPTH} deep")


def _list_items(node: dict[str, Any] | list[Any]) -> list[Any]:
    return [item for item in (node.values() if isinstance(node, dict) else node) if isinstance(item, dict | list)]


def _parse_integer(text: str) -> int:
    return _require_bounded(int(text[:100]))  # 100 digits are too many already


def _parse_finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is not a finite number")
    return value


def _require_bounded(value: int) -> int:
    if abs(value) >= _MAX_INTEGER:
        raise ValueError("it has an integer of more than 64 bits")
    return value


class _BoundedLoader(yaml.SafeLoader):
    """PyYAML's loader of plain values, which counts depth and values while it composes them."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._depth = self._values = 0
        self._sizes: dict[yaml.Node, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        is_alias = self.check_event(yaml.AliasEvent)
        self._depth += 1
        before = self._values
        if self._depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
        node = super().compose_node(parent, index)
        assert node is not None  # PyYAML's annotation allows for a stream that has ended
        if is_alias and node not in self._sizes:
            raise ValueError("it has an alias that stands for itself")
        self._values += self._sizes[node] if is_alias else 1
        if self._values > MAX_YAML_VALUES:
            raise ValueError(f"it has more than {MAX_YAML_VALUES} values, counted with its aliases")
        self._depth -= 1
        self._sizes[node] = self._values - before
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping, and reject a key that occurs twice: PyYAML would silently take its last value."""
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (name := (key.tag, key.value)) in lines:
                raise ValueError(
                    f"the key {key.value!r} occurs twice in a mapping, in lines {lines[name]} and "
                    f"{key.start_mark.line + 1}"
                )
            lines[name] = key.start_mark.line + 1
        return node

    def construct_yaml_int(self, node: Any) -> int:
        if len(node.value) > 100:
            raise ValueError("it has an integer of more than 64 bits")
        return _require_bounded(super().construct_yaml_int(node))

    def construct_yaml_float(self, node: Any) -> float:
        if not math.isfinite(value := super().construct_yaml_float(node)):
            raise ValueError(f"{node.value} is not a finite number")
        return value


_BoundedLoader.add_constructor("tag:yaml.org,2002:int", _BoundedLoader.construct_yaml_int)
_BoundedLoader.add_constructor("tag:yaml.org,2002:float", _BoundedLoader.construct_yaml_float)
