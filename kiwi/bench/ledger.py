"""The ledger: a journal of all judgements. A question whose scores are in it is not asked again."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kiwi.bench.reply import read_answer
from kiwi.errors import InputError, SpecError
from kiwi.media.journal import Journal
from kiwi.spec import Spec, from_dict
from kiwi.vlm.request import Usage

log = logging.getLogger(__name__)

LEDGER_FILE = "judgements.jsonl"
"""Name of the ledger's file in a run's folder."""


@dataclass(frozen=True, kw_only=True)
class JudgementKey(Spec):
    """Identifies a question to a judge; two judgements with equal keys answer the same question.

    Args:
        item: id of the item; for controls and anchors with a prefix, such as "copy:ID".
        repeat: index of the repeated answer to the same question, from 0.
        judge, version: `Judge.name` and `Judge.version`.
        media: SHA-256 of the files shown, by input ("source", "edited" ...).
        instruction: instruction of the edit as shown to the judge.
        rubric: `Rubric.hash`.
        frames, temperature: `Judge.frames` and `Judge.temperature`.
    """

    item: str
    repeat: int
    judge: str
    version: str
    media: dict[str, str]
    instruction: str
    rubric: str
    frames: str
    temperature: float | None

    @property
    def text(self) -> str:
        """Canonical JSON, equal for equal keys; used as dictionary key since `media` makes the class unhashable."""
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True, kw_only=True)
class Judgement(Spec):
    """A judge's answer to a question, and the scores in it.

    Args:
        key: the question.
        category: category of the item.
        reply: the judge's text; None if it gave none.
        scores: uncapped scores by dimension; None if there is no readable reply.
        reason: reason for missing scores.
        model: the model that answered, as its provider names it.
        frames: digest of the frames shown, by input.
        usage: numbers of tokens read and written.
        seconds: time from question to answer, including all attempts and waits.
        at: time of the answer in UTC, ISO 8601.
    """

    key: JudgementKey
    category: str
    reply: str | None
    scores: dict[str, float] | None
    reason: str | None
    seconds: float
    at: str
    model: str | None = None
    frames: dict[str, str] = field(default_factory=dict)
    usage: Usage | None = None

    def __post_init__(self) -> None:
        if not all(1 <= score <= 5 for score in (self.scores or {}).values()):
            raise InputError("a judgement has a score outside 1 to 5", code="out-of-range", got=self.scores)


class Ledger:
    """Judgements in a file.

    Judgements without scores stay on record, but their questions are asked again.

    Args:
        file: JSONL file; created by the first judgement.

    Attributes:
        initial_judgements: the judgements in the file when it was opened.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._journal = Journal(file, durable=True, checked=True)
        self.initial_judgements = read_ledger(file)
        self._scored = {known.key.text: known for known in self.initial_judgements if known.scores is not None}

    def find(self, key: JudgementKey) -> Judgement | None:
        """The judgement with scores that answers a question, if there is one."""
        return self._scored.get(key.text)

    def add(self, judgement: Judgement) -> None:
        """Append a judgement; it is on the disk when this returns."""
        self._journal.append(_to_record(judgement))
        if judgement.scores is not None:
            self._scored[judgement.key.text] = judgement


def read_ledger(file: Path) -> list[Judgement]:
    """All judgements of a file in order; none if there is no file.

    Scores that are not those of the stored reply do not count. Logs the numbers of these, of skipped records that are
    not judgements, and of questions with several scores.

    Raises:
        InputError: the path is a folder, the file cannot be read, or a record was changed after it was written.
    """
    records = Journal(file, checked=True).read()
    stated = [judgement for record in records if (judgement := _from_record(record)) is not None]
    judgements = [_reread_scores(judgement) for judgement in stated]
    if skipped := len(records) - len(judgements):
        log.warning("%s: skipped %d of %d records that are not judgements", file, skipped, len(records))
    if changed := sum(judgement is not kept for judgement, kept in zip(stated, judgements, strict=True)):
        log.warning("%s: %d answers have scores that are not those of their reply; they do not count", file, changed)
    scores: dict[str, list[Mapping[str, float]]] = {}
    for judgement in judgements:
        if judgement.scores is not None:
            scores.setdefault(judgement.key.text, []).append(judgement.scores)
    if duplicates := sum(len(given) > 1 for given in scores.values()):
        conflicts = sum(any(later != first for later in rest) for first, *rest in scores.values())
        text = "%s: %d questions have several judgements, %d of them with different scores; the last counts"
        log.warning(text, file, duplicates, conflicts)
    return judgements


def _reread_scores(judgement: Judgement) -> Judgement:
    """The judgement itself if its scores are those of its reply; else one without scores."""
    if judgement.scores is None or read_answer(judgement.reply or "", list(judgement.scores)) == judgement.scores:
        return judgement
    return judgement.replace(scores=None, reason="the recorded scores are not those of the reply")


def _to_record(judgement: Judgement) -> dict[str, Any]:
    """Convert a judgement to a record of the file, where the key is called "asked"."""
    fields = asdict(judgement)
    return {"asked": fields.pop("key"), **fields}


def _from_record(record: dict[str, Any]) -> Judgement | None:
    """Parse a record; None if it is not a judgement, since users may pass any file as a ledger."""
    try:
        fields = dict(record)
        judgement: Judgement = from_dict(Judgement, {"key": fields.pop("asked"), **fields})
    except (KeyError, SpecError, InputError):
        return None
    return judgement
