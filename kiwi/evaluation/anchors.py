"""Check of the oracle on anchors and degraded targets: `python -m kiwi sandbox anchors`.

An anchor is an edit whose oracle score is known beforehand, such as the exact target (5) or the unedited source (1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from kiwi import console
from kiwi.data.sample import to_pixels, to_video_tensor
from kiwi.encoded import Pixels
from kiwi.environment import environment
from kiwi.evaluation.fidelity import compute_edit_metrics
from kiwi.evaluation.options import AnchorOptions
from kiwi.evaluation.sandbox_scores import ORACLE_SCORES
from kiwi.figures import Curve, plot_curves, save_figure
from kiwi.media.files import atomic_path, make_folder, write_json, write_text
from kiwi.models.vae.wan import WanVae
from kiwi.sandbox.anchors import ANCHORS, Anchor, check_anchor, reconstruction_anchor, score_degraded
from kiwi.sandbox.oracle import Scores, score_edit
from kiwi.sandbox.pairs import CATEGORIES, EditPair
from kiwi.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DegradationScores = Mapping[tuple[str, float], Sequence[Scores]]
"""The oracle's scores of all degraded targets, by kind and level of the degradation."""


class AnchorReport(NamedTuple):
    """Tables by the name of their CSV file, and whether all anchors passed."""

    tables: dict[str, Table]
    passed: bool


def check_anchors(options: AnchorOptions) -> AnchorReport:
    """Score the anchors and the degraded targets, and write the results to `options.out`.

    Raises:
        InputError: no item can be rendered with these options.
        CheckpointError: the VAE cannot be loaded.
    """
    reconstruct = None if options.vae == "none" else _load_reconstruction(options.vae, options.size)
    pairs = options.pairs()
    out = make_folder(options.out)
    anchors, tables = dict(ANCHORS), {}
    if reconstruct is not None:
        decoded = {pair.id: reconstruct(pair.target) for pair in console.progress(pairs, "round trips")}
        anchors["round trip of the target"] = reconstruction_anchor(lambda pair: decoded[pair.id])
        tables["round_trip"] = _make_round_trip_table(pairs, decoded)
    tables = {"anchors": _make_anchor_table(pairs, anchors), **tables}
    passed = all(row[-1] != "NO" for row in tables["anchors"].rows)
    scores = [score_degraded(pair) for pair in console.progress(pairs, "degrading")]
    degradations = {key: [pair_scores[key] for pair_scores in scores] for key in scores[0]}
    write_text(out / "anchors.md", "\n".join(table.to_markdown() for table in tables.values()))
    tables["damage"] = _make_degradation_table(degradations)
    for name, table in tables.items():
        write_text(out / f"{name}.csv", table.to_csv())
    figure = _plot_degradations(degradations)
    for suffix in ("png", "pdf"):
        with atomic_path(out / f"damage.{suffix}") as temporary:
            save_figure(figure, temporary)
    write_json(out / "environment.json", environment())
    return AnchorReport(tables, passed)


def _load_reconstruction(path: str, size: int) -> Callable[[Pixels], Pixels]:
    """Load a VAE, and return a function that encodes and decodes a video."""
    vae = WanVae(path=path).build()

    @torch.no_grad()
    def reconstruct(frames_FHWC: Pixels) -> Pixels:
        return to_pixels(vae.decode(vae.encode(to_video_tensor(frames_FHWC[None])))[0])

    reconstruct(np.zeros((1, size, size, 3), np.uint8))  # raises at once if the VAE cannot downscale this size
    return reconstruct


def _make_anchor_table(pairs: list[EditPair], anchors: Mapping[str, Anchor]) -> Table:
    rows = []
    for name, anchor in console.progress(anchors.items(), "scoring", total=len(anchors)):
        result = check_anchor(pairs, anchor)
        scores = [f"{statistic(result.scores):.2f}" if result.scores else "" for statistic in (np.mean, min, max)]
        passed = ("yes" if result.passed else "NO") if result.scores else "not applicable"
        rows.append((name, result.items, len(result.scores), anchor.bounds, *scores, passed))
    header = ("anchor", "items", "edits", "required", "mean", "min", "max", "passed")
    return Table("Anchors: the oracle's overall scores (1 to 5) of edits with known scores", header, rows)


def _make_round_trip_table(pairs: list[EditPair], decoded: Mapping[str, Pixels]) -> Table:
    groups: dict[str, list[tuple[float, ...]]] = {category: [] for category in CATEGORIES}
    for pair in pairs:
        fidelity = compute_edit_metrics(decoded[pair.id], pair.target)
        scores = score_edit(pair, decoded[pair.id])
        oracle_scores = (getattr(scores, name) for name in ORACLE_SCORES)
        groups[pair.category].append((fidelity["psnr"], fidelity["ssim"], *oracle_scores))
    groups = {category: items for category, items in groups.items() if items}
    groups["all"] = [item for items in groups.values() for item in items]
    rows = []
    for category, items in groups.items():
        psnr, ssim, *means = np.mean(items, axis=0)
        rows.append((category, len(items), f"{psnr:.1f}", f"{ssim:.3f}", *(f"{mean:.2f}" for mean in means)))
    return Table(
        "Target encoded and decoded by the VAE: an upper bound for editors in its latent space",
        ("category", "items", "PSNR (dB)", "SSIM", *ORACLE_SCORES),
        rows,
    )


def _make_degradation_table(degradations: DegradationScores) -> Table:
    rows = [
        (kind, level, len(items), *(f"{np.mean([getattr(i, name) for i in items]):.4f}" for name in ORACLE_SCORES))
        for (kind, level), items in degradations.items()
    ]
    return Table("Scores of degraded targets", ("degradation", "level", "items", *ORACLE_SCORES), rows)


def _plot_degradations(degradations: DegradationScores) -> Figure:
    panels: dict[str, dict[str, Curve]] = {}
    for kind in dict.fromkeys(kind for kind, _ in degradations):
        by_level = {level: items for (name, level), items in degradations.items() if name == kind}
        panels[kind] = {
            name: _make_curve({level: [getattr(item, name) for item in items] for level, items in by_level.items()})
            for name in ORACLE_SCORES
        }
    return plot_curves(panels, x="level of degradation", y="score (mean, 95% interval)", limits=(0.9, 5.1))


def _make_curve(values: Mapping[float, Sequence[float]]) -> Curve:
    """Make a curve of the means of values by x, with 95% intervals."""
    means = np.array([np.mean(group) for group in values.values()])
    margins = np.array([1.96 * np.std(group) / len(group) ** 0.5 for group in values.values()])
    return Curve(x=list(values), y=means.tolist(), low=(means - margins).tolist(), high=(means + margins).tolist())
