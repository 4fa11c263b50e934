"""Parsing replies in prose: a judge's text becomes a score for each dimension, or a reason why there is none.

Only score lines hold scores: a line that begins with a dimension's name, such as `Name: 4`, `**Name:** 4.5/5`,
`| Name | 4 | reason |` or `2. Name (1-5): 4 out of 5`, or an entry of JSON. The last complete block of score lines, one
for each dimension, is the answer. Reasoning blocks (`<think>` and the like) never hold scores. Text before the answer
changes nothing, unless it declares another scale or says that the judge saw nothing; text after it that names a number
or retracts a score leaves the reply without scores, because asking again is cheaper than finding a wrong score
later. Judges must reject replies that a provider truncated, since the beginning of "4.5" reads as "4".
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kiwi.bench.reply_language import (
    find_other_scale,
    find_refusal,
    is_revision_heading,
    may_correct,
    names_other_maximum,
    retracts_scores,
    states_number,
)
from kiwi.bench.reply_lines import SCORE, ReplyLine, normalize_name, remove_reasoning, split_lines, strip_emphasis
from kiwi.reading import parse_json

LOWEST, HIGHEST = 1.0, 5.0
"""Range of the scores."""

MAX_LENGTH = 100_000
"""Maximum number of characters of a reply, ample for scores and reasoning."""


@dataclass(frozen=True)
class Unscored:
    """A reply without valid scores.

    Args:
        reason: what is wrong with the reply.
    """

    reason: str


Scores = Mapping[str, float]
"""A score from 1 to 5 for each dimension."""


@dataclass(kw_only=True)
class _Block:
    """Score lines that belong together: values by normalized name, prose between them, and prose after the last.

    Strings of JSON count as prose between the scores, because entries of JSON have no order.
    """

    values: dict[str, str] = field(default_factory=dict)
    between: list[ReplyLine] = field(default_factory=list)
    after: list[ReplyLine] = field(default_factory=list)

    def add(self, line: ReplyLine) -> None:
        """Add a score line."""
        self.between += self.after
        self.after.clear()
        self.values[line.name] = line.value


def read_reply(text: str, dimensions: Sequence[str], other_dimensions: Collection[str] = ()) -> Scores | Unscored:
    """Parse the scores of a reply.

    Args:
        text: the reply.
        dimensions: dimensions of the rubric.
        other_dimensions: dimensions of other rubrics; a reply that scores one of them answers another rubric.
    """
    if len(text) > MAX_LENGTH:
        return Unscored(f"the reply has {len(text)} characters, more than {MAX_LENGTH}")
    answer, is_cut_off = remove_reasoning(text)
    if is_cut_off and not answer.strip():
        return Unscored("the reply ends inside its reasoning")
    plain = strip_emphasis(answer)
    if (scale := find_other_scale(plain)) is not None:
        return Unscored(f"the reply uses a scale other than 1 to 5: {scale!r}")
    if (statement := find_refusal(plain)) is not None:
        return Unscored(f"the judge says that it saw nothing: {statement!r}")
    expected = {normalize_name(name): name for name in dimensions}
    others = {key: name for name in other_dimensions if (key := normalize_name(name)) not in expected}
    block, left_over = _find_last_block(split_lines(answer, {*expected, *others}), expected)
    if left_over:
        names = ", ".join(left_over)
        return Unscored(f"there are scores after the last complete block: {names[:80]}")
    if unexpected := [others[name] for name in block.values if name in others]:
        return Unscored(f"the reply answers another rubric ({unexpected[0]})")
    if missing := [name for key, name in expected.items() if key not in block.values]:
        ending = ", and ends inside its reasoning" if is_cut_off else ""
        return Unscored(f"the reply has no score of {', '.join(missing)}{ending}")
    scores: dict[str, float] = {}
    for key, name in expected.items():
        value = block.values[key]
        number = _parse_score(value)
        if number is None and names_other_maximum(value):
            return Unscored(f"the reply uses a scale other than 1 to 5: {value[:40]!r}")
        if number is None:
            return Unscored(f"the score of {name} cannot be read: {value[:40]!r}")
        if not LOWEST <= number <= HIGHEST:
            return Unscored(f"the score of {name} is not from 1 to 5: {value[:40]!r}")
        scores[name] = number
    if is_cut_off:
        return Unscored("the reply ends inside its reasoning, after the scores")
    for line in block.between:
        if retracts_scores(line.text) or _mentions_score(line, expected):
            return Unscored(f"a line between the scores may change them: {line.text[:60]!r}")
    for line in block.after:
        if states_number(line.text) or retracts_scores(line.text) or is_revision_heading(line.text):
            return Unscored(f"the text after the scores may change them: {line.text[:60]!r}")
    return {name: scores[name] for name in dimensions}


def read_answer(text: str, dimensions: Sequence[str], other_dimensions: Collection[str] = ()) -> Scores | Unscored:
    """Read the scores of a structured answer, a JSON object with "scores", or else of a reply in prose.

    The scores of a structured answer are exactly one finite number from 1 to 5 for each dimension. Arguments as in
    `read_reply`.
    """
    try:
        answer = parse_json(text.strip(), object_pairs_hook=_require_distinct)
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or not isinstance(scores := answer.get("scores"), dict):
        return read_reply(text, dimensions, other_dimensions)
    if set(scores) != set(dimensions):
        return Unscored(f"the answer scores {', '.join(map(str, scores))[:80]} instead of {', '.join(dimensions)}")
    for name, score in scores.items():
        if type(score) not in (int, float) or not LOWEST <= score <= HIGHEST:
            return Unscored(f"the score of {name} is not a number from 1 to 5: {score!r:.40}")
    return {name: float(scores[name]) for name in dimensions}


def _require_distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name is repeated")
    return dict(pairs)


def format_answer(scores: Scores) -> str:
    """Write the scores of a judge that computes them, instead of text, as a structured answer."""
    return json.dumps({"scores": dict(scores)})


def cap_scores(scores: Scores, by: str) -> Scores:
    """Cap all scores at the score named `by`, because an unedited video would otherwise score high in consistency."""
    return {name: min(score, scores[by]) for name, score in scores.items()}


def _find_last_block(lines: Iterable[ReplyLine], expected: Collection[str]) -> tuple[_Block, list[str]]:
    """The last block with a value for each expected name, and the names of score lines after it.

    Without a complete block, the last incomplete one. A repeated name starts another block, and so does a heading such
    as "Final:" within an incomplete block.
    """
    complete, current = None, _Block()
    for line in lines:
        is_complete = current is complete
        if line.name:
            if line.name in current.values:
                current = _Block()
            current.add(line)
            if current.values.keys() >= set(expected):
                complete = current
        elif line.in_json:
            current.between.append(line)
        elif not current.values:
            continue
        elif is_revision_heading(line.text) and not is_complete:
            current = _Block()
        else:
            current.after.append(line)
    if complete is None or current is complete:
        return complete or current, []
    return complete, list(current.values) or ["an incomplete block"]


def _parse_score(value: str) -> float | None:
    """Parse a score with its optional remark; None if it is not an unambiguous number."""
    match = SCORE.fullmatch(value)
    return None if match is None or may_correct(match["remark"] or "") else float(match["number"])


def _mentions_score(line: ReplyLine, names: Collection[str]) -> bool:
    """Whether prose may hold a score: it has a number, and names a dimension or has hardly any other words."""
    if not states_number(line.text):
        return False
    has_words = any(map(str.isalpha, line.text)) if line.in_json else len(line.text.split()) > 3
    normalized = normalize_name(line.text)
    return not has_words or any(name in normalized for name in names)
