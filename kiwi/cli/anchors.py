"""`python -m kiwi sandbox anchors`: what the oracle says where the answer is known, as tables and a figure."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from kiwi import console
from kiwi.environment import environment
from kiwi.errors import InputError
from kiwi.figures import Curve, plot_curves
from kiwi.media.files import atomic_path, make_folder, write_json, write_text
from kiwi.sandbox.anchors import ANCHORS, Anchor, Pixels, damaged, measure, round_trip
from kiwi.sandbox.oracle import Scores, judge
from kiwi.sandbox.pairs import CATEGORIES, EditPair, make_pair
from kiwi.tables import Table

SCORES = ("compliance", "consistency", "quality", "overall")


def add_options(options: argparse.ArgumentParser) -> None:
    """What the action takes beside the world's options."""
    options.add_argument("out", metavar="OUT", help="folder to write to; made if it is not there")
    options.add_argument(
        "--vae",
        metavar="PATH",
        default="sandbox/vae",
        help="autoencoder of the round trip, a folder or hub id; 'none' leaves it out (default: %(default)s, shipped)",
    )


def run(options: argparse.Namespace, world: dict[str, Any]) -> int:
    """Judge, print, write; 0 if every anchor holds, 1 otherwise."""
    if options.items < 1:
        raise InputError("Anchors need items", got=options.items)
    through = None if options.vae == "none" else _autoencoder(options.vae, options.size)
    indices = console.progress(range(options.items), "drawing")
    pairs = [make_pair(options.seed, index, **world) for index in indices]
    out = make_folder(options.out)
    anchors = dict(ANCHORS)
    if through is not None:
        decoded = {pair.id: through(pair.target) for pair in console.progress(pairs, "round trips")}
        anchors["round trip of the target"] = round_trip(lambda pair: decoded[pair.id])
    tables = {"anchors": _anchors(pairs, anchors)}
    if through is not None:
        tables["round_trip"] = _round_trips(pairs, decoded)
    items = [damaged(pair) for pair in console.progress(pairs, "damaging")]
    levels = [(damage, level, [item[damage, level] for item in items]) for damage, level in items[0]]
    tables["damage"] = _damages(levels)
    for name, table in tables.items():
        write_text(out / f"{name}.csv", table.csv())
    write_text(out / "anchors.md", "\n".join(table.markdown() for name, table in tables.items() if name != "damage"))
    figure = _figure(levels)
    for suffix in ("png", "pdf"):
        with atomic_path(out / f"damage.{suffix}") as temporary:
            figure.savefig(temporary, format=suffix)
    write_json(out / "environment.json", environment())
    for name in ("anchors", "round_trip"):
        if name in tables:
            console.table(tables[name].title, tables[name].header, tables[name].rows, tables[name].note)
    console.print(f"{len(pairs)} items; tables, damage.png and damage.pdf in {out}")
    return 1 if any(row[-1] == "NO" for row in tables["anchors"].rows) else 0


def _autoencoder(path: str, size: int) -> Callable[[Pixels], Pixels]:
    import torch

    from kiwi.data.sample import pixels, video_tensor
    from kiwi.models.vae.wan import WanVae

    vae = WanVae(path=path).build()

    @torch.no_grad()
    def through(frames_FHWC: Pixels) -> Pixels:
        return pixels(vae.decode(vae.encode(video_tensor(frames_FHWC[None])))[0])

    through(np.zeros((1, size, size, 3), np.uint8))  # a size that it cannot halve is told before the work
    return through


def _anchors(pairs: list[EditPair], anchors: dict[str, Anchor]) -> Table:
    rows = []
    for name, anchor in console.progress(anchors.items(), "judging", total=len(anchors)):
        found = measure(pairs, anchor)
        scores = [f"{of(found.overall):.2f}" if found.overall else "" for of in (np.mean, min, max)]
        holds = ("yes" if found.holds else "NO") if found.overall else "no such edit"
        rows.append((name, found.items, len(found.overall), anchor.wanted, *scores, holds))
    header = ("edit", "items", "edits", "wanted", "mean", "least", "most", "holds")
    return Table("The oracle's anchors: overall score of each edit, 1 to 5", header, rows)


def _round_trips(pairs: list[EditPair], decoded: dict[str, Pixels]) -> Table:
    from kiwi.evaluation.fidelity import NoPerceptual
    from kiwi.evaluation.fidelity import measure as compare

    found: dict[str, list[tuple[float, ...]]] = {category: [] for category in CATEGORIES}
    for pair in pairs:
        made = decoded[pair.id]
        near, scores = compare(made, pair.target, None, NoPerceptual().build()), judge(pair, made)
        found[pair.category].append((near["psnr"], near["ssim"], *(getattr(scores, name) for name in SCORES)))
    groups = {name: values for name, values in found.items() if values}
    groups["all"] = [row for values in groups.values() for row in values]
    rows = []
    for name, values in groups.items():
        psnr, ssim, *scores = np.mean(values, axis=0)
        rows.append((name, len(values), f"{psnr:.1f}", f"{ssim:.3f}", *(f"{score:.2f}" for score in scores)))
    header = ("category", "items", "dB", "SSIM", *SCORES)
    return Table(
        "Round trip of the target (PSNR in dB): the most that an editor in these latents can reach", header, rows
    )


Level = tuple[str, float, list[Scores]]


def _damages(levels: Iterable[Level]) -> Table:
    rows = [
        (damage, level, len(scores), *(f"{np.mean([getattr(score, name) for score in scores]):.4f}" for name in SCORES))
        for damage, level, scores in levels
    ]
    return Table("Scores of the target, spoilt more and more", ("damage", "level", "items", *SCORES), rows)


def _figure(levels: Iterable[Level]) -> Any:
    points: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
    for damage, level, scores in levels:
        for name in SCORES:
            values = [getattr(score, name) for score in scores]
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
