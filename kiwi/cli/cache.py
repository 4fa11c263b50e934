"""`kiwi cache --config YAML --out CACHE`: encode the clips of an experiment once for all its training."""

from kiwi import console
from kiwi.cli import parse
from kiwi.training.cache import CacheOptions, fill_cache


def main(argv: list[str]) -> int:
    """Fill or verify a cache."""
    options = parse(CacheOptions, argv[0], argv[1:])
    filled = fill_cache(options)
    for path in filled.damaged:
        console.print(f"{path} was damaged and has been deleted; rerun `kiwi cache` to encode its clips again")
    done = "intact entries" if options.verify else "entries in total"
    encoded = "" if options.verify else f"{filled.encoded} clips and images encoded, "
    console.print(f"{options.out}: {encoded}{filled.entries} {done}")
    return 1 if filled.damaged else 0
