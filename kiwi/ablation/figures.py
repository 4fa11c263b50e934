"""A study's figures: differences with intervals, learning curves, what is learned and lost by noise level, cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kiwi.ablation.analysis import Row
from kiwi.ablation.costs import Cost
from kiwi.ablation.results import Result
from kiwi.figures import COLOURS, MARKERS, Curve, plot_curves
from kiwi.media.files import atomic_path, make_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VERDICTS = {"better": COLOURS[0], "worse": COLOURS[1], "differs": COLOURS[2], "noise": "#888888", "unknown": "#888888"}


def draw(
    out: Path, measure: str, rows: Sequence[Row], results: Sequence[Result], costs: Mapping[str, Cost | None]
) -> list[Path]:
    """Write all figures that there are numbers for, as PNG and PDF; their paths.

    Args:
        out: folder; made if it is not there.
        measure, rows: what differences and cost are drawn of.
        results: of all runs.
        costs: of the arms by label.
    """
    labels = [row.label for row in rows]
    by_steps = {
        name: {label: line for label in labels if (line := _over_seeds(label, name, results)) is not None}
        for name in ("loss", "val/loss")
    }
    found: dict[str, Figure | None] = {
        "forest": _forest(measure, rows),
        "curves": _panels(by_steps, "optimizer steps", "mean (band: all seeds)"),
        "gamma": _panels({"scale of the source": _by_sigma("gamma_at_", labels, results)}, "sigma", "gamma"),
        "sigma": _panels({"validation by noise level": _by_sigma("val/loss_at_", labels, results)}, "sigma", "loss"),
        "cost": _cost(measure, rows, costs),
    }
    paths = []
    make_folder(out)
    for name, figure in found.items():
        for suffix in ("png", "pdf") if figure is not None else ():
            with atomic_path(out / f"{name}.{suffix}") as temporary:
                figure.savefig(temporary, format=suffix)  # type: ignore[union-attr]
            paths.append(out / f"{name}.{suffix}")
    return paths


def _forest(measure: str, rows: Sequence[Row]) -> Figure | None:
    from matplotlib.figure import Figure

    told = [(row.label, row.against) for row in rows if row.against is not None]
    if not told:
        return None
    figure = Figure(figsize=(7.2, 0.9 + 0.34 * len(told)), dpi=150, layout="constrained")
    axis = figure.subplots()
    axis.axvline(0, color="black", linewidth=0.8)
    for place, (_, against) in enumerate(told):
        mean, low, high = against.seeded.mean
        colour = VERDICTS[against.verdict]
        if np.isfinite([low, high]).all():
            axis.plot([low, high], [place, place], color=colour, linewidth=1.6, solid_capstyle="butt")
        axis.plot(
            [mean],
            [place],
            "s",
            color=colour,
            markersize=5,
            fillstyle="none" if against.verdict == "unknown" else "full",
        )
    axis.set_yticks(range(len(told)), [label for label, _ in told], fontsize=8)
    axis.set_ylim(len(told) - 0.5, -0.5)
    axis.set_xlabel(
        f"{measure}: difference to the base, 95% interval\n(grey: inside the noise; hollow: not known)", fontsize=8
    )
    axis.grid(axis="x", alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def _cost(measure: str, rows: Sequence[Row], costs: Mapping[str, Cost | None]) -> Figure | None:
    from matplotlib.figure import Figure

    told = [(row, cost) for row in rows if (cost := costs.get(row.label)) is not None]
    if not told:
        return None
    figure = Figure(figsize=(6.4, 4.2 + 0.16 * len(told)), dpi=150, layout="constrained")
    axis = figure.subplots()
    for index, (row, cost) in enumerate(told):
        mean, low, high = row.of.mean
        error = None if np.isnan(low) else [[mean - low], [high - mean]]
        style = index % len(COLOURS)
        axis.errorbar(
            [cost.step_flops / 1e9], [mean], yerr=error, color=COLOURS[style],
            marker=MARKERS[(index // len(COLOURS)) % len(MARKERS)], markersize=6, linewidth=1, label=row.label,
        )  # fmt: skip
    axis.set_xlabel("GFLOP of a denoising step")
    axis.set_ylabel(f"{measure}, 95% interval")
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=7)
    return figure


def _panels(panels: Mapping[str, Mapping[str, Curve]], x: str, y: str) -> Figure | None:
    kept = {title: lines for title, lines in panels.items() if lines}
    return plot_curves(kept, x=x, y=y, limits=None, columns=min(2, len(kept))) if kept else None


def _over_seeds(label: str, name: str, results: Sequence[Result]) -> Curve | None:
    """A number's mean over an arm's seeds at each step that all have, of those that logged it."""
    of_arm = [curve for one in results if one.label == label and (curve := one.curves.get(name))]
    by_seed = [{int(point[0]): point[1] for point in curve} for curve in of_arm]
    steps = sorted(set.intersection(*map(set, by_seed))) if by_seed else []
    if not steps:
        return None
    values = np.array([[one[step] for step in steps] for one in by_seed])
    return Curve(x=steps, y=list(values.mean(0)), low=list(values.min(0)), high=list(values.max(0)))


def _by_sigma(prefix: str, labels: Sequence[str], results: Sequence[Result]) -> dict[str, Curve]:
    found = {}
    for label in labels:
        of = [one.by_sigma.get(prefix, {}) for one in results if one.label == label]
        sigmas = sorted(set.intersection(*map(set, of)), key=float) if of else []
        if sigmas:
            values = np.array([[one[sigma] for sigma in sigmas] for one in of])
            x = [float(sigma) for sigma in sigmas]
            found[label] = Curve(x=x, y=list(values.mean(0)), low=list(values.min(0)), high=list(values.max(0)))
    return found
