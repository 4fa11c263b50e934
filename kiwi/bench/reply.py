"""Replies: a judge's text becomes one number a dimension, or a reason why there is none. Never a guess.

A score stands on a line of its own behind its dimension's name, in any order: `Name: 4`, `**Name:** 4.5/5`,
`| Name | 4 |`, `2. Name (1-5): 4 out of 5`; or the whole reply is a JSON object. Words may follow in parentheses or
behind a dash, digits may not: `4 - 5` is no answer. What a provider cut off must be refused before it comes here: "4"
may be what is left of "4.5".
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

LOWEST, HIGHEST = 1.0, 5.0

_BEFORE = re.compile(r"^[\s>#|•·\"'-]*(?:\(?[0-9]{1,2}[.)]\s+)?[\s>#|•·\"'-]*")
_NAMED = re.compile(
    r"^(?P<name>[^:\uff1a=|]+?)\s*(?:\([^()]*\))?\s*(?:score|rating)?\s*[\"']?\s*[:\uff1a=|](?P<value>.*)$", re.I
)
_VALUE = re.compile(
    r"^(?P<open>\[)?(?P<number>[0-9]+(?:\.[0-9]+)?)(?(open)\])\.?"
    r"(?:\s*(?:/|out of)\s*5(?:\.0+)?\.?)?"
    r"(?:\s*\([^()0-9]*\)|\s+[-\u2013\u2014]\s[^0-9]*)?$",
    re.I,
)
_BEGINS = re.compile(r"^[\[(+-]*\s*[.,]?[0-9]")
_GOES_ON = re.compile(r"^\W*[.,/]\W*[0-9]")


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
    wanted = {_plain(name): name for name in dimensions}
    foreign = {_plain(name): name for name in others if _plain(name) not in wanted}
    found: dict[str, float] = {}
    for name, value in _pairs(text):
        known = wanted.get(name) or foreign.get(name)
        if known is None or not _BEGINS.match(value):
            continue  # reasoning
        if name in foreign:
            return Unscored(f"it answers another rubric ({known})")
        if known in found:
            return Unscored(f"it gives {known} more than once")
        if (read := _VALUE.match(value)) is None:
            return Unscored(f"the score of {known} cannot be read: {value[:40]!r}")
        if not LOWEST <= (number := float(read["number"])) <= HIGHEST:
            return Unscored(f"the score of {known} is not from 1 to 5: {value[:40]!r}")
        found[known] = number
    if missing := [name for name in dimensions if name not in found]:
        return Unscored(f"it gives no score of {', '.join(missing)}")
    return {name: found[name] for name in dimensions}


def capped(scores: Scores, by: str) -> Scores:
    """The scores with none above the one that caps them: an edit that was not made is easily consistent."""
    return {name: min(score, scores[by]) for name, score in scores.items()}


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    """Names (plain) with what stands behind them, line by line, or of a JSON object."""
    body = re.sub(r"^\s*```\w*\s*\n(.*)\n\s*```\s*$", r"\1", text, flags=re.DOTALL)
    try:
        listed = json.loads(body, object_pairs_hook=list, parse_float=str, parse_int=str, parse_constant=str)
    except (ValueError, RecursionError):
        listed = None
    if isinstance(listed, list) and all(isinstance(pair, tuple) for pair in listed):
        yield from ((_plain(name), value.strip() if isinstance(value, str) else "") for name, value in listed)
        return
    lines = [re.sub(r"[*_`]", "", line) for line in re.split(r"\r?\n", text)]
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        if (read := _NAMED.match(_BEFORE.sub("", line))) is None:
            continue
        value = read["value"].strip().strip("|\"'").rstrip(",").strip("\"' ")
        # A number that seems to go on in the next line is not read at all.
        yield _plain(read["name"]), f"{value} {after.strip()}" if _GOES_ON.match(after) else value


def _plain(name: str) -> str:
    """A name without what may be written one way or another."""
    return " ".join(re.sub(r"[&+]", " and ", name.lower()).replace('"', " ").split())
