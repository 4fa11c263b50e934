"""Parsing replies: a judge's text becomes a score for each dimension, or a reason why there is none; never a guess.

Each score is on a line of its own after its dimension's name, in any order: `Name: 4`, `**Name:** 4.5/5`,
`| Name | 4 |`, `2. Name (1-5): 4 out of 5`; or the whole reply is a JSON object. Words may follow in parentheses or
after a dash, numbers may not: `4 - 5` is not accepted, nor is `4 - one point for flicker`. Anything else that could
change a score invalidates the reply: another scale, the dimension with a number on any other line, a number that may
continue on the next line. Asking again is cheaper than finding a wrong score later. Judges must reject replies that a
provider truncated, since the beginning of "4.5" reads as "4".
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

LOWEST, HIGHEST = 1.0, 5.0
"""Range of the scores."""

MAX_LENGTH = 20_000
"""Maximum number of characters of a reply, ample for three scores and the reasoning."""

# A line holds list marks (_PREFIX), the name, a suffix such as "(1-5)" (_NAME_SUFFIX), and the score (_VALUE).
_PREFIX = re.compile(r"^[\s#|•·\"'-]*(?:\(?[0-9]{1,2}[.)] )?[\s#|•·\"'-]*")
_NAME_SUFFIX = re.compile(
    r"\s?(?:\((?:score|rating|(?:score )?(?:1 ?[-\u2013\u2014] ?5|1 to 5|/ ?5|out of 5))\))?(?: score| rating)?$", re.I
)
_VALUE = re.compile(
    r"(?P<open>\[)?(?P<number>[0-9](?:\.[0-9]+)?)(?(open)\])\.?(?: ?(?:/|out of) ?5(?:\.0+)?\.?)?"
    r"(?P<words> ?\(.*\)| [-\u2013\u2014] .*)?",
    re.I,
)
_NUMBER_START = re.compile(r"[\[(+-]* ?[.,]?\d")
# Words behind a score that may correct it, such as "5 - one point for flicker".
_CHANGING_WORDS = re.compile(
    r"\b(?:no|not|n/a|none|nil|zero|half|one|two|three|four|five|six|seven|eight|nine|ten|hundred|points?|capp?(?:ed)?|"
    r"actually|instead|rather|make|should|would|could|lower(?:ed)?|reduced?|minus|plus|except)\b",
    re.I,
)
_OTHER_SCALE = re.compile(
    r"out of (?:1\d|ten|twenty|hundred|a hundred)|/ ?1\d|\b1 ?(?:[-\u2013\u2014]|to) ?10"
    r"|\b0 ?(?:[-\u2013\u2014]|to) ?\d",
    re.I,
)
# Statements such as "I cannot see the video".
_SAW_NOTHING = re.compile(
    r"\b(?:can ?not|can't|can\u2019t|could not|couldn't|unable to|not able to) (?:\w+ )?"
    r"(?:see|view|watch|access|open|play|load) (?:any |the |these |this |those |your |either |both )?(?:\w+ )?"
    r"(?:video|image|picture|clip|frame|file|attachment)",
    re.I,
)
# The start of a line that may continue the number of the line before.
_CONTINUATION = re.compile(r"[\W_]*(?:of|out|or)\b|\W*[.,/]\W*$", re.I)
_EMPHASIS_MARKS = re.compile(r"(?<![\w.,])[*_`]+|[*_`]+(?![\w.,])")


@dataclass(frozen=True)
class Unscored:
    """A reply without valid scores.

    Args:
        reason: what is wrong with the reply.
    """

    reason: str


Scores = Mapping[str, float]
"""A score from 1 to 5 for each dimension."""


def read_reply(text: str, dimensions: Sequence[str], other_dimensions: Collection[str] = ()) -> Scores | Unscored:
    """Parse the scores of a reply.

    Args:
        text: the reply.
        dimensions: dimensions of the rubric; the reply must score each of them once.
        other_dimensions: dimensions of other rubrics; a reply that scores one of them answers another rubric.
    """
    if len(text) > MAX_LENGTH:
        return Unscored(f"the reply has {len(text)} characters, more than {MAX_LENGTH}")
    if (scale := _OTHER_SCALE.search(" ".join(text.split()))) is not None:
        return Unscored(f"the reply uses a scale other than 1 to 5: {scale[0]!r}")
    if (statement := _SAW_NOTHING.search(text)) is not None:
        return Unscored(f"the judge says that it saw nothing: {statement[0]!r}")
    expected = {_normalize(name): name for name in dimensions}
    unexpected = {_normalize(name): name for name in other_dimensions if _normalize(name) not in expected}
    scores: dict[str, float] = {}
    for line, name, value in _iterate_pairs(text, {*expected, *unexpected}):
        dimension = expected.get(name) or unexpected.get(name)
        if dimension is None or not _NUMBER_START.match(value):
            if (mentioned := _find_mentioned_name(line, expected)) is not None and _has_number(line):
                return Unscored(f"the reply mentions {mentioned} with a number outside its score line: {line[:60]!r}")
            continue  # reasoning
        if name in unexpected:
            return Unscored(f"the reply answers another rubric ({dimension})")
        if dimension in scores:
            return Unscored(f"the reply scores {dimension} more than once")
        if (number := _parse_number(value)) is None:
            return Unscored(f"the score of {dimension} cannot be read: {value[:40]!r}")
        if not LOWEST <= number <= HIGHEST:
            return Unscored(f"the score of {dimension} is not from 1 to 5: {value[:40]!r}")
        scores[dimension] = number
    if missing := [name for name in dimensions if name not in scores]:
        return Unscored(f"the reply has no score of {', '.join(missing)}")
    return {name: scores[name] for name in dimensions}


def cap_scores(scores: Scores, by: str) -> Scores:
    """Cap all scores at the score named `by`, because an unedited video would otherwise score high in consistency."""
    return {name: min(score, scores[by]) for name, score in scores.items()}


def _parse_number(value: str) -> float | None:
    """Parse a score with its optional remark; None if it is not an unambiguous number."""
    match = _VALUE.fullmatch(value)
    if match is None:
        return None
    words = match["words"] or ""
    return None if _has_number(words) or _CHANGING_WORDS.search(words) else float(match["number"])


def _has_number(text: str) -> bool:
    """Whether a text has a number in any script."""
    return any(char.isnumeric() for char in text)


def _find_mentioned_name(line: str, names: Mapping[str, str]) -> str | None:
    """The first name that occurs in a line; None if there is none."""
    normalized = _normalize(line)
    return next((name for key, name in names.items() if key in normalized), None)


def _iterate_pairs(text: str, known: Collection[str]) -> Iterator[tuple[str, str, str]]:
    """Split a reply into (line, normalized name, value), from its lines or from a JSON object.

    Name and value are empty for lines of another form. A value includes the next line if that may continue its number.
    """
    body = text.strip()
    if body.startswith("```") and body.endswith("```"):
        body = body[3:-3].partition("\n")[2]
    try:
        entries = json.loads(body, object_pairs_hook=list, parse_float=str, parse_int=str, parse_constant=str)
    except (ValueError, RecursionError):
        entries = None
    if isinstance(entries, list) and all(isinstance(pair, tuple) for pair in entries):
        yield from (("", _normalize(name), value.strip() if isinstance(value, str) else "") for name, value in entries)
        return
    lines = [line for raw in text.splitlines() if (line := " ".join(_EMPHASIS_MARKS.sub("", raw).split()))]
    parts = [_split_name(line) for line in lines]
    for index, (line, (name, value)) in enumerate(zip(lines, parts, strict=True), 1):
        after, (after_name, _) = (lines[index], parts[index]) if index < len(lines) else ("", ("", ""))
        may_continue = bool(_CONTINUATION.match(after)) or _has_number(after.split(" ")[0])
        yield line, name, f"{value} {after}" if may_continue and after_name not in known else value


def _split_name(line: str) -> tuple[str, str]:
    """Split a line into its normalized name and its value; both empty if the line has another form."""
    pair = _PREFIX.sub("", line)
    separator = re.search(r"[:\uff1a=|]", pair)
    if separator is None or not (name := _NAME_SUFFIX.sub("", pair[: separator.start()].strip("\"' "))):
        return "", ""
    return _normalize(name), pair[separator.end() :].strip(" |\"'").rstrip(",").strip("\"' ")


def _normalize(name: str) -> str:
    """Lower-case a name, replace "&" and "+" by "and", and remove quotes and extra spaces."""
    return " ".join(re.sub(r"[&+]", " and ", name.lower()).replace('"', " ").split())
