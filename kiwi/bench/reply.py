"""Replies: a judge's text becomes one number a dimension, or a reason why there is none. Never a guess.

A score stands on a line of its own behind its dimension's name, in any order: `Name: 4`, `**Name:** 4.5/5`,
`| Name | 4 |`, `2. Name (1-5): 4 out of 5`; or the whole reply is a JSON object. Words may follow in parentheses or
behind a dash, numbers may not: `4 - 5` is no answer, nor is `4 - one point for flicker`. Whatever else could change a
score takes all of them away: another scale, the dimension with a number in any other line, a number that may go on in
the next. A question is asked again more easily than a wrong number is found. What a provider cut off must be refused
before it comes here: "4" may be what is left of "4.5".
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

LOWEST, HIGHEST = 1.0, 5.0

LONGEST = 20_000
"""Characters of a reply: no judge needs more for three numbers and its reasons."""

_BEFORE = re.compile(r"^[\s#|•·\"'-]*(?:\(?[0-9]{1,2}[.)] )?[\s#|•·\"'-]*")
_BEHIND_NAME = re.compile(
    r"\s?(?:\((?:score|rating|(?:score )?(?:1 ?[-\u2013\u2014] ?5|1 to 5|/ ?5|out of 5))\))?(?: score| rating)?$", re.I
)
_VALUE = re.compile(
    r"(?P<open>\[)?(?P<number>[0-9](?:\.[0-9]+)?)(?(open)\])\.?(?: ?(?:/|out of) ?5(?:\.0+)?\.?)?"
    r"(?P<words> ?\(.*\)| [-\u2013\u2014] .*)?",
    re.I,
)
_BEGINS = re.compile(r"[\[(+-]* ?[.,]?\d")
_NO_WORDS = re.compile(
    r"\b(?:no|not|n/a|none|nil|zero|half|one|two|three|four|five|six|seven|eight|nine|ten|hundred|points?|capp?(?:ed)?|"
    r"actually|instead|rather|make|should|would|could|lower(?:ed)?|reduced?|minus|plus|except)\b",
    re.I,
)
_OTHER_SCALE = re.compile(
    r"out of (?:1\d|ten|twenty|hundred|a hundred)|/ ?1\d|\b1 ?(?:[-\u2013\u2014]|to) ?10"
    r"|\b0 ?(?:[-\u2013\u2014]|to) ?\d",
    re.I,
)
_SAW_NOTHING = re.compile(
    r"\b(?:can ?not|can't|can\u2019t|could not|couldn't|unable to|not able to) (?:\w+ )?"
    r"(?:see|view|watch|access|open|play|load) (?:any |the |these |this |those |your |either |both )?(?:\w+ )?"
    r"(?:video|image|picture|clip|frame|file|attachment)",
    re.I,
)
_GOES_ON = re.compile(r"[\W_]*(?:of|out|or)\b|\W*[.,/]\W*$", re.I)
_MARKS = re.compile(r"(?<![\w.,])[*_`]+|[*_`]+(?![\w.,])")


@dataclass(frozen=True)
class Unscored:
    """There is no number, and why."""

    reason: str


Scores = Mapping[str, float]
"""A number from 1 to 5 a dimension."""


def read_reply(text: str, dimensions: Sequence[str], others: Collection[str] = ()) -> Scores | Unscored:
    """The scores of a reply.

    Args:
        text: what the judge said.
        dimensions: names of the rubric's scores; all are wanted, once each.
        others: names of other rubrics' scores; one that has a number means that another rubric was answered.
    """
    if len(text) > LONGEST:
        return Unscored(f"it has {len(text)} characters")
    if (scale := _OTHER_SCALE.search(" ".join(text.split()))) is not None:
        return Unscored(f"it speaks of another scale than 1 to 5: {scale[0]!r}")
    if (blind := _SAW_NOTHING.search(text)) is not None:
        return Unscored(f"it says that it saw nothing: {blind[0]!r}")
    wanted = {_plain(name): name for name in dimensions}
    foreign = {_plain(name): name for name in others if _plain(name) not in wanted}
    found: dict[str, float] = {}
    for line, name, value in _pairs(text, {*wanted, *foreign}):
        known = wanted.get(name) or foreign.get(name)
        if known is None or not _BEGINS.match(value):
            if (named := _mentioned(line, wanted)) is not None and _counts(line):
                return Unscored(f"it names {named} with a number elsewhere too: {line[:60]!r}")
            continue  # reasoning
        if name in foreign:
            return Unscored(f"it answers another rubric ({known})")
        if known in found:
            return Unscored(f"it gives {known} more than once")
        if (number := _number(value)) is None:
            return Unscored(f"the score of {known} cannot be read: {value[:40]!r}")
        if not LOWEST <= number <= HIGHEST:
            return Unscored(f"the score of {known} is not from 1 to 5: {value[:40]!r}")
        found[known] = number
    if missing := [name for name in dimensions if name not in found]:
        return Unscored(f"it gives no score of {', '.join(missing)}")
    return {name: found[name] for name in dimensions}


def capped(scores: Scores, by: str) -> Scores:
    """The scores with none above the one that caps them: an edit that was not made is easily consistent."""
    return {name: min(score, scores[by]) for name, score in scores.items()}


def _number(value: str) -> float | None:
    read = _VALUE.fullmatch(value)
    if read is None:
        return None
    words = read["words"] or ""
    return None if _counts(words) or _NO_WORDS.search(words) else float(read["number"])


def _counts(text: str) -> bool:
    """Whether there is a number in it, in any script."""
    return any(char.isnumeric() for char in text)


def _mentioned(line: str, names: Mapping[str, str]) -> str | None:
    said = _plain(line)
    return next((name for plain, name in names.items() if plain in said), None)


def _pairs(text: str, known: Collection[str]) -> Iterator[tuple[str, str, str]]:
    """Each line with the plain name that it begins with, if any, and what stands behind; or the pairs of a JSON object.

    What stands behind goes on with the next line where that may be the rest of a number.
    """
    body = text.strip()
    if body.startswith("```") and body.endswith("```"):
        body = body[3:-3].partition("\n")[2]
    try:
        listed = json.loads(body, object_pairs_hook=list, parse_float=str, parse_int=str, parse_constant=str)
    except (ValueError, RecursionError):
        listed = None
    if isinstance(listed, list) and all(isinstance(pair, tuple) for pair in listed):
        yield from (("", _plain(name), value.strip() if isinstance(value, str) else "") for name, value in listed)
        return
    lines = [line for said in text.splitlines() if (line := " ".join(_MARKS.sub("", said).split()))]
    parts = [_named(line) for line in lines]
    for index, (line, (name, value)) in enumerate(zip(lines, parts, strict=True)):
        after = lines[index + 1] if index + 1 < len(lines) else ""
        goes_on = (_GOES_ON.match(after) or _counts(after.split(" ")[0])) and parts[index + 1][0] not in known
        yield line, name, f"{value} {after}" if goes_on else value


def _named(line: str) -> tuple[str, str]:
    """A line as a name (plain) and what stands behind it; no name where the line is no such pair."""
    cut = _BEFORE.sub("", line)
    at = re.search(r"[:\uff1a=|]", cut)
    if at is None or not (name := _BEHIND_NAME.sub("", cut[: at.start()].strip("\"' "))):
        return "", ""
    return _plain(name), cut[at.end() :].strip(" |\"'").rstrip(",").strip("\"' ")


def _plain(name: str) -> str:
    """A name without what may be written one way or another."""
    return " ".join(re.sub(r"[&+]", " and ", name.lower()).replace('"', " ").split())
