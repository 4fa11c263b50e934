"""Official rubrics: read from a local copy of the published script, kept in a JSON file."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from kiwi.bench.options import ImportRubricsOptions
from kiwi.bench.rubric import Rubric
from kiwi.bench.suites import read_suite
from kiwi.errors import InputError
from kiwi.media.files import require_file, write_json


def import_rubrics(options: ImportRubricsOptions) -> Path:
    """Extract the official rubrics of a suite from the published script; returns the file that was written.

    Raises:
        InputError: as `official_rubrics`.
    """
    out = options.out or Path(f"{options.suite}-official.json")
    write_rubrics(out, official_rubrics(options.script, read_suite(options.suite).dimensions))
    return out


def official_rubrics(file: Path, categories: Mapping[str, Sequence[str]]) -> dict[str, Rubric]:
    """The published rubrics from a local copy of the published script, which is parsed and never run.

    A prompt is a string constant at the top level of the script that names all three scores of a category. It belongs
    to the category whose name is in the constant's name, or is its key in a dictionary.

    Args:
        file: the script.
        categories: names of the scores of each category.

    Raises:
        InputError: not Python, or a category for which there is no prompt or more than one.
    """
    source = require_file(file, what="script").read_bytes()  # Python's own rules say which encoding it is in
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as problem:
        raise InputError(f"{file} is not a Python script", code="unreadable-file", got=problem) from None
    constants = _string_constants(tree)
    names = {name.partition("[")[0] for name, _ in constants}
    if extended := [name for name in _augmented_names(tree) if name in names]:
        expected = "prompts that are known without running the script"
        raise InputError(f"{file} extends {extended[0]} in place", code="ambiguous-rubric", expected=expected)
    rubrics = {}
    for category, dimensions in categories.items():
        prompts = {
            text for name, text in constants if category in name.lower() and all(score in text for score in dimensions)
        }
        if len(prompts) != 1:
            raise InputError(
                f"{file} has {len(prompts) or 'no'} prompts for {category}",
                code="ambiguous-rubric",
                got=", ".join(name for name, _ in constants[:10]) or "no string constants",
                expected=f"one string named after {category} that names {', '.join(dimensions)}",
            )
        (text,) = prompts
        rubrics[category] = Rubric(category=category, text=text, dimensions=tuple(dimensions), origin="official")
    return rubrics


def _string_constants(tree: ast.Module) -> list[tuple[str, str]]:
    """Strings assigned at the top level of a script, by name; entries of dictionaries by name and key."""
    constants: list[tuple[str, str]] = []
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        value = getattr(node, "value", None)
        for name in names:
            if (text := _string_value(value)) is not None:
                constants.append((name, text))
            elif isinstance(value, ast.Dict):
                for key, entry in zip(value.keys, value.values, strict=True):
                    if isinstance(key, ast.Constant) and (text := _string_value(entry)) is not None:
                        constants.append((f"{name}[{key.value!r}]", text))
    return constants


def _augmented_names(tree: ast.Module) -> list[str]:
    """Names that the script changes in place."""
    nodes = (node.target for node in ast.walk(tree) if isinstance(node, ast.AugAssign))
    return [node.id for node in nodes if isinstance(node, ast.Name)]


def _string_value(node: ast.expr | None) -> str | None:
    """A string that is known without running the script: a literal, literals joined by +, or a stripped one."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            parts = _string_value(left), _string_value(right)
            return None if parts[0] is None or parts[1] is None else parts[0] + parts[1]
        case ast.Call(func=ast.Attribute(value=inner, attr="strip"), args=[]):
            stripped = _string_value(inner)
            return None if stripped is None else stripped.strip()
    return None


def write_rubrics(out: Path, rubrics: Mapping[str, Rubric]) -> None:
    """Write rubrics to a JSON file."""
    write_json(
        out, {name: {"text": rubric.text, "dimensions": list(rubric.dimensions)} for name, rubric in rubrics.items()}
    )


def read_rubrics(file: Path, categories: Mapping[str, Sequence[str]]) -> dict[str, Rubric]:
    """Official rubrics from a file that `write_rubrics` wrote.

    Raises:
        InputError: another file, or one in which a category is missing or has other scores.
    """
    rubrics = {}
    try:
        record = json.loads(require_file(file, what="file of rubrics").read_text(encoding="utf-8"))
        for name, dimensions in categories.items():
            if record[name]["dimensions"] != list(dimensions):
                raise ValueError(f"the scores of {name} are not {', '.join(dimensions)}")
            text = str(record[name]["text"])
            rubrics[name] = Rubric(category=name, text=text, dimensions=tuple(dimensions), origin="official")
    except (ValueError, KeyError, TypeError, RecursionError) as problem:
        raise InputError(f"{file} holds no rubrics of this benchmark", code="unreadable-file", got=problem) from None
    return rubrics
