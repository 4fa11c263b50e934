"""The ledger: every judgement, a line each, added and never changed. What is in it is not asked again."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from kiwi.errors import InputError

log = logging.getLogger(__name__)

FILE = "judgements.jsonl"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a judgement is of; two judgements of the same are one.

    Args:
        item: the case's id; controls have theirs before it, such as "copy:ID".
        repeat: which of the independent answers to the same question, from 0.
        judge, version: who was asked, as the judge names itself.
        media: hashes of what was shown, by input.
        instruction: of the edit, as the judge was told.
        rubric: hash of the rubric.
        frames: how frames are taken from videos, as the judge names it.
        temperature: of the judge; none where it has none.
    """

    item: str
    repeat: int
    judge: str
    version: str
    media: Mapping[str, str]
    instruction: str
    rubric: str
    frames: str
    temperature: float | None

    @property
    def key(self) -> str:
        """The same for the same question."""
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A line of the ledger.

    Args:
        asked: what was asked.
        category: of the item.
        reply: what the judge said; none if it did not answer.
        scores: raw, a number a dimension; none if there is no answer that can be read.
        reason: why there are no scores.
        seconds: from question to answer, tries and waits included.
        at: when, UTC.
    """

    asked: Asked
    category: str
    reply: str | None
    scores: Mapping[str, float] | None
    reason: str | None
    seconds: float
    at: str


class Ledger:
    """Judgements in a file.

    A line that was cut off by a kill is passed over; a judgement without scores is kept to be looked at, and asked for
    again by the next run.

    Args:
        file: judgements.jsonl; made if it is not there.

    Attributes:
        earlier: what it held when it was opened.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock = Lock()
        self.earlier = read_ledger(file)
        self._done = {judgement.asked.key: judgement for judgement in self.earlier if judgement.scores is not None}

    def find(self, asked: Asked) -> Judgement | None:
        """The judgement with scores of a question, if it is there."""
        return self._done.get(asked.key)

    def add(self, judgement: Judgement) -> None:
        """Write a judgement; it is on the disk when this returns."""
        with self._lock:
            line = (json.dumps(asdict(judgement)) + "\n").encode()  # ASCII: a reply may hold anything
            with self.file.open("ab+") as file:
                if file.seek(0, os.SEEK_END) and not _ends_with_a_line(self.file):
                    line = b"\n" + line  # of a run that was cut off
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            if judgement.scores is not None:
                self._done[judgement.asked.key] = judgement


def read_ledger(file: Path) -> list[Judgement]:
    """All judgements of a file in their order; none if it is not there. Lines that are none are passed over, and told;
    so are questions that somebody's merging or editing gave two answers.

    Raises:
        InputError: a folder, or a file that may not be read.
    """
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return []
    except OSError as problem:
        raise InputError(f"the ledger {file} cannot be read", got=problem.strerror) from None
    found = [_judgement(line) for line in lines if line.strip()]
    if lost := found.count(None):
        log.warning("%s: %d of %d lines are no judgements and are passed over", file, lost, len(found))
    judgements = [judgement for judgement in found if judgement is not None]
    scored: dict[str, list[Mapping[str, float]]] = {}
    for one in judgements:
        if one.scores is not None:
            scored.setdefault(one.asked.key, []).append(one.scores)
    if differing := sum(any(other != scores[0] for other in scores) for scores in scored.values()):
        log.warning("%s: %d questions have answers with other scores further down; the last counts", file, differing)
    return judgements


def _judgement(line: str) -> Judgement | None:
    try:
        said: dict[str, Any] = json.loads(line)
        judgement = Judgement(**{**said, "asked": Asked(**said["asked"])})
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return judgement if _is_sound(judgement) else None


def _is_sound(judgement: Judgement) -> bool:
    """Types of what is computed with, since a ledger may come from anywhere."""
    asked, scores = judgement.asked, judgement.scores
    texts = (asked.item, asked.judge, asked.version, asked.instruction, asked.rubric, asked.frames, judgement.category)
    return (
        all(isinstance(text, str) for text in texts)
        and type(asked.repeat) is int
        and isinstance(asked.media, dict)
        and all(isinstance(digest, str) for digest in asked.media.values())
        and (asked.temperature is None or type(asked.temperature) in (int, float))
        and (judgement.reply is None or isinstance(judgement.reply, str))
        and (
            scores is None
            or (
                isinstance(scores, dict)
                and all(type(score) in (int, float) and 1 <= score <= 5 for score in scores.values())
            )
        )
    )


def _ends_with_a_line(file: Path) -> bool:
    with file.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) == b"\n"
