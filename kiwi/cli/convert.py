"""`kiwi convert FORMAT SRC DST`: convert between model folders and the published formats."""

from kiwi import console
from kiwi.checkpoints import ConvertOptions, convert
from kiwi.cli import parse
from kiwi.tables import Table


def main(argv: list[str]) -> int:
    """Convert a model, print what was done with each part, and return the exit code."""
    options = parse(ConvertOptions, argv[0], argv[1:])
    console.table(Table("", ("part", "result"), convert(options)))
    console.print(f"{options.dst} written")
    return 0
