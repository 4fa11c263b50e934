"""`python -m kiwi curves RUN ... --out OUT.png`: the learning curves of runs, in one figure and one table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kiwi import console
from kiwi.cli import parser
from kiwi.errors import InputError
from kiwi.figures import Curve, plot_curves
from kiwi.media.files import atomic_path, write_text
from kiwi.tables import Table

SUFFIXES = (".png", ".pdf", ".svg")

_DESCRIPTION = """Draw numbers of runs' metrics.jsonl over optimizer steps: a panel a number, a line a run.
A point is the mean over a stretch of the run, as `--points` has it; OUT.csv has the points."""


def main(argv: list[str]) -> int:
    """Draw, write."""
    options = parser(argv[0], _DESCRIPTION)
    options.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    options.add_argument("--out", type=Path, required=True, help=f"figure to write ({', '.join(SUFFIXES)})")
    options.add_argument("--numbers", nargs="+", default=["loss", "val/loss"], metavar="NAME", help="what to draw")
    options.add_argument("--points", type=int, default=50, help="of a line, at most")
    arguments = options.parse_args(argv[1:])
    if arguments.points < 1:
        raise InputError("--points must be at least 1", got=arguments.points)
    if arguments.out.suffix.lower() not in SUFFIXES:
        raise InputError(f"cannot draw {arguments.out}", wanted=f"a name ending in one of {', '.join(SUFFIXES)}")
    if not arguments.out.parent.is_dir():
        raise InputError(f"the folder {arguments.out.parent} does not exist", fix=f"mkdir -p {arguments.out.parent}")

    from kiwi.training.run_log import FILE, read_log

    logs: dict[str, Mapping[int, Mapping[str, float]]] = {}
    for run, title in zip(arguments.runs, _titles(arguments.runs), strict=True):
        if not (run / FILE).is_file():
            raise InputError(
                f"{run} is not the folder of a run", wanted=f"{FILE} in it, as `python -m kiwi fit` writes"
            )
        logs[title] = read_log(run)
    panels = {name: _lines(logs, name, arguments.points) for name in dict.fromkeys(arguments.numbers)}
    if missing := [name for name, lines in panels.items() if not any(line.x for line in lines.values())]:
        known = sorted({name for log in logs.values() for numbers in log.values() for name in numbers})
        raise InputError(f"no run has {', '.join(missing)}", wanted=", ".join(known) or "runs with numbers")
    rows = [
        (name, run, f"{step:g}", f"{value:.6g}")
        for name, lines in panels.items()
        for run, line in lines.items()
        for step, value in zip(line.x, line.y, strict=True)
    ]
    figure = plot_curves(panels, x="optimizer steps", y="mean of what was logged in a stretch", limits=None)
    with atomic_path(arguments.out) as temporary:
        figure.savefig(temporary, format=arguments.out.suffix[1:].lower())
    write_text(arguments.out.with_suffix(".csv"), Table("", ("number", "run", "step", "value"), rows).csv())
    console.print(f"{arguments.out} and {arguments.out.with_suffix('.csv')}")
    return 0


def _titles(runs: list[Path]) -> list[str]:
    """The folders' names, with so many of the folders above them that no two are alike."""
    paths = [run.resolve().parts for run in runs]
    if len(set(paths)) < len(paths):
        raise InputError("a run is given twice", got=", ".join(map(str, runs)))
    for depth in range(1, max(map(len, paths)) + 1):
        titles = ["/".join(parts[-depth:]) for parts in paths]
        if len(set(titles)) == len(titles):
            break
    return titles


def _lines(logs: Mapping[str, Mapping[int, Mapping[str, float]]], name: str, points: int) -> dict[str, Curve]:
    """A number of each run in equal stretches of steps; no points for a run without it."""
    found = {}
    for run, log in logs.items():
        steps = [step for step in sorted(log) if name in log[step]]
        values = [log[step][name] for step in steps]
        edges = np.linspace(0, max(steps, default=0), points + 1)
        stretch = np.searchsorted(edges, steps, side="left")
        kept = np.unique(stretch)
        means = [[float(np.mean(np.compress(stretch == one, of))) for one in kept] for of in (steps, values)]
        found[run] = Curve(x=means[0], y=means[1])
    return found
