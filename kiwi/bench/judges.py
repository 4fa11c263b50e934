"""Judges: who answers a rubric about videos. The oracle computes its answer; a replay repeats an earlier one."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kiwi.bench.ledger import Asked, read_ledger
from kiwi.bench.rubric import Rubric
from kiwi.errors import InputError, KiwiError
from kiwi.media.files import require_file
from kiwi.media.video import read_video
from kiwi.sandbox import oracle
from kiwi.sandbox.export import WORLD_VERSION
from kiwi.sandbox.pairs import EditPair, make_pair
from kiwi.spec import Spec


class Unanswered(Exception):
    """A judge gave no answer.

    Args:
        reason: why.
        retry: whether to ask again may help.
        after: seconds to wait before that, if the judge said so.
    """

    def __init__(self, reason: str, *, retry: bool, after: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.retry, self.after = reason, retry, after


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a judge is asked.

    Args:
        rubric: the system instruction.
        instruction: of the edit.
        media: files by input, in the order in which they are shown: reference, source, edited.
        asked: what it is in the ledger.
    """

    rubric: Rubric
    instruction: str
    media: Mapping[str, Path]
    asked: Asked


class Judge(ABC):
    """Who answers. `ask` may be called from several threads at once.

    Args:
        name, version: what the ledger keeps; of a service, the model as it was asked for and as it named itself.
        frames: how it takes frames from a video.
        temperature: of sampling; none where it has none.
        seconds: an answer takes about, for the estimate; none if unknown.
        dollars: an answer costs about.
        note: what reports say of it.
    """

    name: str
    version: str
    frames: str
    temperature: float | None = None
    seconds: float | None = None
    dollars: float = 0.0
    note: str = ""

    @abstractmethod
    def ask(self, question: Question) -> str:
        """The judge's answer as text. Raises Unanswered."""


@dataclass(frozen=True, kw_only=True)
class JudgeSpec(Spec, ABC):
    """Names a judge."""

    @abstractmethod
    def build(self, data: Path) -> Judge:
        """The judge, for items of a folder of data. Raises InputError if it cannot judge them."""


@dataclass(frozen=True, kw_only=True)
class Oracle(JudgeSpec):
    """Computes the scores from the exact target; for items of the sandbox alone."""

    def build(self, data: Path) -> Judge:
        return _Oracle(data)


@dataclass(frozen=True, kw_only=True)
class Replay(JudgeSpec):
    """Answers as a ledger says that a judge did, under that judge's name; what it does not hold stays unanswered.

    Args:
        ledger: a judgements.jsonl.
    """

    ledger: str

    def build(self, data: Path) -> Judge:
        return _Replay(require_file(self.ledger, what="ledger"))


class _Oracle(Judge):
    name, version, frames = "oracle", f"world {WORLD_VERSION}", "all"
    seconds = 0.05

    def __init__(self, data: Path) -> None:
        try:
            said: dict[str, Any] = json.loads((data / "world.json").read_text(encoding="utf-8"))
            names = ("seed", "frames", "height", "width", "categories", "level", "split")
            self.settings = {name: said[name] for name in names}
            known = said["world"] == WORLD_VERSION
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(
                f"the oracle knows no right answers to the items of {data}",
                wanted="an export of the sandbox (python -m kiwi sandbox export)",
                fix="--data sandbox, or another judge",
            ) from None
        if not known:
            got, wanted = f"world {said['world']}", f"world {WORLD_VERSION}"
            raise InputError(f"{data} was exported by another kiwi", got=got, wanted=wanted, fix="export it anew")

    def ask(self, question: Question) -> str:
        pair, video = self._pair(question), read_video(question.media["edited"]).frames_FHWC
        if question.instruction != pair.instruction:
            raise Unanswered("the oracle knows the right answer to an item's own words alone", retry=False)
        if video.shape != pair.source.shape:
            raise Unanswered(f"the edit is {_size(video)}, the source {_size(pair.source)}", retry=False)
        scores = oracle.judge_edit(pair, video)
        values = (scores.compliance, scores.consistency, scores.quality)
        lines = [f"{name}: {value:.2f}" for name, value in zip(question.rubric.dimensions, values, strict=True)]
        return "\n".join(["Computed from the exact target.", *lines])

    def _pair(self, question: Question) -> EditPair:
        """The item whose source is shown."""
        name = question.media["source"].stem.removesuffix("_source")
        index = name.rpartition("-")[2]
        settings = {key: value for key, value in self.settings.items() if key != "seed"}
        try:
            pair = make_pair(self.settings["seed"], int(index), **settings)
        except (ValueError, KiwiError) as problem:
            raise Unanswered(f"{name} is no item of the world: {problem}", retry=False) from None
        if pair.id != name:
            raise Unanswered(f"{name} is no item of the world", retry=False)
        return pair


class _Replay(Judge):
    def __init__(self, ledger: Path) -> None:
        judgements = [judgement for judgement in read_ledger(ledger) if judgement.reply is not None]
        judges = {(one.asked.judge, one.asked.version, one.asked.frames, one.asked.temperature) for one in judgements}
        if len(judges) > 1:
            raise InputError(f"{ledger} holds answers of several judges", got=sorted(judge[0] for judge in judges))
        said = next(iter(judges), ("replay", "empty ledger", "", None))
        self.name, self.version, self.frames, self.temperature = said
        self.note = f"replayed from {ledger}"
        # What was asked again counts, but no answer without scores takes away one that has some.
        scored_last = sorted(judgements, key=lambda one: one.scores is not None)
        self.replies = {self._key(judgement.asked): judgement.reply for judgement in scored_last}
        self.known = {(judgement.asked.item, judgement.asked.repeat): judgement.asked for judgement in judgements}

    @staticmethod
    def _key(asked: Asked) -> tuple[object, ...]:
        return asked.item, asked.repeat, asked.instruction, asked.rubric, tuple(sorted(asked.media.items()))

    def ask(self, question: Question) -> str:
        reply = self.replies.get(self._key(question.asked))
        if reply is None:
            raise Unanswered(f"the ledger has no answer to this question{self._nearest(question.asked)}", retry=False)
        return reply

    def _nearest(self, asked: Asked) -> str:
        """What an answer of the ledger about the same item is of, if there is one."""
        held = self.known.get((asked.item, asked.repeat))
        if held is None:
            return ""
        other = ["rubric"] if held.rubric != asked.rubric else []
        other += ["instruction"] if held.instruction != asked.instruction else []
        other += [f"{name} file" for name, digest in asked.media.items() if held.media.get(name) != digest]
        return f": it has one of another {', '.join(other)}"


def _size(video: np.ndarray) -> str:
    frames, height, width = video.shape[:3]
    return f"{width}x{height}, {frames} frames"
