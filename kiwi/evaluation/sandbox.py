"""What an editor is worth on items of the sandbox, where the exact target is known.

Beside each number of the editor stand the copy of the source, which does nothing, and the round trip through the
autoencoder, better than which nothing can be that works in its latents. PSNR is in dB over all pixels of a clip that
lie inside (outside) the mask; F frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import isnan, nan

import numpy as np
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio

from kiwi.data.dataset import letterboxed
from kiwi.data.sample import EditBatch, EditSample, collate, pixels, video_tensor
from kiwi.encoded import Pixels, TaskKind
from kiwi.evaluation.edit_batch import edit_batch
from kiwi.media.image import contact_sheet, resize
from kiwi.models.kiwi import KiwiEdit
from kiwi.models.sampling import Sampling
from kiwi.models.vae.wan import VideoVae
from kiwi.sandbox.oracle import judge
from kiwi.sandbox.pairs import CATEGORIES, EditPair
from kiwi.statistics.intervals import Interval, mean_of
from kiwi.tables import Table

BATCH = 16
"""Items that are edited at once."""

CELL, NOTHING = 144, 232
"""Height of a picture's cells, and the grey of the cell where an item has no reference."""

FEW = 5
"""Items, below which an interval can be wider than the scale of the scores."""

CAP = 60.0
"""dB, of what is equal to the last bit."""

Editor = Callable[[Sequence[EditPair]], list[Pixels]]
"""From items of one kind of task to edited videos, (F, H, W, 3) each."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Numbers of one item; NaN where a side of the mask has no pixels, or nothing was measured."""

    id: str
    category: str
    inside: float
    """dB of the edit against the target, where the edit may show."""
    outside: float
    copy_inside: float
    """The same of the source."""
    ceiling_inside: float = nan
    """The same of the target's round trip."""
    ceiling_outside: float = nan
    """Of the source's round trip against the source, outside the mask."""
    compliance: float
    consistency: float
    quality: float
    overall: float


MEASURES = ("inside", "copy_inside", "ceiling_inside", "outside", "ceiling_outside")
SCORES = ("compliance", "consistency", "quality", "overall")


def batch_of(pairs: Sequence[EditPair]) -> EditBatch:
    """Items of one kind of task and one size as a batch."""
    samples = []
    for pair in pairs:
        frames, height, width = pair.source.shape[:3]
        pictures = () if pair.reference is None else (pair.reference,)
        sample = EditSample(
            id=pair.id,
            task=TaskKind.of(frames, len(pictures)),
            instruction=pair.instruction,
            size=(frames, height, width),
            source_FHWC=pair.source,
            target_FHWC=pair.target,
            reference_images=pictures,
            references_RHWC=letterboxed(pictures, height, width),
            category=pair.category,
        )
        samples.append(sample)
    return collate(samples)


def editor_of(model: KiwiEdit, sampling: Sampling, seed: int = 0) -> Editor:
    """A model as an editor of items; one item's edit does not depend on the others."""
    device = next(model.parameters()).device

    def edited(pairs: Sequence[EditPair]) -> list[Pixels]:
        batch = batch_of(pairs)
        for name in ("source_BCFHW", "target_BCFHW", "references_BRCHW"):
            setattr(batch, name, getattr(batch, name).to(device))
        return edit_batch(model, batch, sampling, seed)

    return edited


@torch.no_grad()
def round_trips(vae: VideoVae, clips: Sequence[Pixels]) -> list[Pixels]:
    """What an autoencoder leaves of clips of one size."""
    video = video_tensor(np.stack(clips)).to(next(vae.parameters()).device)
    return [pixels(decoded) for decoded in vae.decode(vae.encode(video))]


def in_batches(pairs: Iterable[EditPair]) -> list[list[EditPair]]:
    """Items grouped so that those of a group can be edited at once."""
    kinds = [list(group) for _, group in groupby(sorted(pairs, key=_kind), key=_kind)]
    return [kind[start : start + BATCH] for kind in kinds for start in range(0, len(kind), BATCH)]


def score(pair: EditPair, edited: Pixels, vae: tuple[Pixels, Pixels] | None = None) -> Scored:
    """Measure and judge an edit of an item.

    Args:
        pair: the item.
        edited: what was made of its source, of its size and length.
        vae: round trips of its source and its target, if they are to stand beside it.
    """
    scores, outside = judge(pair, edited), ~pair.mask
    ceilings = {}
    if vae is not None:
        source, target = vae
        ceilings["ceiling_inside"] = _psnr(target, pair.target, pair.mask)
        ceilings["ceiling_outside"] = _psnr(source, pair.source, outside)
    return Scored(
        id=pair.id,
        category=pair.category,
        inside=_psnr(edited, pair.target, pair.mask),
        outside=_psnr(edited, pair.target, outside),
        copy_inside=_psnr(pair.source, pair.target, pair.mask),
        **ceilings,
        **{name: getattr(scores, name) for name in SCORES},
    )


def mean(scored: Iterable[Scored], name: str) -> Interval | None:
    """A number's mean over categories of the means over their items; None where no item has it."""
    groups: dict[str, list[float]] = {}
    for one in scored:
        if not isnan(value := getattr(one, name)):
            groups.setdefault(one.category, []).append(value)
    return mean_of(list(groups.values())) if groups else None


def cell(scored: Iterable[Scored], name: str) -> str:
    """A number's mean with its interval for a table, dB with one digit; empty where no item has it."""
    of = mean(scored, name)
    return "" if of is None else of.rounded(1 if name in MEASURES else 2)


def caution(counts: Iterable[int]) -> str:
    """What a table's note adds if some of its means are of very few items; begins with a space, if anything."""
    few = any(count < FEW for count in counts)
    return f" Means of fewer than {FEW} items say next to nothing: their intervals can be wider than the scale." * few


def tables(scored: Sequence[Scored]) -> tuple[Table, Table]:
    """Of fidelity and of the oracle's scores, a row a category and one of the mean over them; 95% intervals."""
    categories = [name for name in CATEGORIES if any(one.category == name for one in scored)]
    groups: Mapping[str, list[Scored]] = {name: [one for one in scored if one.category == name] for name in categories}
    groups = {**groups, "mean": list(scored)}

    def rows(names: Sequence[str]) -> list[tuple[object, ...]]:
        return [(title, len(group), *(cell(group, name) for name in names)) for title, group in groups.items()]

    few = caution(map(len, groups.values()))
    fidelity = Table(
        "PSNR (dB) inside and outside the mask: edits, unedited copies, the VAE's round trip",
        ("category", "items", "in", "copy in", "VAE in", "out", "VAE out"),
        rows(MEASURES),
        "Means over items with 95% intervals (bootstrap); the last row is the mean over categories. VAE: the round trip"
        f" of the target inside, of the source outside.{few}",
    )
    oracle = Table(
        "The oracle's scores, 1 to 5",
        ("category", "items", *SCORES),
        rows(SCORES),
        f"Means over items with 95% intervals (bootstrap); the last row is the mean over categories.{few}",
    )
    return fidelity, oracle


def edits(pairs: Sequence[EditPair], edit: Editor) -> dict[str, Pixels]:
    """What an editor makes of items, by id."""
    return {pair.id: video for batch in in_batches(pairs) for pair, video in zip(batch, edit(batch), strict=True)}


def sheet(pairs: Sequence[EditPair], made: Mapping[str, Mapping[str, Pixels]], at: int | None = None) -> Pixels:
    """A picture of edits, (H, W, 3): a row an item, its reference, source, what editors made of it, and target.

    Args:
        pairs: the items.
        made: edited videos by id, by the title of their column.
        at: which frame; the middle one for none.
    """
    rows = []
    for pair in pairs:
        frame = len(pair.source) // 2 if at is None else at
        nothing = np.full_like(pair.source[0], NOTHING)
        clips = (pair.source, *(videos[pair.id] for videos in made.values()), pair.target)
        cells = [nothing if pair.reference is None else pair.reference, *(clip[frame] for clip in clips)]
        rows.append([resize(cell[None], CELL, CELL * cell.shape[1] // cell.shape[0])[0] for cell in cells])
    return contact_sheet(rows, [pair.instruction for pair in pairs], ["reference", "source", *made, "target"])


def _kind(pair: EditPair) -> tuple[bool, tuple[int, ...]]:
    return pair.reference is not None, pair.source.shape


def _psnr(made: Pixels, wanted: Pixels, where_FHW: np.ndarray) -> float:
    if not where_FHW.any():
        return nan
    found, target = (torch.from_numpy(clip[where_FHW]).float() for clip in (made, wanted))
    return min(CAP, float(peak_signal_noise_ratio(found, target, data_range=255.0)))
