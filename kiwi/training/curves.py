"""`kiwi curves`: the learning curves of several runs, as a figure and a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kiwi.errors import InputError, format_choices
from kiwi.figures import Curve, plot_curves, save_figure
from kiwi.media.files import atomic_path, require_writable, write_text
from kiwi.options import Options, option, positional
from kiwi.reading import follow_links
from kiwi.tables import Table
from kiwi.training.run_log import METRICS_FILE, read_log

_SUFFIXES = (".png", ".pdf", ".svg")


@dataclass(frozen=True, kw_only=True)
class CurvesOptions(Options):
    """Draw metrics of runs over optimizer steps: one panel per metric, one line per run.

    Steps are divided into --points equal intervals; each point is the mean over one interval. A CSV file of the same
    name holds the points.

    Args:
        runs: run folder
        out: figure to write (.png, .pdf, .svg)
        metrics: names of the metrics (default: loss, and val/loss if the runs were validated)
        points: maximum number of points per line
    """

    runs: tuple[Path, ...] = positional(metavar="RUN")
    out: Path
    metrics: tuple[str, ...] = option((), metavar="NAME", formerly="numbers")
    points: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(1, "points")
        if self.out.suffix.lower() not in _SUFFIXES:
            expected = f"a file name that ends in one of {', '.join(_SUFFIXES)}"
            raise InputError(f"cannot draw {self.out}", code="wrong-suffix", expected=expected)


def draw_curves(options: CurvesOptions) -> Path:
    """Write the figure and, beside it, the points as CSV; return the CSV file.

    Raises:
        InputError: a folder is not a run folder or is given twice, no run has a metric, or `out` cannot be written.
    """
    require_writable(options.out)
    logs: dict[str, Mapping[int, Mapping[str, float]]] = {}
    for run, title in zip(options.runs, _make_titles(options.runs), strict=True):
        if not (run / METRICS_FILE).is_file():
            expected = f"a folder with {METRICS_FILE}, which `python -m kiwi fit` writes"
            raise InputError(f"{run} is not a run folder", code="not-a-run", expected=expected)
        logs[title] = read_log(run)
    known = sorted({name for log in logs.values() for metrics in log.values() for name in metrics})
    names = options.metrics or ("loss", *{"val/loss"}.intersection(known))
    panels = {name: _average_metric(logs, name, options.points) for name in dict.fromkeys(names)}
    if missing := [name for name, lines in panels.items() if not any(line.x for line in lines.values())]:
        expected = format_choices(known, missing[0]) if known else "runs with metrics"
        is_validated = any(name.startswith("val/") for name in known)
        fix = None if is_validated else "these runs were not validated; name only metrics of training in --metrics"
        problem = f"none of these runs has logged {', '.join(missing)}"
        raise InputError(problem, code="unknown-metric", expected=expected, fix=fix)
    rows = [
        (name, run, f"{step:g}", f"{value:.6g}")
        for name, lines in panels.items()
        for run, line in lines.items()
        for step, value in zip(line.x, line.y, strict=True)
    ]
    figure = plot_curves(panels, x="optimizer steps", y="mean over an interval of steps", limits=None)
    with atomic_path(options.out) as temporary:
        save_figure(figure, temporary)
    csv_file = options.out.with_suffix(".csv")
    write_text(csv_file, Table("", ("metric", "run", "step", "value"), rows).to_csv())
    return csv_file


def _make_titles(runs: Sequence[Path]) -> list[str]:
    """Name each run by its folder, with as many parent folders as are needed to distinguish the runs."""
    paths = [follow_links(run).parts for run in runs]
    if len(set(paths)) < len(paths):
        raise InputError("a run is given twice", code="duplicate-run", got=", ".join(map(str, runs)))
    for depth in range(1, max(map(len, paths)) + 1):
        titles = ["/".join(parts[-depth:]) for parts in paths]
        if len(set(titles)) == len(titles):
            break
    return titles


def _average_metric(logs: Mapping[str, Mapping[int, Mapping[str, float]]], name: str, points: int) -> dict[str, Curve]:
    """Average a metric over equal intervals of steps, by run; a run without the metric has no points."""
    curves = {}
    for run, log in logs.items():
        steps = [step for step in sorted(log) if name in log[step]]
        values = [log[step][name] for step in steps]
        edges = np.linspace(0, max(steps, default=0), points + 1)
        interval_of_step = np.searchsorted(edges, steps, side="left")
        intervals = np.unique(interval_of_step)
        x, y = (
            [float(np.mean(np.compress(interval_of_step == interval, series))) for interval in intervals]
            for series in (steps, values)
        )
        curves[run] = Curve(x=x, y=y)
    return curves
