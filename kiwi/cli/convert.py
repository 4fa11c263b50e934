"""`kiwi convert FORMAT SRC DST`: between model folders and the published formats."""

from __future__ import annotations

from kiwi import console
from kiwi.checkpoints import ConvertOptions, convert
from kiwi.cli import parse


def main(argv: list[str]) -> int:
    """Convert, then print what was done with each part."""
    options = parse(ConvertOptions, argv[0], argv[1:])
    console.table("", ("part", "result"), convert(options))
    console.print(f"{options.dst} written")
    return 0
