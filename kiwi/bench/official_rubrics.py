"""Official rubrics: extracted from a local copy of the published script and stored in a JSON file."""

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
    """Extract the official rubrics of a suite and return the file written. Raises as `official_rubrics`."""
    out = options.out or Path(f"{options.suite}-official.json")
    write_rubrics(out, official_rubrics(options.script, read_suite(options.suite).dimensions))
    return out


def official_rubrics(file: Path, categories: Mapping[str, Sequence[str]]) -> dict[str, Rubric]:
    """Extract the rubrics from a local copy of the published script, which is parsed and never run.

    A category's rubric is the top-level string constant that contains the names of all its dimensions, and whose own
    name, or key in a dictionary, contains the category's name.

    Args:
        file: the script.
        categories: names of the dimensions by category.

    Raises:
        InputError: the file is not Python, or a category does not have exactly one such constant.
    """
    source = require_file(file, what="script").read_bytes()  # bytes, since ast.parse detects the encoding
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{file} is not a Python script", code="unreadable-file", got=error) from None
    constants = _list_string_constants(tree)
    names = {name.partition("[")[0] for name, _ in constants}
    if extended := [name for name in _list_augmented_names(tree) if name in names]:
        message = f"{file} changes {extended[0]} by augmented assignment"
        raise InputError(message, code="ambiguous-rubric", expected="constants that are assigned once")
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
                expected=f"one string with {category} in its name and {', '.join(dimensions)} in its text",
            )
        (text,) = prompts
        rubrics[category] = Rubric(category=category, text=text, dimensions=tuple(dimensions), origin="official")
    return rubrics


def _list_string_constants(tree: ast.Module) -> list[tuple[str, str]]:
    """List the names and values of top-level strings; entries of dictionaries are named `name[key]`."""
    constants: list[tuple[str, str]] = []
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        value = getattr(node, "value", None)
        for name in names:
            if (text := _evaluate_string(value)) is not None:
                constants.append((name, text))
            elif isinstance(value, ast.Dict):
                for key, entry in zip(value.keys, value.values, strict=True):
                    if isinstance(key, ast.Constant) and (text := _evaluate_string(entry)) is not None:
                        constants.append((f"{name}[{key.value!r}]", text))
    return constants


def _list_augmented_names(tree: ast.Module) -> list[str]:
    """List the names that the script changes by augmented assignment (`+=`)."""
    nodes = (node.target for node in ast.walk(tree) if isinstance(node, ast.AugAssign))
    return [node.id for node in nodes if isinstance(node, ast.Name)]


def _evaluate_string(node: ast.expr | None) -> str | None:
    """The value of a string expression (literals, + and .strip()) without running the script; None for others."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            parts = _evaluate_string(left), _evaluate_string(right)
            return None if parts[0] is None or parts[1] is None else parts[0] + parts[1]
        case ast.Call(func=ast.Attribute(value=inner, attr="strip"), args=[]):
            stripped = _evaluate_string(inner)
            return None if stripped is None else stripped.strip()
    return None


def write_rubrics(out: Path, rubrics: Mapping[str, Rubric]) -> None:
    """Write rubrics to a JSON file."""
    write_json(
        out, {name: {"text": rubric.text, "dimensions": list(rubric.dimensions)} for name, rubric in rubrics.items()}
    )


def read_rubrics(file: Path, categories: Mapping[str, Sequence[str]]) -> dict[str, Rubric]:
    """Read rubrics that `write_rubrics` wrote.

    Raises:
        InputError: the file has another format, or lacks a category or one of its dimensions.
    """
    rubrics = {}
    try:
        record = json.loads(require_file(file, what="file of rubrics").read_text(encoding="utf-8"))
        for name, dimensions in categories.items():
            if record[name]["dimensions"] != list(dimensions):
                raise ValueError(f"the dimensions of {name} are not {', '.join(dimensions)}")
            text = str(record[name]["text"])
            rubrics[name] = Rubric(category=name, text=text, dimensions=tuple(dimensions), origin="official")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{file} does not hold rubrics of this benchmark", code="unreadable-file", got=error) from None
    return rubrics
