"""What clients of providers share: keys from the environment, which no text of an error keeps, and waits."""

import math
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from kiwi.errors import InputError, first_line

MIN_KEY = 8
"""Minimum number of characters of a real key; shorter placeholders are words of messages."""

MAX_REASON = 300
"""Maximum number of characters of a provider's error message that are kept."""

LONGEST_WAIT = 600.0
"""Maximum wait in seconds that a provider may ask for."""


def read_key(names: Sequence[str]) -> str | None:
    """Read a key from the first of several environment variables that is set; None if none is.

    Raises:
        InputError: the value cannot be a key.
    """
    for name in names:
        if key := os.environ.get(name, "").strip():
            if not key.isascii() or not key.isprintable() or " " in key:
                problem = f"{name} is not a key: it has spaces, line breaks or letters that no key has"
                raise InputError(problem, code="invalid-key", fix="copy the key again")
            return key
    return None


def require_key(names: Sequence[str], model: str) -> str:
    """Read a key as `read_key` does. Raises InputError also if there is none."""
    if (key := read_key(names)) is not None:
        return key
    fix = f"export {names[0]}=KEY; kiwi reads keys from the environment only and writes them nowhere"
    raise InputError(f"there is no API key for {model}", code="missing-key", expected=" or ".join(names), fix=fix)


def describe_error(error: BaseException, key: str) -> str:
    """The first line of an error's message, shortened, without the key."""
    text = first_line(error) or type(error).__name__
    return (text.replace(key, "[key]") if len(key) >= MIN_KEY else text)[:MAX_REASON]


def parse_retry_after(headers: Mapping[str, str]) -> float | None:
    """The wait in seconds that a Retry-After header asks for, given in seconds or as a date; None without one."""
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value) if value.replace(".", "", 1).isdigit() else _seconds_until(value)
    except (TypeError, ValueError):
        return None
    return bound_wait(seconds)


def bound_wait(seconds: float) -> float | None:
    """Bound a wait that a provider asks for; None for NaN."""
    return None if math.isnan(seconds) else min(max(0.0, seconds), LONGEST_WAIT)


def _seconds_until(date: str) -> float:
    return (parsedate_to_datetime(date) - datetime.now(UTC)).total_seconds()


def require_address(url: str) -> None:
    """Raise an InputError unless an address is one of a server, without a user, a password, a query or a fragment."""
    try:
        address = urlsplit(url)
        is_complete = address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
    except ValueError:
        is_complete = False
    is_plain = url.isascii() and url.isprintable() and not set(url) & set(" @?#")
    if not (is_complete and is_plain):
        expected = "an address such as http://localhost:8000/v1, without a user, a key or a query"
        raise InputError("the server's address is not usable", code="invalid-url", expected=expected)
