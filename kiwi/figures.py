"""Figures of curves with intervals, drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kiwi.printable import escape_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Distinguishable for colour-blind readers (Okabe and Ito, 2008), and by their markers in black and white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

_LINE_STYLES = ("-", "--", ":")
"""The style changes each time all colours have been used."""

_LEGEND_CHARACTERS = 40
"""Number of legend characters that fit in the width of a panel."""

_LEGEND_LINE_INCHES = 0.22
_MAX_MARKERS = 30
"""Lines with more points have no markers, which would hide them."""


def escape_label(text: str) -> str:
    """Escape a text for a figure: it is one line, holds no mathematics, and is not left out of the legend."""
    line = escape_line(text).replace("$", r"\$")
    return f" {line}" if line.startswith("_") else line  # matplotlib hides labels that start with an underscore


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A line of a plot.

    Args:
        x, y: coordinates of the points.
        low, high: lower and upper bounds of an interval around each point; None draws only the line.
    """

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def plot_curves(
    panels: Mapping[str, Mapping[str, Curve]], *, x: str, y: str, columns: int = 2, limits: tuple[float, float] | None
) -> Figure:
    """Draw lines in several panels with a common legend.

    Args:
        panels: panel title -> line name -> line; a line name has the same colour in all panels.
        x, y: axis labels, including units.
        columns: maximum number of panels in a row.
        limits: y-axis limits of all panels; None fits each panel to its lines.
    """
    from matplotlib.figure import Figure  # takes a second to import

    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    legend_columns = max(1, min(len(names), _LEGEND_CHARACTERS * columns // max(map(len, names), default=1)))
    legend_height = _LEGEND_LINE_INCHES * -(-len(names) // legend_columns)
    figure = Figure(figsize=(4.2 * columns, 3.1 * rows + 0.3 + legend_height), dpi=150, layout="constrained")
    axes = figure.subplots(rows, columns, sharey=limits is not None, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (title, lines) in zip(axes.flat, panels.items(), strict=False):
        axis.set_title(escape_label(title), fontsize=10)
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlabel(x)
        for name, line in lines.items():
            cycle, style = divmod(names.index(name), len(COLOURS))
            marker = MARKERS[style] if len(line.x) <= _MAX_MARKERS else ""
            axis.plot(
                line.x, line.y, color=COLOURS[style], linestyle=_LINE_STYLES[cycle % len(_LINE_STYLES)],
                marker=marker, markersize=4, linewidth=1.4, label=escape_label(name),
            )  # fmt: skip
            if line.low is not None and line.high is not None:
                axis.fill_between(line.x, line.low, line.high, color=COLOURS[style], alpha=0.15, linewidth=0)
        if limits is not None:
            axis.set_ylim(*limits)
    for axis in axes[:, 0]:
        axis.set_ylabel(y)
    handles = {
        label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=legend_columns, frameon=False)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Save a figure in the format of the path's suffix, without the date that PDF and SVG would contain."""
    dates = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
    figure.savefig(path, format=path.suffix[1:].lower(), metadata=dates.get(path.suffix.lower()))
