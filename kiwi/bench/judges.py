"""Judges answer questions about edited videos: the oracle computes its scores, a replay reads them from a ledger."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kiwi.bench.ledger import JudgementKey, read_ledger
from kiwi.bench.reply import format_answer
from kiwi.bench.rubric import AnswerFormat, Rubric
from kiwi.errors import InputError, KiwiError
from kiwi.media.video import read_video
from kiwi.reading import read_json, require_file
from kiwi.sandbox import oracle
from kiwi.sandbox.export import WORLD_VERSION
from kiwi.sandbox.pairs import EditPair, make_pair
from kiwi.spec import Spec
from kiwi.vlm.request import Usage


@dataclass(frozen=True, kw_only=True)
class JudgeAnswer:
    """A judge's answer.

    Args:
        reply: the text, from which `kiwi.bench.reply.read_answer` reads the scores; `format_answer` writes the text of
            a judge that computes numbers.
        model: the model that answered, as its provider names it.
        frames: digest of the frames shown, by input ("source", "edited" ...).
        usage: numbers of tokens read and written.
    """

    reply: str
    model: str | None = None
    frames: Mapping[str, str] = field(default_factory=dict)
    usage: Usage | None = None


class JudgeError(Exception):
    """A judge gave no answer, or an incomplete one.

    Args:
        reason: explanation for the ledger and the report.
        retryable: whether another attempt may succeed.
        retry_after: seconds to wait before the next attempt, if the judge asked for a wait.
        answer: the incomplete answer, for the ledger.
    """

    def __init__(
        self, reason: str, *, retryable: bool, retry_after: float | None = None, answer: JudgeAnswer | None = None
    ) -> None:
        super().__init__(reason)
        self.reason, self.retryable, self.retry_after, self.answer = reason, retryable, retry_after, answer


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question to a judge about one edit.

    Args:
        rubric: rubric of the item's category, the system instruction.
        instruction: instruction of the edit.
        media: files to show, in this order: "reference" (if the item has one), "source", "edited".
        key: identifies the question in the ledger.
    """

    rubric: Rubric
    instruction: str
    media: Mapping[str, Path]
    key: JudgementKey


class Judge(ABC):
    """Base class of all judges. `ask` may be called from several threads at once.

    Attributes:
        name, version: identify the judge in the ledger; for a service, the requested and the reported model.
        frames: description of how the judge samples frames from a video.
        temperature: sampling temperature; None if the judge does not sample.
        seconds: typical duration of an answer, for the estimate; None if it is unknown.
        model: name of the model in price tables; None for a judge that costs nothing.
        note: remark for the reports.
    """

    name: str
    version: str
    frames: str
    temperature: float | None = None
    seconds: float | None = None
    model: str | None = None
    note: str = ""

    @abstractmethod
    def ask(self, question: Question) -> JudgeAnswer:
        """Answer a question. Raises JudgeError if there is no answer."""


@dataclass(frozen=True, kw_only=True)
class JudgeSpec(Spec, ABC):
    """Base class of all judge specs."""

    def choose_format(self, hashes: Mapping[AnswerFormat, Collection[str]]) -> AnswerFormat:
        """Choose the format of answers that the built-in rubrics ask for, given the hashes of the rubrics of each."""
        return "prose"

    @abstractmethod
    def build(self, data: Path) -> Judge:
        """Build the judge for a data folder. Raises InputError if it cannot judge the items there."""


@dataclass(frozen=True, kw_only=True)
class Oracle(JudgeSpec):
    """Compute the scores from the exact target; only for items of the sandbox."""

    def build(self, data: Path) -> Judge:
        return _OracleJudge(data)


@dataclass(frozen=True, kw_only=True)
class Replay(JudgeSpec):
    """Return the answers recorded in a ledger, under the name of the judge that gave them.

    Questions that the ledger does not answer stay without a score.

    Args:
        ledger: path of a judgements.jsonl.
    """

    ledger: str

    def choose_format(self, hashes: Mapping[AnswerFormat, Collection[str]]) -> AnswerFormat:
        """Choose the format that most of the recorded answers have."""
        asked = Counter(judgement.key.rubric for judgement in read_ledger(require_file(self.ledger, what="ledger")))
        return max(hashes, key=lambda answer: sum(asked[rubric] for rubric in hashes[answer]))

    def build(self, data: Path) -> Judge:
        return _ReplayJudge(require_file(self.ledger, what="ledger"))


class _OracleJudge(Judge):
    name, version, frames = "oracle", f"world {WORLD_VERSION}", "all"
    seconds = 0.05

    def __init__(self, data: Path) -> None:
        try:
            record: dict[str, Any] = read_json(data / "world.json")
            fields = ("seed", "frames", "height", "width", "categories", "level", "split")
            self.settings = {field: record[field] for field in fields}
            is_current = record["world"] == WORLD_VERSION
        except (OSError, ValueError, KeyError, TypeError):
            fix = "set --data to sandbox or to a folder of `kiwi sandbox export`, or use another --judge"
            raise InputError(f"the oracle cannot judge {data}", code="not-an-export", fix=fix) from None
        if not is_current:
            raise InputError(
                f"{data} comes from another version of kiwi", code="unsupported-version",
                got=f"world {record['world']}", expected=f"world {WORLD_VERSION}", fix="export it again",
            )  # fmt: skip

    def ask(self, question: Question) -> JudgeAnswer:
        pair, video = self._recreate_pair(question), read_video(question.media["edited"]).frames_FHWC
        if question.instruction != pair.instruction:
            raise JudgeError("the oracle can only judge an item by its own instruction", retryable=False)
        if video.shape != pair.source.shape:
            sizes = f"the edit is {_describe_size(video)}, but the source is {_describe_size(pair.source)}"
            raise JudgeError(sizes, retryable=False)
        scores = oracle.score_edit(pair, video)
        values = (scores.compliance, scores.consistency, scores.quality)
        named = zip(question.rubric.dimensions, values, strict=True)
        return JudgeAnswer(reply=format_answer({name: round(value, 2) for name, value in named}))

    def _recreate_pair(self, question: Question) -> EditPair:
        """Render the sandbox's item that the question's source video belongs to."""
        name = question.media["source"].stem.removesuffix("_source")
        settings = {key: value for key, value in self.settings.items() if key != "seed"}
        try:
            pair = make_pair(self.settings["seed"], int(name.rpartition("-")[2]), **settings)
        except (ValueError, KiwiError) as error:
            raise JudgeError(f"{name} is not an item of the sandbox: {error}", retryable=False) from None
        if pair.id != name:
            raise JudgeError(f"{name} is not an item of the sandbox", retryable=False)
        return pair


class _ReplayJudge(Judge):
    def __init__(self, ledger: Path) -> None:
        answered = [judgement for judgement in read_ledger(ledger) if judgement.reply is not None]
        keys = [judgement.key for judgement in answered]
        judges = {(key.judge, key.version, key.frames, key.temperature) for key in keys}
        if len(judges) > 1:
            names = ", ".join(sorted(judge[0] for judge in judges))
            expected = "--judge replay:LEDGER with the answers of one judge"
            raise InputError(f"{ledger} has several judges", code="several-judges", got=names, expected=expected)
        no_judge = ("replay", "empty ledger", "", None)
        self.name, self.version, self.frames, self.temperature = next(iter(judges), no_judge)
        self.note = f"replayed from {ledger}"
        # The last answer to a question counts, but one without scores does not displace one with scores.
        scored_last = sorted(answered, key=lambda judgement: judgement.scores is not None)
        self.replies = {_make_question_key(judgement.key): judgement.reply for judgement in scored_last}
        self.by_item = {(key.item, key.repeat): key for key in keys}

    def ask(self, question: Question) -> JudgeAnswer:
        reply = self.replies.get(_make_question_key(question.key))
        if reply is None:
            reason = f"the ledger has no answer to this question{self._describe_mismatch(question.key)}"
            raise JudgeError(reason, retryable=False)
        return JudgeAnswer(reply=reply)

    def _describe_mismatch(self, key: JudgementKey) -> str:
        """How the ledger's question about the same item differs; empty if it has none."""
        similar = self.by_item.get((key.item, key.repeat))
        if similar is None:
            return ""
        parts = ["rubric"] if similar.rubric != key.rubric else []
        parts += ["instruction"] if similar.instruction != key.instruction else []
        parts += [f"{name} file" for name, digest in key.media.items() if similar.media.get(name) != digest]
        return f": it has one with a different {', '.join(parts)}"


def _make_question_key(key: JudgementKey) -> tuple[object, ...]:
    """Identify a question without its judge."""
    return key.item, key.repeat, key.instruction, key.rubric, tuple(sorted(key.media.items()))


def _describe_size(video: np.ndarray) -> str:
    frames, height, width = video.shape[:3]
    return f"{width}x{height} with {frames} frames"
