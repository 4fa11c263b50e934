"""How fast, and how often, a judge may be asked."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from threading import Lock

from kiwi.errors import InputError

MIN_PER_MINUTE = 0.01

MAX_WAIT = 60.0
"""Seconds between attempts, at most, unless the judge asks for more."""


@dataclass(frozen=True, kw_only=True)
class RateLimit:
    """How fast a judge may be asked.

    Args:
        concurrency: questions in flight.
        per_minute: most questions started a minute; no limit if None.
        tries: attempts at each question.
        first_wait: seconds before the second attempt; doubled for each further one.
    """

    concurrency: int = 8
    per_minute: float | None = None
    tries: int = 4
    first_wait: float = 1.0

    def __post_init__(self) -> None:
        for name in ("concurrency", "tries"):
            if (value := getattr(self, name)) < 1:
                raise InputError(f"{name} must be at least 1", code="out-of-range", got=value)
        if self.per_minute is not None and not MIN_PER_MINUTE <= self.per_minute < math.inf:
            expected = f"a finite number of questions a minute, {MIN_PER_MINUTE} or more"
            raise InputError("per_minute is out of range", code="out-of-range", got=self.per_minute, expected=expected)

    def waits(self) -> Iterator[float]:
        """Seconds to wait after each failed attempt but the last."""
        return (min(self.first_wait * 2 ** min(attempt, 60), MAX_WAIT) for attempt in range(self.tries - 1))

    def estimate(self, questions: int, seconds: float) -> float:
        """Seconds that so many questions of so many seconds each take."""
        spacing = 60 * questions / self.per_minute if self.per_minute else 0.0
        return max(questions * seconds / self.concurrency, spacing)


class Throttle:
    """Spaces calls of several threads evenly, at most `per_minute` a minute."""

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
