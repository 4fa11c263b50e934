"""Rubrics: the instructions that a judge follows, built-in or imported from a local copy of the published script."""

import ast
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kiwi.bench.options import ImportRubricsOptions
from kiwi.bench.suites import DEFINITIONS, Suite, read_suite
from kiwi.errors import InputError
from kiwi.media.files import write_json
from kiwi.reading import read_json, require_file

_CAP = "{second} and {third} must not be higher than {first}: an edit that was not made cannot be consistent or good."

_PROSE_ANSWER = """
## Your answer

Write one or two sentences about what you saw, then three scores, numbers from 1 to 5, each on its own line and named
as below. {cap}

{lines}
"""

_JSON_ANSWER = """
## Your answer

Answer with one JSON object and nothing else. It has one or two sentences about what you saw, and three scores, numbers
from 1 to 5, in the order below. {cap}

{example}
"""

AnswerFormat = Literal["prose", "json", "json-scores-first"]
"""How a judge answers: in text, or as JSON, with its reasons before or after the scores."""


@dataclass(frozen=True, kw_only=True)
class Rubric:
    """The system instruction of one category.

    Args:
        category: category of the items to judge.
        text: full text for the judge.
        dimensions: names of the scores; the first caps the others.
        origin: "own" for built-in, "official" for imported rubrics.
        answer: format of the answers that `text` asks for; official rubrics ask for prose.
    """

    category: str
    text: str
    dimensions: tuple[str, ...]
    origin: Literal["own", "official"] = "own"
    answer: AnswerFormat = "prose"

    @property
    def hash(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of text and dimensions."""
        return hashlib.sha256("\x1f".join((self.text, *self.dimensions)).encode()).hexdigest()[:16]

    @property
    def schema(self) -> dict[str, Any] | None:
        """The JSON schema of an answer; None if the answer is prose."""
        if self.answer == "prose":
            return None
        scores = _describe_object({name: {"type": "number"} for name in self.dimensions})
        parts = {"reasons": {"type": "string"}, "scores": scores}
        return _describe_object({name: parts[name] for name in _list_parts(self.answer)})


def _list_parts(answer: AnswerFormat) -> tuple[str, str]:
    """The parts of a JSON answer in their order, which is also the order in which a model writes them."""
    return ("scores", "reasons") if answer == "json-scores-first" else ("reasons", "scores")


def _describe_object(properties: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON schema of an object that has exactly these properties."""
    return {
        "type": "object", "properties": dict(properties), "required": list(properties), "additionalProperties": False,
    }  # fmt: skip


def read_builtin_rubrics(suite: Suite, answer: AnswerFormat = "prose") -> dict[str, Rubric]:
    """Read the built-in rubric of each category of a suite, with the given format of answers."""
    folders = {name: DEFINITIONS / (category.rubrics or suite.name) for name, category in suite.categories.items()}
    return {
        name: read_rubric(folder / "rubrics" / f"{name}.md", name, suite.dimensions[name], answer)
        for name, folder in folders.items()
    }


def read_rubric(file: Path, category: str, dimensions: Sequence[str], answer: AnswerFormat = "prose") -> Rubric:
    """Read a rubric from a Markdown file with a section for each dimension, and append the answer format.

    Raises:
        InputError: the file is missing, or a dimension has no section.
    """
    text = require_file(file, what="rubric").read_text(encoding="utf-8")
    if missing := [name for name in dimensions if f"\n## {name}\n" not in text]:
        expected = "a heading '## DIMENSION' for each dimension"
        raise InputError(f"{file} has no section for {missing[0]}", code="missing-section", expected=expected)
    first, second, third = dimensions
    cap = _CAP.format(first=first, second=second, third=third)
    if answer == "prose":
        lines = "\n".join(f"{name}: <1 to 5>" for name in dimensions)
        request = _PROSE_ANSWER.format(cap=cap, lines=lines)
    else:
        names = ", ".join(f'"{name}": <1 to 5>' for name in dimensions)
        parts = {"reasons": '"reasons": "<what you saw>"', "scores": f'"scores": {{{names}}}'}
        example = f"{{{', '.join(parts[name] for name in _list_parts(answer))}}}"
        request = _JSON_ANSWER.format(cap=cap, example=example)
    text = text.rstrip() + "\n" + request
    return Rubric(category=category, text=text, dimensions=tuple(dimensions), answer=answer)


def import_rubrics(options: ImportRubricsOptions) -> Path:
    """Extract the official rubrics of a suite and return the file written. Raises as `extract_rubrics`."""
    out = options.out or Path(f"{options.suite}-official.json")
    write_rubrics(out, extract_rubrics(options.script, read_suite(options.suite).dimensions))
    return out


def extract_rubrics(script: Path, categories: Mapping[str, Sequence[str]]) -> dict[str, Rubric]:
    """Extract the official rubrics from a local copy of the published script, which is parsed and never run.

    A category's rubric is the top-level string constant that contains the names of all its dimensions, and whose own
    name, or key in a dictionary, contains the category's name.

    Args:
        script: the local copy.
        categories: names of the dimensions by category.

    Raises:
        InputError: the file is not Python, or a category does not have exactly one such constant.
    """
    source = require_file(script, what="script").read_bytes()  # bytes, since ast.parse detects the encoding
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{script} is not a Python script", code="unreadable-file", got=error) from None
    constants = _list_string_constants(tree)
    names = {name.partition("[")[0] for name, _ in constants}
    augmented = [node.target for node in ast.walk(tree) if isinstance(node, ast.AugAssign)]
    if extended := [node.id for node in augmented if isinstance(node, ast.Name) and node.id in names]:
        problem = f"{script} changes {extended[0]} by augmented assignment (+=)"
        raise InputError(problem, code="ambiguous-rubric", expected="constants that are assigned once")
    rubrics = {}
    for category, dimensions in categories.items():
        prompts = {
            text for name, text in constants if category in name.lower() and all(score in text for score in dimensions)
        }
        if len(prompts) != 1:
            raise InputError(
                f"{script} has {len(prompts) or 'no'} prompts for {category}",
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
        if not isinstance(node, ast.Assign | ast.AnnAssign):
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for name in (target.id for target in targets if isinstance(target, ast.Name)):
            if (text := _evaluate_string(node.value)) is not None:
                constants.append((name, text))
            elif isinstance(node.value, ast.Dict):
                for key, entry in zip(node.value.keys, node.value.values, strict=True):
                    if isinstance(key, ast.Constant) and (text := _evaluate_string(entry)) is not None:
                        constants.append((f"{name}[{key.value!r}]", text))
    return constants


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
    record = {name: {"text": rubric.text, "dimensions": rubric.dimensions} for name, rubric in rubrics.items()}
    write_json(out, record)


def read_rubrics(file: Path, categories: Mapping[str, Sequence[str]]) -> dict[str, Rubric]:
    """Read rubrics that `write_rubrics` wrote.

    Raises:
        InputError: the file has another format, or lacks a category or one of its dimensions.
    """
    rubrics = {}
    require_file(file, what="--rubrics file")
    try:
        record = read_json(file)
        for name, dimensions in categories.items():
            if name not in record:
                raise ValueError(f"no rubric for {name}")
            if record[name]["dimensions"] != list(dimensions):
                raise ValueError(f"the dimensions of {name} are not {', '.join(dimensions)}")
            text = str(record[name]["text"])
            rubrics[name] = Rubric(category=name, text=text, dimensions=tuple(dimensions), origin="official")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"--rubrics {file} does not hold rubrics of this benchmark", code="unreadable-file", got=error,
            fix="write the file with `kiwi bench rubrics import`",
        ) from None  # fmt: skip
    return rubrics
