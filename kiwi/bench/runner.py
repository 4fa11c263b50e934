"""The runner: generates missing videos while those that exist are judged, and records every answer.

Videos are generated in the calling thread, one after another; questions are asked in as many threads as may be in
flight. A kill loses only the answers in flight; the same call resumes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from kiwi import console
from kiwi.bench.judges import Judge, JudgeError, Question
from kiwi.bench.ledger import Judgement, JudgementKey, Ledger
from kiwi.bench.rate_limit import RateLimit, Throttle
from kiwi.bench.reply import Unscored, read_reply
from kiwi.bench.rubric import Rubric
from kiwi.bench.suites import BenchmarkItem, Suite
from kiwi.errors import KiwiError
from kiwi.media.files import sha256

VideoGenerator = Callable[[BenchmarkItem, Path], None]
"""Edits an item's source and writes the result to a file, atomically."""


@dataclass(frozen=True, kw_only=True)
class JudgingTask:
    """An edited video to be judged, once or more.

    Args:
        id: the item's in the ledger.
        item: that it is an edit of.
        instruction: as shown to the judge.
        edited: the video.
        repeats: numbers of the answers.
    """

    id: str
    item: BenchmarkItem
    instruction: str
    edited: Path
    repeats: Sequence[int]


class Runner:
    """Asks one judge about items of one suite.

    Args:
        suite: the benchmark.
        rubrics: of each category.
        judge: to be asked.
        ledger: holds the answers that exist, and takes new ones.
        rate_limit: how fast the judge may be asked.
    """

    def __init__(
        self,
        suite: Suite,
        rubrics: Mapping[str, Rubric],
        judge: Judge,
        ledger: Ledger,
        rate_limit: RateLimit | None = None,
    ) -> None:
        self.suite, self.rubrics, self.judge, self.ledger = suite, rubrics, judge, ledger
        self.rate_limit = rate_limit or RateLimit()
        self._all_dimensions = [name for rubric in rubrics.values() for name in rubric.dimensions]
        self._hashes: dict[Path, str] = {}
        self._throttle = Throttle(self.rate_limit.per_minute)

    def run(
        self, tasks: Sequence[JudgingTask], generate: VideoGenerator | None = None
    ) -> tuple[list[Judgement], dict[str, str]]:
        """Judge tasks, generating videos that are missing if there is a generator.

        Returns:
            Judgements in the tasks' order, also those that the ledger had; and, by task, why others have none.
        """
        if not tasks:
            return [], {}
        answers: list[Judgement | Future[Judgement]] = []
        failures: dict[str, str] = {}
        pool = ThreadPoolExecutor(self.rate_limit.concurrency)
        try:
            with console.progress_bar(
                f"judging by {self.judge.name}", sum(len(task.repeats) for task in tasks)
            ) as advance:
                for task in tasks:
                    if (failure := _ensure_video(task, generate)) is not None:
                        failures[task.id] = failure
                    for repeat in task.repeats:
                        if failure is not None:
                            advance()
                            continue
                        question = self._question(task, repeat)
                        if (judgement := self.ledger.find(question.key)) is not None:
                            answers.append(judgement)
                            advance()
                        else:
                            future = pool.submit(self._judge, task, question)
                            future.add_done_callback(lambda _: advance())
                            answers.append(future)
                judgements = [answer.result() if isinstance(answer, Future) else answer for answer in answers]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        return judgements, failures

    def count_pending(self, tasks: Iterable[JudgingTask]) -> tuple[int, int]:
        """Numbers of answers that the ledger lacks, and of videos that are missing."""
        answers = videos = 0
        for task in tasks:
            if not task.edited.is_file():
                videos += 1
                answers += len(task.repeats)
            else:
                keys = [self._question(task, repeat).key for repeat in task.repeats]
                answers += sum(self.ledger.find(key) is None for key in keys)
        return answers, videos

    def _question(self, task: JudgingTask, repeat: int) -> Question:
        item, rubric = task.item, self.rubrics[task.item.category]
        files = {"reference": item.reference, "source": item.source, "edited": task.edited}
        media: dict[str, Path] = {name: path for name in self.suite.inputs if (path := files[name]) is not None}
        key = JudgementKey(
            item=task.id,
            repeat=repeat,
            judge=self.judge.name,
            version=self.judge.version,
            media={name: self._hash(path) for name, path in media.items()},
            instruction=task.instruction,
            rubric=rubric.hash,
            frames=self.judge.frames,
            temperature=self.judge.temperature,
        )
        return Question(rubric=rubric, instruction=task.instruction, media=media, key=key)

    def _hash(self, path: Path) -> str:
        if path not in self._hashes:
            self._hashes[path] = sha256(path)
        return self._hashes[path]

    def _judge(self, task: JudgingTask, question: Question) -> Judgement:
        start, reply, scores = time.monotonic(), None, None
        try:
            reply = self._ask(question)
            result = read_reply(reply, question.rubric.dimensions, self._all_dimensions)
            scores, reason = (None, result.reason) if isinstance(result, Unscored) else (dict(result), None)
        except (JudgeError, KiwiError) as problem:
            reason = str(problem)
        judgement = Judgement(
            key=question.key,
            category=task.item.category,
            reply=reply,
            scores=scores,
            reason=reason,
            seconds=round(time.monotonic() - start, 3),
            at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        self.ledger.add(judgement)
        return judgement

    def _ask(self, question: Question) -> str:
        """Ask, and retry where that may help."""
        for wait in (*self.rate_limit.waits(), None):
            self._throttle.wait()
            try:
                return self.judge.ask(question)
            except JudgeError as error:
                if wait is None or not error.retryable:
                    raise
                time.sleep(max(wait, error.retry_after or 0.0))
        raise AssertionError


def _ensure_video(task: JudgingTask, generate: VideoGenerator | None) -> str | None:
    """Generate a task's video if it is missing; returns why there is none, or None if there is one now."""
    if task.edited.is_file():
        return None
    if generate is None:
        return f"{task.edited.name} does not exist"
    try:
        generate(task.item, task.edited)
    except KiwiError as problem:
        return f"it could not be edited: {problem}"
    return None
