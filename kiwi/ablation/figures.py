"""A study's figures: differences with intervals, learning curves, scale and loss by noise level, quality over cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kiwi.ablation.analysis import NOT_SIGNIFICANT, UNKNOWN, ArmSummary
from kiwi.ablation.costs import Cost
from kiwi.ablation.results import RunResult
from kiwi.figures import COLOURS, MARKERS, Curve, plot_curves
from kiwi.media.files import atomic_path, make_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GREY = "#888888"
VERDICT_COLOURS = {
    "better": COLOURS[0], "worse": COLOURS[1], "differs": COLOURS[2], NOT_SIGNIFICANT: GREY, UNKNOWN: GREY
}  # fmt: skip


def write_figures(
    out: Path,
    metric: str,
    summaries: Sequence[ArmSummary],
    results: Sequence[RunResult],
    costs: Mapping[str, Cost | None],
) -> None:
    """Write all figures that there are numbers for, as PNG and PDF.

    Args:
        out: folder; created if necessary.
        metric: metric of the differences and of quality over cost.
        summaries: of the arms in that metric.
        results: of all runs.
        costs: of the arms by label.
    """
    labels = [summary.label for summary in summaries]
    by_steps = {
        name: {label: curve for label in labels if (curve := _over_seeds(label, name, results)) is not None}
        for name in ("loss", "val/loss")
    }
    figures: dict[str, Figure | None] = {
        "forest": _forest(metric, summaries),
        "curves": _panels(by_steps, "optimizer steps", "mean (band: all seeds)"),
        "gamma": _panels({"scale of the source": _by_sigma("gamma_at_", labels, results)}, "sigma", "gamma"),
        "sigma": _panels({"validation by noise level": _by_sigma("val/loss_at_", labels, results)}, "sigma", "loss"),
        "cost": _quality_over_cost(metric, summaries, costs),
    }
    make_folder(out)
    for name, figure in figures.items():
        for suffix in ("png", "pdf") if figure is not None else ():
            with atomic_path(out / f"{name}.{suffix}") as temporary:
                figure.savefig(temporary, format=suffix)  # type: ignore[union-attr]


def _forest(metric: str, summaries: Sequence[ArmSummary]) -> Figure | None:
    from matplotlib.figure import Figure

    compared = [(summary.label, summary.comparison) for summary in summaries if summary.comparison is not None]
    if not compared:
        return None
    figure = Figure(figsize=(7.2, 0.9 + 0.34 * len(compared)), dpi=150, layout="constrained")
    axis = figure.subplots()
    axis.axvline(0, color="black", linewidth=0.8)
    for y, (_, comparison) in enumerate(compared):
        mean, low, high = comparison.difference.mean
        colour = VERDICT_COLOURS[comparison.verdict]
        if np.isfinite([low, high]).all():
            axis.plot([low, high], [y, y], color=colour, linewidth=1.6, solid_capstyle="butt")
        fill = "none" if comparison.verdict == UNKNOWN else "full"
        axis.plot([mean], [y], "s", color=colour, markersize=5, fillstyle=fill)
    axis.set_yticks(range(len(compared)), [label for label, _ in compared], fontsize=8)
    axis.set_ylim(len(compared) - 0.5, -0.5)
    axis.set_xlabel(
        f"{metric}: difference to the base, 95% interval\n(grey: not significant; hollow: unknown)", fontsize=8
    )
    axis.grid(axis="x", alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def _quality_over_cost(metric: str, summaries: Sequence[ArmSummary], costs: Mapping[str, Cost | None]) -> Figure | None:
    from matplotlib.figure import Figure

    points = [(summary, cost) for summary in summaries if (cost := costs.get(summary.label)) is not None]
    if not points:
        return None
    figure = Figure(figsize=(6.4, 4.2 + 0.16 * len(points)), dpi=150, layout="constrained")
    axis = figure.subplots()
    for index, (summary, cost) in enumerate(points):
        mean, low, high = summary.mean.mean
        error = None if np.isnan(low) else [[mean - low], [high - mean]]
        style = index % len(COLOURS)
        axis.errorbar(
            [cost.step_flops / 1e9], [mean], yerr=error, color=COLOURS[style],
            marker=MARKERS[(index // len(COLOURS)) % len(MARKERS)], markersize=6, linewidth=1, label=summary.label,
        )  # fmt: skip
    axis.set_xlabel("GFLOP per denoising step")
    axis.set_ylabel(f"{metric}, 95% interval")
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=7)
    return figure


def _panels(panels: Mapping[str, Mapping[str, Curve]], x: str, y: str) -> Figure | None:
    filled = {title: lines for title, lines in panels.items() if lines}
    return plot_curves(filled, x=x, y=y, limits=None, columns=min(2, len(filled))) if filled else None


def _over_seeds(label: str, name: str, results: Sequence[RunResult]) -> Curve | None:
    """A curve's mean over the seeds that logged it, at the steps that they share."""
    logged = [curve for result in results if result.label == label and (curve := result.curves.get(name))]
    return _mean_curve([{float(step): value for step, value in curve} for curve in logged])


def _by_sigma(prefix: str, labels: Sequence[str], results: Sequence[RunResult]) -> dict[str, Curve]:
    """Each arm's last values by noise level, mean over seeds, at the levels that they share."""
    by_label = {}
    for label in labels:
        by_seed = [result.by_sigma.get(prefix, {}) for result in results if result.label == label]
        curve = _mean_curve([{float(sigma): value for sigma, value in values.items()} for values in by_seed])
        if curve is not None:
            by_label[label] = curve
    return by_label


def _mean_curve(by_seed: Sequence[Mapping[float, float]]) -> Curve | None:
    x = sorted(set.intersection(*map(set, by_seed))) if by_seed else []
    if not x:
        return None
    values_SX = np.array([[values[at] for at in x] for values in by_seed])
    return Curve(x=x, y=list(values_SX.mean(0)), low=list(values_SX.min(0)), high=list(values_SX.max(0)))
