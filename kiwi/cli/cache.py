"""`kiwi cache --config YAML --out CACHE`: encode the clips of an experiment once for all its training."""

from kiwi import console
from kiwi.cli import parse
from kiwi.training.cache import CacheOptions, fill_cache


def main(argv: list[str]) -> int:
    """Fill or verify a cache."""
    options = parse(CacheOptions, argv[0], argv[1:])
    if options.verify:
        return _verify_cache(options)
    filled = fill_cache(options)
    console.print(f"{options.out}: {filled.encoded} clips and images encoded, {filled.entries} entries in total")
    return 0


def _verify_cache(options: CacheOptions) -> int:
    from kiwi.data.feature_cache import FeatureCache

    cache = FeatureCache(options.out)
    damaged = cache.verify()
    for path in damaged:
        console.print(f"{path} was damaged and has been deleted; rerun `kiwi cache` to encode its clips again")
    console.print(f"{options.out}: {len(cache)} intact entries")
    return 1 if damaged else 0
