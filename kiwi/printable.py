"""Text from files, names and replies as it may be shown: control characters become visible escapes."""

import unicodedata

_JOINERS = "\u200c\u200d"
"""Invisible characters that Persian, Indic scripts and emoji need."""


def escape_controls(text: str, keep: str = "\n\t") -> str:
    r"""Replace every character that a terminal or a viewer would act on instead of showing by an escape such as `\x1b`.

    These are control characters (ESC, CR, C1), format characters (such as those that reverse the direction of text),
    line separators and lone surrogates, which no encoding can represent.

    Args:
        text: any text.
        keep: control characters that are not replaced.
    """
    if text.isprintable():
        return text
    return "".join(char if _is_shown(char) or char in keep else _escape(char) for char in text)


def escape_line(text: str) -> str:
    """Make one line of printable text: line ends and tabs become spaces, other control characters visible escapes."""
    return escape_controls(text.replace("\r\n", " ").translate({ord("\n"): " ", ord("\t"): " "}), keep="")


def _is_shown(char: str) -> bool:
    return char.isprintable() or char in _JOINERS or unicodedata.category(char) in ("Zs", "Cn")


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
