"""Figures of a study: differences with intervals, learning curves, curves over the noise level, score against cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kiwi.ablation.analysis import NOT_SIGNIFICANT, UNKNOWN, ArmSummary
from kiwi.ablation.results import RunResult
from kiwi.ablation.study import Cost
from kiwi.figures import COLOURS, MARKERS, Curve, escape_label, plot_curves, save_figure
from kiwi.media.files import atomic_path, make_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GREY = "#888888"
VERDICT_COLOURS = {
    "better": COLOURS[0], "worse": COLOURS[1], "differs": COLOURS[2], NOT_SIGNIFICANT: GREY, UNKNOWN: GREY
}  # fmt: skip


def write_figures(
    out: Path, metric: str, summaries: Sequence[ArmSummary], results: Sequence[RunResult],
    costs: Mapping[str, Cost | None],
) -> None:  # fmt: skip
    """Write every figure that has data, as PNG and PDF.

    Args:
        out: output folder; created if necessary.
        metric: metric for the plots of differences and of score against cost.
        summaries: summaries of the arms (variants of the configuration) in that metric.
        results: results of all finished runs.
        costs: cost by label of the arm.
    """
    labels = [summary.label for summary in summaries]
    by_steps = {
        name: {label: curve for label in labels if (curve := _average_over_seeds(label, name, results)) is not None}
        for name in ("loss", "val/loss")
    }
    gammas, losses = (_average_by_sigma(prefix, labels, results) for prefix in ("gamma_at_", "val/loss_at_"))
    figures: dict[str, Figure | None] = {
        "forest": _draw_forest_plot(metric, summaries),
        "curves": _draw_panels(by_steps, "optimizer steps", "mean (band: all seeds)"),
        "gamma": _draw_panels({"scale of the source": gammas}, "sigma", "gamma"),
        "sigma": _draw_panels({"validation by noise level": losses}, "sigma", "loss"),
        "cost": _draw_cost_plot(metric, summaries, costs),
    }
    make_folder(out)
    for name, figure in figures.items():
        for suffix in ("png", "pdf") if figure is not None else ():
            with atomic_path(out / f"{name}.{suffix}") as temporary:
                save_figure(figure, temporary)  # type: ignore[arg-type]


def _draw_forest_plot(metric: str, summaries: Sequence[ArmSummary]) -> Figure | None:
    from matplotlib.figure import Figure

    compared = [(summary.label, summary.comparison) for summary in summaries if summary.comparison is not None]
    if not compared:
        return None
    figure = Figure(figsize=(7.2, 0.9 + 0.34 * len(compared)), dpi=150, layout="constrained")
    axis = figure.subplots()
    axis.axvline(0, color="black", linewidth=0.8)
    for y, (_, comparison) in enumerate(compared):
        mean, low, high = comparison.difference.interval
        colour = VERDICT_COLOURS[comparison.verdict]
        if np.isfinite([low, high]).all():
            axis.plot([low, high], [y, y], color=colour, linewidth=1.6, solid_capstyle="butt")
        fill = "none" if comparison.verdict == UNKNOWN else "full"
        axis.plot([mean], [y], "s", color=colour, markersize=5, fillstyle=fill)
    axis.set_yticks(range(len(compared)), [escape_label(label) for label, _ in compared], fontsize=8)
    axis.set_ylim(len(compared) - 0.5, -0.5)
    axis.set_xlabel(
        f"{escape_label(metric)}: difference from the base, 95% interval\n(grey: not significant; hollow: unknown)",
        fontsize=8,
    )
    axis.grid(axis="x", alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_cost_plot(metric: str, summaries: Sequence[ArmSummary], costs: Mapping[str, Cost | None]) -> Figure | None:
    from matplotlib.figure import Figure

    points = [(summary, cost) for summary in summaries if (cost := costs.get(summary.label)) is not None]
    if not points:
        return None
    figure = Figure(figsize=(6.4, 4.2 + 0.16 * len(points)), dpi=150, layout="constrained")
    axis = figure.subplots()
    for index, (summary, cost) in enumerate(points):
        mean, low, high = summary.mean.interval
        error = None if np.isnan(low) else [[mean - low], [high - mean]]
        style = index % len(COLOURS)
        axis.errorbar(
            [cost.denoising_step_flops / 1e9], [mean], yerr=error, color=COLOURS[style],
            marker=MARKERS[(index // len(COLOURS)) % len(MARKERS)], markersize=6, linewidth=1,
            label=escape_label(summary.label),
        )  # fmt: skip
    axis.set_xlabel("GFLOP per denoising step")
    axis.set_ylabel(f"{escape_label(metric)}, 95% interval")
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=7)
    return figure


def _draw_panels(panels: Mapping[str, Mapping[str, Curve]], x: str, y: str) -> Figure | None:
    filled = {title: lines for title, lines in panels.items() if lines}
    return plot_curves(filled, x=x, y=y, limits=None) if filled else None


def _average_over_seeds(label: str, name: str, results: Sequence[RunResult]) -> Curve | None:
    """Average a logged curve over the seeds of an arm, at the steps that all of them logged."""
    logged = [curve for result in results if result.label == label and (curve := result.curves.get(name))]
    return _average_curves([{float(step): value for step, value in curve} for curve in logged])


def _average_by_sigma(prefix: str, labels: Sequence[str], results: Sequence[RunResult]) -> dict[str, Curve]:
    """Average the last values by noise level over seeds, for each arm, at the levels that all seeds have."""
    by_label = {}
    for label in labels:
        by_seed = [result.by_sigma.get(prefix, {}) for result in results if result.label == label]
        curve = _average_curves([{float(sigma): value for sigma, value in values.items()} for values in by_seed])
        if curve is not None:
            by_label[label] = curve
    return by_label


def _average_curves(by_seed: Sequence[Mapping[float, float]]) -> Curve | None:
    x = sorted(set.intersection(*map(set, by_seed))) if by_seed else []
    if not x:
        return None
    values_SX = np.array([[values[position] for position in x] for values in by_seed])
    return Curve(x=x, y=list(values_SX.mean(0)), low=list(values_SX.min(0)), high=list(values_SX.max(0)))
