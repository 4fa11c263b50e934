"""Rubrics: the instructions that a judge follows, either built-in or imported from the published script."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kiwi.bench.suites import DEFINITIONS, Suite
from kiwi.errors import InputError
from kiwi.media.files import require_file

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
        category: category of the items to judge.
        text: full text for the judge.
        dimensions: names of the scores; the first caps the others.
        origin: "own" for built-in, "official" for imported rubrics.
    """

    category: str
    text: str
    dimensions: tuple[str, ...]
    origin: Literal["own", "official"] = "own"

    @property
    def hash(self) -> str:
        """The first 16 hexadecimal digits of the SHA-256 of text and dimensions."""
        return hashlib.sha256("\x1f".join((self.text, *self.dimensions)).encode()).hexdigest()[:16]


def builtin_rubrics(suite: Suite) -> dict[str, Rubric]:
    """Read the built-in rubric of each category of a suite."""
    return {
        name: read_rubric(
            DEFINITIONS / (category.rubrics or suite.name) / "rubrics" / f"{name}.md", name, category.dimensions
        )
        for name, category in suite.categories.items()
    }


def read_rubric(file: Path, category: str, dimensions: Sequence[str]) -> Rubric:
    """Read a rubric from a Markdown file with a section for each dimension, and append the answer format.

    Raises:
        InputError: the file is missing, or a dimension has no section.
    """
    text = require_file(file, what="rubric").read_text(encoding="utf-8")
    if missing := [name for name in dimensions if f"\n## {name}\n" not in text]:
        expected = "a heading '## DIMENSION' for each dimension"
        raise InputError(f"{file} has no section for {missing[0]}", code="missing-section", expected=expected)
    first, second, third = dimensions
    answer = _ANSWER.format(
        first=first, second=second, third=third, lines="\n".join(f"{name}: <1 to 5>" for name in dimensions)
    )
    return Rubric(category=category, text=text.rstrip() + "\n" + answer, dimensions=tuple(dimensions))
