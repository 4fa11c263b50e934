"""The runner: videos that are missing are generated while those that are there are judged, and every answer is kept.

Generating happens in the calling thread, one video after another; judging in as many threads as there may be questions
at once. A kill loses the answers that were on their way, nothing else: the same call goes on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock

from kiwi import console
from kiwi.bench.case import Case
from kiwi.bench.judges import Judge, Question, Unanswered
from kiwi.bench.ledger import Asked, Judgement, Ledger
from kiwi.bench.reply import Unscored, read_reply
from kiwi.bench.rubric import Rubric
from kiwi.bench.suites import Suite
from kiwi.errors import InputError, KiwiError
from kiwi.media.files import sha256

Generate = Callable[[Case, Path], None]
"""Edits a case's source into a file, atomically."""

SLOWEST = 0.01
"""Questions a minute, at least."""

LONGEST_WAIT = 60.0
"""Seconds between tries, at most, unless the judge asks for more."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast a judge is asked.

    Args:
        concurrency: questions at once.
        per_minute: questions begun a minute, at most; none for no limit.
        tries: of each question.
        first_wait: seconds before the second try; each further one waits twice as long.
    """

    concurrency: int = 8
    per_minute: float | None = None
    tries: int = 4
    first_wait: float = 1.0

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.tries < 1:
            said = f"concurrency {self.concurrency}, tries {self.tries}"
            raise InputError("a judge is asked at least once, one question at a time", got=said, wanted="1 or more")
        if self.per_minute is not None and not SLOWEST <= self.per_minute < math.inf:
            wanted = f"a number from {SLOWEST} on"
            raise InputError("questions a minute cannot be that many", got=self.per_minute, wanted=wanted)


@dataclass(frozen=True, kw_only=True)
class Task:
    """Something to be judged, once or more.

    Args:
        item: under which id the ledger keeps it.
        case: the benchmark's item that it is of.
        instruction: what the judge is told that the edit should do.
        edited: the video.
        repeats: which answers are wanted.
    """

    item: str
    case: Case
    instruction: str
    edited: Path
    repeats: Sequence[int]


class Runner:
    """Asks one judge about items of one suite.

    Args:
        suite: what is judged.
        rubrics: of each category.
        judge: who is asked.
        ledger: where the answers go, and from which those are taken that are there.
        pace: how fast.
    """

    def __init__(
        self,
        suite: Suite,
        rubrics: Mapping[str, Rubric],
        judge: Judge,
        ledger: Ledger,
        pace: Pace = Pace(),
    ) -> None:
        self.suite, self.rubrics, self.judge, self.ledger, self.pace = suite, rubrics, judge, ledger, pace
        self._others = [name for rubric in rubrics.values() for name in rubric.dimensions]
        self._hashes: dict[Path, str] = {}
        self._gate = _Gate(pace.per_minute)

    def run(self, tasks: Sequence[Task], generate: Generate | None = None) -> tuple[list[Judgement], dict[str, str]]:
        """Judge, generating what is missing if there is something to generate it with.

        Returns:
            Judgements of the tasks, those that were in the ledger before too, in the tasks' order; and why tasks have
            none, by item.
        """
        if not tasks:
            return [], {}
        known: list[list[Judgement | Future[Judgement]]] = []
        why: dict[str, str] = {}
        pool = ThreadPoolExecutor(self.pace.concurrency)
        try:
            with console.progress_bar(
                f"judging by {self.judge.name}", sum(len(task.repeats) for task in tasks)
            ) as advance:
                for task in tasks:
                    found: list[Judgement | Future[Judgement]] = []
                    known.append(found)
                    if (reason := self._missing(task, generate)) is not None:
                        why[task.item] = reason
                        for _ in task.repeats:
                            advance()
                        continue
                    for repeat in task.repeats:
                        question = self._question(task, repeat)
                        if (judgement := self.ledger.find(question.asked)) is not None:
                            found.append(judgement)
                            advance()
                        else:
                            future = pool.submit(self._judge, task, question)
                            future.add_done_callback(lambda _: advance())
                            found.append(future)
                judged = [one.result() if isinstance(one, Future) else one for found in known for one in found]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        return judged, why

    def waiting(self, tasks: Iterable[Task]) -> tuple[int, int]:
        """How many answers are to be asked for, as far as the ledger tells; and how many videos are missing."""
        answers = videos = 0
        for task in tasks:
            if not task.edited.is_file():
                videos += 1
                answers += len(task.repeats)
            else:
                asked = [self._question(task, repeat).asked for repeat in task.repeats]
                answers += sum(self.ledger.find(one) is None for one in asked)
        return answers, videos

    def _missing(self, task: Task, generate: Generate | None) -> str | None:
        """Why there is no video to be judged; none if there is, by now."""
        if task.edited.is_file():
            return None
        if generate is None:
            return f"there is no {task.edited.name}"
        try:
            generate(task.case, task.edited)
        except KiwiError as problem:
            return f"it could not be edited: {problem}"
        return None

    def _question(self, task: Task, repeat: int) -> Question:
        case, rubric = task.case, self.rubrics[task.case.category]
        files = {"reference": case.reference, "source": case.source, "edited": task.edited}
        media: dict[str, Path] = {name: path for name in self.suite.inputs if (path := files[name]) is not None}
        asked = Asked(
            item=task.item,
            repeat=repeat,
            judge=self.judge.name,
            version=self.judge.version,
            media={name: self._hash(path) for name, path in media.items()},
            instruction=task.instruction,
            rubric=rubric.hash,
            frames=self.judge.frames,
            temperature=self.judge.temperature,
        )
        return Question(rubric=rubric, instruction=task.instruction, media=media, asked=asked)

    def _hash(self, path: Path) -> str:
        if path not in self._hashes:
            self._hashes[path] = sha256(path)
        return self._hashes[path]

    def _judge(self, task: Task, question: Question) -> Judgement:
        began, reply, scores = time.monotonic(), None, None
        try:
            reply = self._ask(question)
            read = read_reply(reply, question.rubric.dimensions, self._others)
            scores, reason = (None, read.reason) if isinstance(read, Unscored) else (read, None)
        except (Unanswered, KiwiError) as problem:
            reason = str(problem)
        judgement = Judgement(
            asked=question.asked,
            category=task.case.category,
            reply=reply,
            scores=scores,
            reason=reason,
            seconds=round(time.monotonic() - began, 3),
            at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        self.ledger.add(judgement)
        return judgement

    def _ask(self, question: Question) -> str:
        """Ask, again where that may help."""
        wait = self.pace.first_wait
        for attempt in range(1, self.pace.tries + 1):
            self._gate.pass_through()
            try:
                return self.judge.ask(question)
            except Unanswered as problem:
                if not problem.retry or attempt == self.pace.tries:
                    raise
                time.sleep(max(min(wait, LONGEST_WAIT), problem.after or 0.0))
                wait *= 2
        raise AssertionError


class _Gate:
    """Lets threads through one after another, no more a minute than may be."""

    def __init__(self, per_minute: float | None) -> None:
        self.spacing = 0.0 if per_minute is None else 60.0 / per_minute
        self.next, self.lock = 0.0, Lock()

    def pass_through(self) -> None:
        with self.lock:
            now = time.monotonic()
            mine = max(now, self.next)
            self.next = mine + self.spacing
        time.sleep(max(0.0, mine - now))
