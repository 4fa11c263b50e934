"""The runner: generates missing videos while existing ones are judged, and records every answer in the ledger.

Videos are generated one after another in the calling thread; each concurrent question has a thread of its own. A kill
loses only the answers that are pending; the same call resumes. The only module here that imports `kiwi.editing`.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any

from kiwi import console
from kiwi.bench.budget import Budget
from kiwi.bench.judges import Judge, JudgeAnswer, JudgeError, Question
from kiwi.bench.ledger import Judgement, JudgementKey, Ledger
from kiwi.bench.options import BenchmarkOptions
from kiwi.bench.reply import Unscored, read_answer
from kiwi.bench.rubric import Rubric
from kiwi.bench.suites import BenchmarkItem, Suite
from kiwi.errors import KiwiError
from kiwi.media.files import make_folder, sha256
from kiwi.media.image import read_image
from kiwi.media.video import read_video, write_video
from kiwi.spec import to_dict

MAX_WAIT = 60.0
"""Maximum wait between attempts in seconds, unless the judge asks for more."""

VideoGenerator = Callable[[BenchmarkItem, Path], None]
"""Function that edits an item's source and writes the result atomically to a file."""


@dataclass(frozen=True, kw_only=True)
class JudgingTask:
    """An edited video to be judged once or more.

    Args:
        id: id of the task in the ledger (`JudgementKey.item`), which for a control differs from the item's id.
        item: item with the source video.
        instruction: instruction to show to the judge, which for a control may be another item's.
        edited: file of the edited video.
        repeats: indices of the answers to request (`JudgementKey.repeat`).
    """

    id: str
    item: BenchmarkItem
    instruction: str
    edited: Path
    repeats: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class RateLimit:
    """Limits on the questions to a judge; `BenchmarkOptions` checks the numbers.

    Args:
        concurrency: maximum number of concurrent questions.
        per_minute: maximum number of questions started per minute; None for no limit.
        tries: maximum number of attempts at each question.
        first_wait: wait before the second attempt in seconds; doubled for each further attempt.
    """

    concurrency: int = 8
    per_minute: float | None = None
    tries: int = 4
    first_wait: float = 1.0

    def waits(self) -> Iterator[float]:
        """Seconds to wait after each failed attempt except the last."""
        return (min(self.first_wait * 2 ** min(attempt, 60), MAX_WAIT) for attempt in range(self.tries - 1))

    def estimate_seconds(self, questions: int, seconds: float) -> float:
        """Estimate the total time of `questions` in seconds, if each answer takes `seconds`."""
        spacing = 60 * questions / self.per_minute if self.per_minute else 0.0
        return max(questions * seconds / self.concurrency, spacing)


class _Throttle:
    """Spaces the calls of all threads evenly, at most `per_minute` per minute."""

    def __init__(self, per_minute: float | None) -> None:
        self._spacing = 0.0 if per_minute is None else 60.0 / per_minute
        self._next_start, self._lock = 0.0, Lock()

    def wait(self) -> None:
        """Block until the calling thread may start its call."""
        with self._lock:
            now = time.monotonic()
            start = max(now, self._next_start)
            self._next_start = start + self._spacing
        time.sleep(max(0.0, start - now))


class Runner:
    """Asks one judge about items of one suite, by the rubrics of its categories; appends new answers to the ledger."""

    def __init__(
        self, suite: Suite, rubrics: Mapping[str, Rubric], judge: Judge, ledger: Ledger, rate_limit: RateLimit,
        budget: Budget | None = None,
    ) -> None:  # fmt: skip
        self.budget = budget or Budget(None, None, None)
        self.suite, self.rubrics, self.judge, self.ledger, self.rate_limit = suite, rubrics, judge, ledger, rate_limit
        self._all_dimensions = [name for rubric in rubrics.values() for name in rubric.dimensions]
        self._hashes: dict[Path, str] = {}
        self._throttle = _Throttle(rate_limit.per_minute)

    def run(
        self, tasks: Sequence[JudgingTask], generate: VideoGenerator | None = None
    ) -> tuple[list[Judgement], dict[str, str]]:
        """Judge tasks, and generate their missing videos if `generate` is given.

        Returns:
            Judgements in the order of the tasks, including those from the ledger; and the reason for each task without
            a video, by id.
        """
        if not tasks:
            return [], {}
        answers: list[Future[Judgement]] = []
        failures: dict[str, str] = {}
        pool = ThreadPoolExecutor(self.rate_limit.concurrency)
        try:
            total = sum(len(task.repeats) for task in tasks)
            with console.progress_bar(f"judging with {self.judge.name}", total) as advance:
                for task in tasks:
                    if (failure := _ensure_video(task, generate)) is not None:
                        failures[task.id] = failure
                        for _ in task.repeats:
                            advance()
                        continue
                    for repeat in task.repeats:
                        answer = pool.submit(self._judge, task, self._make_question(task, repeat))
                        answer.add_done_callback(lambda _: advance())
                        answers.append(answer)
                return [answer.result() for answer in answers], failures
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def count_pending(self, tasks: Iterable[JudgingTask]) -> tuple[int, int]:
        """Count the answers that the ledger lacks and the videos that are missing."""
        answers = videos = 0
        for task in tasks:
            if not task.edited.is_file():
                videos += 1
                answers += len(task.repeats)
            else:
                keys = [self._make_question(task, repeat).key for repeat in task.repeats]
                answers += sum(self.ledger.find(key) is None for key in keys)
        return answers, videos

    def _make_question(self, task: JudgingTask, repeat: int) -> Question:
        item, rubric = task.item, self.rubrics[task.item.category]
        files = {"reference": item.reference, "source": item.source, "edited": task.edited}
        media: dict[str, Path] = {name: path for name in self.suite.inputs if (path := files[name]) is not None}
        key = JudgementKey(
            item=task.id,
            repeat=repeat,
            judge=self.judge.name,
            version=self.judge.version,
            media={name: self._hash_file(path) for name, path in media.items()},
            instruction=task.instruction,
            rubric=rubric.hash,
            frames=self.judge.frames,
            temperature=self.judge.temperature,
        )
        return Question(rubric=rubric, instruction=task.instruction, media=media, key=key)

    def _hash_file(self, path: Path) -> str:
        if path not in self._hashes:
            self._hashes[path] = sha256(path)
        return self._hashes[path]

    def _judge(self, task: JudgingTask, question: Question) -> Judgement:
        """Find the answer in the ledger, or ask the judge and record the answer."""
        if (known := self.ledger.find(question.key)) is not None:
            return known
        start, answer, scores = time.monotonic(), None, None
        objection = self.budget.find_objection()
        try:
            if objection is not None:
                raise JudgeError(objection, retryable=False)
            answer = self._ask_with_retries(question)
            result = read_answer(answer.reply, question.rubric.dimensions, self._all_dimensions)
            scores, reason = (None, result.reason) if isinstance(result, Unscored) else (dict(result), None)
        except JudgeError as error:
            answer, reason = error.answer, error.reason
        except KiwiError as error:
            reason = str(error)
        judgement = Judgement(
            key=question.key,
            category=task.item.category,
            reply=None if answer is None else answer.reply,
            scores=scores,
            reason=reason,
            model=None if answer is None else answer.model,
            frames={} if answer is None else dict(answer.frames),
            usage=None if answer is None else answer.usage,
            seconds=round(time.monotonic() - start, 3),
            at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        if objection is None:
            self.ledger.add(judgement)
            self.budget.add(judgement)
        return judgement

    def _ask_with_retries(self, question: Question) -> JudgeAnswer:
        """Ask the judge; retry after errors that may be temporary."""
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
    """Generate a task's video if it is missing; returns None if the video exists now, else the reason."""
    if task.edited.is_file():
        return None
    if generate is None:
        return f"{task.edited.name} does not exist"
    try:
        generate(task.item, task.edited)
    except KiwiError as error:
        return f"the video could not be edited: {error}"
    return None


def describe_editor(options: BenchmarkOptions, suite: Suite) -> dict[str, Any]:
    """Describe what generated videos depend on, as `RunIdentity.editor`: weights and settings of sampling.

    The model is not loaded.

    Raises:
        CheckpointError: the folder of the model cannot be read.
    """
    from kiwi.editing.editor import KiwiEditor  # torch and the models take seconds to import

    weights, defaults = KiwiEditor.describe(str(options.editor))
    max_pixels = options.max_pixels or defaults.max_pixels
    sampling = to_dict(_choose_sampling(options, defaults))
    return {"weights": weights, **sampling, "max_pixels": max_pixels, "frames": suite.frames, "fps": suite.fps}


def build_generator(options: BenchmarkOptions, suite: Suite) -> VideoGenerator:
    """Load the editor named in the options, as a function that edits items at the suite's length and frame rate.

    Raises:
        CheckpointError: the model cannot be loaded.
        InputError: the device is not available.
    """
    from kiwi.editing.editor import KiwiEditor  # torch and the models take seconds to import

    editor = KiwiEditor.from_pretrained(str(options.editor), device=options.device)
    sampling = _choose_sampling(options, editor.defaults)
    max_pixels = options.max_pixels or editor.defaults.max_pixels

    def generate(item: BenchmarkItem, path: Path) -> None:
        make_folder(path.parent)
        video = read_video(item.source)
        video = replace(video, frames_FHWC=video.frames_FHWC[: suite.frames])
        references = [] if item.reference is None else [read_image(item.reference)]
        edited = editor.edit(video, item.instruction, references, sampling=sampling, max_pixels=max_pixels, seed=0)
        write_video(path, edited.frames_FHWC, suite.fps)

    return generate


def _choose_sampling(options: BenchmarkOptions, defaults: Any) -> Any:
    """The sampling settings of a model (`EditingDefaults`) with the number of steps in the options, if any."""
    return defaults.sampling if options.steps is None else defaults.sampling.replace(steps=options.steps)


def generate_videos(tasks: Iterable[JudgingTask], generate: VideoGenerator | None) -> int:
    """Generate the missing videos of some tasks and return their number; `generate` may be None if all exist."""
    missing = [task for task in tasks if not task.edited.is_file()]
    for task in console.progress(missing, "generating"):
        assert generate is not None
        generate(task.item, task.edited)
    return len(missing)
