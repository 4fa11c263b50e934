"""Splitting a judge's reply into score lines and prose: lines, tables and JSON, without reasoning blocks."""

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from kiwi.bench.reply_language import has_numeral, is_revision_heading, retracts_scores

MAX_JSON_VALUES = 50
"""Maximum number of places where JSON is looked for, which bounds the time for a reply of brackets."""

_TAGS = "|".join(
    (
        *("think", "thinking", "thought", "thoughts", "reasoning", "reason", "analysis", "reflection", "scratchpad"),
        *("inner_monologue", "internal_monologue", "deliberation"),
    )
)
_OPENING_MARKS = (
    rf"<(?:{_TAGS})(?:\s[^<>]*)?>",  # DeepSeek, Qwen, and prompts for Claude
    r"\[THINK\]",  # Magistral
    "\u25c1think\u25b7",  # Kimi
    r"<\|begin_of_thought\|>",  # Sky-T1
    r"<\|channel\|>analysis",  # gpt-oss
)
_CLOSING_MARKS = (
    rf"</\s*(?:{_TAGS})\s*>",
    r"\[/THINK\]",
    "\u25c1/think\u25b7",
    r"<\|end_of_thought\|>",
    r"<\|channel\|>final",
)
_REASONING_MARK = re.compile(rf"(?P<closing>{'|'.join(_CLOSING_MARKS)})|{'|'.join(_OPENING_MARKS)}", re.I)
_REASONING_FENCE = re.compile(rf"^```(?:{_TAGS})[ \t]*$.*?(?:^```[ \t]*$|\Z)", re.I | re.M | re.S)
_SPECIAL_TOKENS = re.compile(
    r"<\|[a-z0-9_ ]{1,40}\|>|<\uff5c[^<>\n]{1,60}\uff5c>|</?s>|<(?:eos|bos|pad|end_of_turn|start_of_turn)>|"
    "[\ufeff\u200b\u200e\u200f\u2060]",  # characters without width
    re.I,
)
_EMPHASIS_MARKS = re.compile(r"([^*_`]?)([*_`]+)(?=([^*_`]?))")
_DECORATION = re.compile(r"[\s|:+=(){}\[\]-]*|```\w*|json|</?[a-z_ ]{1,30}>", re.I)

# A score line holds list marks (_PREFIX), the name, a suffix such as "(1-5)" (_NAME_SUFFIX), and the score (SCORE).
_PREFIX = re.compile(r"^[\s#|\u2022\u00b7\"'-]*(?:\(?[0-9]{1,2}[.)] )?[\s#|\u2022\u00b7\"'-]*")
_NAME_SUFFIX = re.compile(
    r"\s?(?:\((?:score|rating|(?:score )?(?:1 ?[-\u2013\u2014] ?5|1 to 5|/ ?5|out of 5))\))?(?: score| rating)?$", re.I
)
SCORE = re.compile(
    r"(?P<open>\[)?(?P<number>[0-9](?:\.[0-9]+)?)(?(open)\])\.?(?: ?(?:/|out of) ?5(?:\.0+)?\.?)?"
    r"(?P<remark> ?\(.*\)| [-\u2013\u2014] .*)?",
    re.I,
)
"""A score with an optional maximum of 5 and an optional remark in parentheses or after a dash."""

_SCORE_START = re.compile(r"[\[(+~<>\u2248-]* ?[.,]?[^\W\d_]{0,8}[. ]? ?\d")
# The start of a line that may continue the number of the line before.
_CONTINUATION = re.compile(r"[\W_]*(?:of|out|or)\b|[^\w\s]?\s?[\d.,/]", re.I)
_NAME_KEYS = ("dimension", "name", "criterion", "criteria", "aspect", "metric", "category", "key")
_SCORE_KEYS = ("score", "rating", "value", "grade")
_PLAIN_NUMBER = re.compile(r"[-+]?[0-9.]+(?:e[-+]?[0-9]+)?", re.I)
_REPEATED = "given more than once in one JSON value"


@dataclass(frozen=True, kw_only=True)
class ReplyLine:
    """A line of a reply, or an entry of JSON in it.

    Args:
        text: the line without emphasis and extra spaces.
        name: dimension of a score line, normalized by `normalize_name`; empty for prose.
        value: what a score line has in place of the score.
        in_json: whether the text is a string in JSON, where the order of entries has no meaning.
    """

    text: str
    name: str = ""
    value: str = ""
    in_json: bool = False


class Answer(NamedTuple):
    """A reply without its reasoning, and whether it ends inside a reasoning block."""

    text: str
    is_cut_off: bool


def remove_reasoning(text: str) -> Answer:
    """Remove the reasoning blocks of a reply, which may be nested, and the special tokens.

    An unclosed block reaches to the end. A closing mark without its opening, which some chat templates write into the
    prompt, ends a block that reaches from the beginning.
    """
    text = _REASONING_FENCE.sub("", text)
    parts, depth, position = [], 0, 0
    for mark in _REASONING_MARK.finditer(text):
        if depth == 0:
            parts.append(text[position : mark.start()])
        if mark["closing"]:
            if depth == 0:
                parts.clear()
            depth = max(0, depth - 1)
        else:
            depth += 1
        position = mark.end()
    if depth == 0:
        parts.append(text[position:])
    return Answer(_SPECIAL_TOKENS.sub("", "\n".join(parts)), depth > 0)


def strip_emphasis(text: str) -> str:
    """Remove Markdown's marks of bold, italics and code."""

    def strip(match: re.Match[str]) -> str:
        before, marks, after = match.groups()
        is_inside = re.match(r"[\w.,]", before) and re.match(r"[\w.,]", after)  # of a word or a number, as in 4*5
        return before + marks if is_inside else before

    return _EMPHASIS_MARKS.sub(strip, text)


def normalize_name(name: str) -> str:
    """Lower-case a dimension's name, and remove quotes, underscores, extra spaces, and "and" in all its forms."""
    words = re.sub(r"[&+_\"]", " ", name.lower()).split()
    return " ".join(word for word in words if word != "and")


def split_lines(text: str, known: Collection[str]) -> Iterator[ReplyLine]:
    """Split a reply into score lines of the `known` normalized names and prose; empty lines are left out."""
    position = 0
    for start, end, entries in _find_json(text, known):
        yield from _split_prose(text[position:start], known)
        yield from entries
        position = end
    yield from _split_prose(text[position:], known)


def _split_prose(text: str, known: Collection[str]) -> Iterator[ReplyLine]:
    stripped = (" ".join(strip_emphasis(raw).split()) for raw in text.splitlines())
    lines = [line for line in stripped if not _DECORATION.fullmatch(line)]
    parts = [_split_score_line(line, known) for line in lines]
    for index, (line, (name, value)) in enumerate(zip(lines, parts, strict=True)):
        after = lines[index + 1] if name and index + 1 < len(lines) and not parts[index + 1][0] else ""
        if _CONTINUATION.match(after) or (after and not any(map(str.isalnum, after))):
            value = f"{value} {after}"
        yield ReplyLine(text=line, name=name, value=value)


def _split_score_line(line: str, known: Collection[str]) -> tuple[str, str]:
    """Split a line into its normalized name and its value; both are empty for prose.

    A line is a score line if it begins with a name of `known` and its value begins like a number.
    """
    content = _PREFIX.sub("", line)
    separator = re.search(r"[:\uff1a=|]", content)
    if separator is None:
        return "", ""
    name = normalize_name(_NAME_SUFFIX.sub("", content[: separator.start()].strip("\"' ")))
    if name not in known:
        return "", ""
    rest = content[separator.end() :].strip()
    if line.startswith("|") and separator[0] == "|":
        return name, _select_cell(rest.strip("| "))
    value = rest.strip(" |\"'").rstrip(",").strip("\"' ")
    return (name, value) if _SCORE_START.match(value) or has_numeral(value[:3]) else ("", "")


def _select_cell(row: str) -> str:
    """The only cell of a table row that is a score; the whole row if other cells may be scores too."""
    cells = [cell.strip(" \"'") for cell in row.split("|")]
    scores = [cell for cell in cells if SCORE.fullmatch(cell) or (len(cell.split()) <= 3 and has_numeral(cell))]
    is_clear = len(scores) == 1 and not any(retracts_scores(cell) for cell in cells if cell not in scores)
    return scores[0] if is_clear else row


class _Pairs(list[tuple[str, Any]]):
    """The pairs of a JSON object, including duplicate keys."""


def _find_json(text: str, known: Collection[str]) -> list[tuple[int, int, list[ReplyLine]]]:
    """Find JSON values that hold scores: start, end and lines of each."""
    decoder = json.JSONDecoder(object_pairs_hook=_Pairs, parse_float=str, parse_int=str, parse_constant=str)
    opening = re.compile(r"[{\[]\s*[\"{\[]")
    found, position = [], 0
    for _ in range(MAX_JSON_VALUES):
        if (match := opening.search(text, position)) is None:
            break
        try:
            value, position = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            position = match.start() + 1
            continue
        entries = list(_iterate_json(value, known))
        counts = Counter(entry.name for entry in entries if entry.name)
        if counts:
            unique = (replace(line, value=_REPEATED) if counts[line.name] > 1 else line for line in entries)
            found.append((match.start(), position, [replace(line, in_json=True) for line in unique]))
    return found


def _iterate_json(value: Any, known: Collection[str]) -> Iterator[ReplyLine]:
    """The scores of a JSON value and, as prose, its other strings, in the order of the text."""
    if isinstance(value, _Pairs):
        fields = {normalize_name(key): content for key, content in value}
        names = [content for key in _NAME_KEYS if isinstance(content := fields.get(key), str)]
        name = normalize_name(names[0]) if names else ""
        for key, content in value:
            if (dimension := normalize_name(key)) in known:
                yield from _iterate_entry(dimension, content)
            elif name in known and dimension in _SCORE_KEYS:
                yield from _iterate_entry(name, content)
            elif isinstance(content, list) and is_revision_heading(f"{key.replace('_', ' ')}:"):
                yield from _iterate_json(content, known)
                yield ReplyLine(text=", ".join(inner for inner in content if isinstance(inner, str)))
            else:
                yield from _iterate_json(content, known)
    elif isinstance(value, list):
        for item in value:
            yield from _iterate_json(item, known)
    elif isinstance(value, str) and not _PLAIN_NUMBER.fullmatch(value):
        yield ReplyLine(text=value)


def _iterate_entry(name: str, content: Any) -> Iterator[ReplyLine]:
    """The score of a dimension in JSON: a number, a string, or an object with one score and reasons."""
    if isinstance(content, str):
        yield ReplyLine(text=content, name=name, value=content.strip())
        return
    fields = content if isinstance(content, _Pairs) else []
    scores = [inner for key, inner in fields if normalize_name(key) in _SCORE_KEYS]
    is_clear = len(scores) == 1 and isinstance(scores[0], str)
    yield ReplyLine(text=name, name=name, value=scores[0].strip() if is_clear else "")
    yield from (ReplyLine(text=inner) for _, inner in fields if isinstance(inner, str) and inner not in scores)
