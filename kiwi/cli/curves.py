"""`kiwi curves RUN ... --out OUT.png`: the learning curves of runs, in one figure and one table."""

from kiwi import console
from kiwi.cli import parse
from kiwi.training.curves import CurvesOptions, draw_curves


def main(argv: list[str]) -> int:
    """Draw the figure, write its table, and print both paths."""
    options = parse(CurvesOptions, argv[0], argv[1:])
    csv_file = draw_curves(options)
    console.print(f"{options.out} and {csv_file}")
    return 0
