"""Rubrics: what a judge is told to look for, in our words or, read from a local copy, in the published ones."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kiwi.errors import InputError
from kiwi.media.files import require_file, write_json

_ANSWER = """
## Your answer

One or two sentences on what you saw, then the three scores, numbers from 1 to 5, each on a line of its own and named as
here. {second} and {third} may not be above {first}: an edit that was not made has nothing to be consistent or
good in.

{lines}
"""


@dataclass(frozen=True, kw_only=True)
class Rubric:
    """The system instruction of one category.

    Args:
        category: whose items it is for.
        text: what the judge reads.
        dimensions: names of the scores; the first caps the others.
        origin: whose words these are.
    """

    category: str
    text: str
    dimensions: tuple[str, ...]
    origin: Literal["own", "official"] = "own"

    @property
    def hash(self) -> str:
        """Of the text, and of the names that are read from the answer: 16 hexadecimal digits."""
        return hashlib.sha256("\x1f".join((self.text, *self.dimensions)).encode()).hexdigest()[:16]


def own_rubric(file: Path, category: str, dimensions: Sequence[str]) -> Rubric:
    """A rubric of ours: a Markdown file with a section a score, to which is added how to answer.

    Raises:
        InputError: no such file, or a score without its section.
    """
    text = require_file(file, what="rubric").read_text(encoding="utf-8")
    if missing := [name for name in dimensions if f"\n## {name}\n" not in text]:
        raise InputError(f"{file} has no section for {', '.join(missing)}", wanted="a line '## NAME' for each score")
    first, second, third = dimensions
    answer = _ANSWER.format(
        first=first, second=second, third=third, lines="\n".join(f"{name}: <1 to 5>" for name in dimensions)
    )
    return Rubric(category=category, text=text.rstrip() + "\n" + answer, dimensions=tuple(dimensions))


def official_rubrics(file: Path, categories: Mapping[str, Sequence[str]]) -> dict[str, Rubric]:
    """The published rubrics from a local copy of the published script, which is read and never run.

    A prompt is a text constant at the top of the script that names all three scores of a category. It is a category's
    if the category's name stands in the constant's name, or as its key in a dictionary.

    Args:
        file: the script.
        categories: names of the scores of each category that is wanted.

    Raises:
        InputError: not Python, or a category for which there is no prompt or more than one.
    """
    source = require_file(file, what="script").read_bytes()  # Python's own rules say which encoding it is in
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as problem:
        raise InputError(f"{file} is not Python", got=problem) from None
    texts = list(_constants(tree))
    if added := [name for name in _added_to(tree) if any(known.partition("[")[0] == name for known, _ in texts)]:
        raise InputError(f"{file} adds to {added[0]} after it was set", wanted="texts that need no running to be known")
    found = {}
    for category, dimensions in categories.items():
        fitting = {
            text
            for name, text in texts
            if category in name.lower() and all(score in text for score in dimensions) and _is_text(text)
        }
        if len(fitting) != 1:
            raise InputError(
                f"{file} has {len(fitting) or 'no'} prompts of {category}",
                got=", ".join(name for name, _ in texts[:10]) or "no text constants",
                wanted=f"one text named after {category} that names {', '.join(dimensions)}",
            )
        (text,) = fitting
        found[category] = Rubric(category=category, text=text, dimensions=tuple(dimensions), origin="official")
    return found


def _is_text(text: str) -> bool:
    """Whether it can be written: Python's literals can hold halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _constants(tree: ast.Module) -> list[tuple[str, str]]:
    """Texts assigned at the top of a script, by name; of dictionaries by name and key."""
    found: list[tuple[str, str]] = []
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        value = getattr(node, "value", None)
        for name in names:
            if (text := _text(value)) is not None:
                found.append((name, text))
            elif isinstance(value, ast.Dict):
                for key, item in zip(value.keys, value.values, strict=True):
                    if isinstance(key, ast.Constant) and (text := _text(item)) is not None:
                        found.append((f"{name}[{key.value!r}]", text))
    return found


def _added_to(tree: ast.Module) -> list[str]:
    """Names that the script changes in place."""
    nodes = (node.target for node in ast.walk(tree) if isinstance(node, ast.AugAssign))
    return [node.id for node in nodes if isinstance(node, ast.Name)]


def _text(node: ast.expr | None) -> str | None:
    """A text that needs no running: a literal, literals that are joined by +, or one that is stripped."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _text(node.left), _text(node.right)
        return None if left is None or right is None else left + right
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "strip"
        and not node.args
    ):
        return None if (text := _text(node.func.value)) is None else text.strip()
    return None


def write_rubrics(out: Path, rubrics: Mapping[str, Rubric]) -> None:
    """Keep rubrics in a JSON file."""
    write_json(out, {name: {"text": one.text, "dimensions": list(one.dimensions)} for name, one in rubrics.items()})


def read_rubrics(file: Path, categories: Mapping[str, Sequence[str]]) -> dict[str, Rubric]:
    """Official rubrics that were kept.

    Raises:
        InputError: not such a file, or one that lacks a category or names its scores otherwise.
    """
    try:
        said = json.loads(require_file(file, what="file of rubrics").read_text(encoding="utf-8"))
        found = {
            name: Rubric(
                category=name, text=said[name]["text"], dimensions=tuple(said[name]["dimensions"]), origin="official"
            )
            for name in categories
        }
        if not all(isinstance(one.text, str) and one.text.strip() for one in found.values()):
            raise ValueError("a rubric without text")
    except (ValueError, KeyError, TypeError, RecursionError) as problem:
        raise InputError(f"{file} holds no rubrics of this benchmark", got=problem) from None
    if wrong := [name for name, dimensions in categories.items() if found[name].dimensions != tuple(dimensions)]:
        raise InputError(f"{file} names the scores of {wrong[0]} otherwise", wanted=", ".join(categories[wrong[0]]))
    return found
