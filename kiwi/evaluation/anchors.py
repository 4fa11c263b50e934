"""The oracle on edits whose scores are known: `python -m kiwi sandbox anchors`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from kiwi import console
from kiwi.data.sample import to_pixels, to_video_tensor
from kiwi.encoded import Pixels
from kiwi.environment import environment
from kiwi.evaluation.fidelity import edit_metrics
from kiwi.evaluation.options import AnchorOptions
from kiwi.evaluation.perceptual import NoPerceptual
from kiwi.evaluation.sandbox_scores import ORACLE_SCORES
from kiwi.figures import Curve, plot_curves
from kiwi.media.files import atomic_path, make_folder, write_json, write_text
from kiwi.models.vae.wan import WanVae
from kiwi.sandbox.anchors import ANCHORS, Anchor, check_anchor, reconstruction_anchor, score_degraded
from kiwi.sandbox.oracle import Scores, score_edit
from kiwi.sandbox.pairs import CATEGORIES, EditPair
from kiwi.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Level = tuple[str, float, list[Scores]]
"""A kind of damage, how much of it, and the scores of each item."""


class AnchorReport(NamedTuple):
    """Tables by the name of their file, and whether no anchor failed."""

    tables: dict[str, Table]
    passed: bool


def check_anchors(options: AnchorOptions) -> AnchorReport:
    """Score the anchors and the damages, and write `options.out`.

    Raises:
        InputError: settings that no item can be drawn with.
        CheckpointError: an autoencoder that cannot be loaded.
    """
    reconstruct = None if options.vae == "none" else _autoencoder(options.vae, options.size)
    pairs = options.pairs()
    out = make_folder(options.out)
    anchors, tables = dict(ANCHORS), {}
    if reconstruct is not None:
        decoded = {pair.id: reconstruct(pair.target) for pair in console.progress(pairs, "round trips")}
        anchors["round trip of the target"] = reconstruction_anchor(lambda pair: decoded[pair.id])
        tables["round_trip"] = _round_trip_table(pairs, decoded)
    tables = {"anchors": _anchor_table(pairs, anchors), **tables}
    passed = all(row[-1] != "NO" for row in tables["anchors"].rows)
    items = [score_degraded(pair) for pair in console.progress(pairs, "damaging")]
    levels = [(damage, level, [item[damage, level] for item in items]) for damage, level in items[0]]
    write_text(out / "anchors.md", "\n".join(table.to_markdown() for table in tables.values()))
    tables["damage"] = _damage_table(levels)
    for name, table in tables.items():
        write_text(out / f"{name}.csv", table.to_csv())
    figure = _damage_figure(levels)
    for suffix in ("png", "pdf"):
        with atomic_path(out / f"damage.{suffix}") as temporary:
            figure.savefig(temporary, format=suffix)
    write_json(out / "environment.json", environment())
    return AnchorReport(tables, passed)


def _autoencoder(path: str, size: int) -> Callable[[Pixels], Pixels]:
    vae = WanVae(path=path).build()

    @torch.no_grad()
    def reconstruct(frames_FHWC: Pixels) -> Pixels:
        return to_pixels(vae.decode(vae.encode(to_video_tensor(frames_FHWC[None])))[0])

    reconstruct(np.zeros((1, size, size, 3), np.uint8))  # refuses a size that it cannot halve before any other work
    return reconstruct


def _anchor_table(pairs: list[EditPair], anchors: Mapping[str, Anchor]) -> Table:
    rows = []
    for name, anchor in console.progress(anchors.items(), "judging", total=len(anchors)):
        result = check_anchor(pairs, anchor)
        scores = [f"{of(result.scores):.2f}" if result.scores else "" for of in (np.mean, min, max)]
        holds = ("yes" if result.passed else "NO") if result.scores else "no such edit"
        rows.append((name, result.items, len(result.scores), anchor.bounds, *scores, holds))
    header = ("edit", "items", "edits", "wanted", "mean", "least", "most", "holds")
    return Table("The oracle's anchors: overall score of each edit, 1 to 5", header, rows)


def _round_trip_table(pairs: list[EditPair], decoded: Mapping[str, Pixels]) -> Table:
    perceptual = NoPerceptual().build()
    groups: dict[str, list[tuple[float, ...]]] = {category: [] for category in CATEGORIES}
    for pair in pairs:
        fidelity = edit_metrics(decoded[pair.id], pair.target, None, perceptual)
        scores = score_edit(pair, decoded[pair.id])
        oracle = (getattr(scores, name) for name in ORACLE_SCORES)
        groups[pair.category].append((fidelity["psnr"], fidelity["ssim"], *oracle))
    groups = {category: items for category, items in groups.items() if items}
    groups["all"] = [item for items in groups.values() for item in items]
    rows = []
    for category, items in groups.items():
        psnr, ssim, *means = np.mean(items, axis=0)
        rows.append((category, len(items), f"{psnr:.1f}", f"{ssim:.3f}", *(f"{mean:.2f}" for mean in means)))
    return Table(
        "Round trip of the target (PSNR in dB): the most that an editor in these latents can reach",
        ("category", "items", "dB", "SSIM", *ORACLE_SCORES),
        rows,
    )


def _damage_table(levels: Iterable[Level]) -> Table:
    rows = [
        (damage, level, len(items), *(f"{np.mean([getattr(i, name) for i in items]):.4f}" for name in ORACLE_SCORES))
        for damage, level, items in levels
    ]
    return Table("Scores of the target with more and more damage", ("damage", "level", "items", *ORACLE_SCORES), rows)


def _damage_figure(levels: Iterable[Level]) -> Figure:
    points: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
    for damage, level, items in levels:
        for name in ORACLE_SCORES:
            values = [getattr(item, name) for item in items]
            margin = 1.96 * float(np.std(values)) / len(values) ** 0.5
            points.setdefault(damage, {}).setdefault(name, []).append((level, float(np.mean(values)), margin))
    panels = {
        damage: {
            name: Curve(
                x=[level for level, _, _ in line],
                y=[mean for _, mean, _ in line],
                low=[mean - margin for _, mean, margin in line],
                high=[mean + margin for _, mean, margin in line],
            )
            for name, line in lines.items()
        }
        for damage, lines in points.items()
    }
    return plot_curves(panels, x="damage", y="score (mean, 95% interval)", limits=(0.9, 5.1))
