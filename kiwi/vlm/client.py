"""What clients of providers share: keys from the environment, which no text of an error keeps, and waits."""

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from kiwi.errors import InputError, first_line

MAX_REASON = 300
"""Maximum number of characters of a provider's error message that are kept."""

LONGEST_WAIT = 600.0
"""Maximum wait in seconds that a provider may ask for."""


def read_key(names: Sequence[str], model: str) -> str:
    """Read a key from the first of several environment variables that is set.

    Raises:
        InputError: none is set.
    """
    for name in names:
        if key := os.environ.get(name, "").strip():
            return key
    fix = f"export {names[0]}=KEY; kiwi reads keys from the environment only and writes them nowhere"
    raise InputError(f"there is no API key for {model}", code="missing-key", expected=" or ".join(names), fix=fix)


def describe_error(error: BaseException, key: str) -> str:
    """The first line of an error's message, shortened, without the key."""
    text = first_line(error) or type(error).__name__
    return (text.replace(key, "[key]") if key else text)[:MAX_REASON]


def parse_retry_after(headers: Mapping[str, str]) -> float | None:
    """The wait in seconds that a Retry-After header asks for, given in seconds or as a date; None without one."""
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value) if value.replace(".", "", 1).isdigit() else _seconds_until(value)
    except (TypeError, ValueError):
        return None
    return min(max(0.0, seconds), LONGEST_WAIT)


def _seconds_until(date: str) -> float:
    return (parsedate_to_datetime(date) - datetime.now(UTC)).total_seconds()
