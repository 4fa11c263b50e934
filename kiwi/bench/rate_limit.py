"""Limits on how fast and how often a judge may be asked; `BenchmarkOptions` checks the numbers."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from threading import Lock

MAX_WAIT = 60.0
"""Maximum wait between attempts in seconds, unless the judge asks for more."""


@dataclass(frozen=True, kw_only=True)
class RateLimit:
    """Limits on the questions to a judge.

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


class Throttle:
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
