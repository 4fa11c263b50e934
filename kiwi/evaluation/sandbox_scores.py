"""Scores of edits in the sandbox, where the exact target is known.

Beside each number of an editor stand those of the unedited source and of the autoencoder's round trip, an upper bound
for every editor that works in its latents. PSNR is `clip_psnr` inside (outside) the mask. F frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import isnan, nan

import numpy as np
import torch

from kiwi.data.dataset import letterbox_references
from kiwi.data.sample import EditBatch, EditSample, collate, to_pixels, to_video_tensor
from kiwi.encoded import Pixels, TaskKind
from kiwi.evaluation.fidelity import clip_psnr
from kiwi.media.image import contact_sheet, resize
from kiwi.models.kiwi import KiwiEdit
from kiwi.models.sampling import Sampling, sample_edits
from kiwi.models.vae.wan import VideoVae
from kiwi.sandbox.oracle import score_edit
from kiwi.sandbox.pairs import CATEGORIES, EditPair
from kiwi.statistics.intervals import Interval, bootstrap_mean
from kiwi.tables import Table

BATCH = 16
"""Items that are edited at once."""

CELL, BLANK = 144, 232
"""Height of a contact sheet's cells, and the grey level of the cell of an item without a reference."""

MIN_ITEMS = 5
"""Of fewer items an interval can be wider than the scale of the scores."""

PSNRS = ("inside", "copy_inside", "ceiling_inside", "outside", "ceiling_outside")
ORACLE_SCORES = ("compliance", "consistency", "quality", "overall")

PairEditor = Callable[[Sequence[EditPair]], list[Pixels]]
"""From items of one task and size to their edited videos, (F, H, W, 3) each."""


@dataclass(frozen=True, kw_only=True)
class SandboxScores:
    """Scores of one edited item; NaN where a side of the mask is empty, or was not measured."""

    id: str
    category: str
    inside: float
    """PSNR of the edit against the target inside the mask, in dB."""
    outside: float
    copy_inside: float
    """PSNR of the unedited source against the target."""
    ceiling_inside: float = nan
    """PSNR of the target's round trip against the target."""
    ceiling_outside: float = nan
    """PSNR of the source's round trip against the source."""
    compliance: float
    consistency: float
    quality: float
    overall: float


def score_item(pair: EditPair, edited: Pixels, round_trip: tuple[Pixels, Pixels] | None = None) -> SandboxScores:
    """Score an edit of an item.

    Args:
        pair: the item.
        edited: the edited source, of its size and length.
        round_trip: the item's source and target after encoding and decoding, for the upper bounds.
    """
    oracle, outside = score_edit(pair, edited), ~pair.mask
    ceilings = {}
    if round_trip is not None:
        source, target = round_trip
        ceilings["ceiling_inside"] = clip_psnr(target, pair.target, pair.mask)
        ceilings["ceiling_outside"] = clip_psnr(source, pair.source, outside)
    return SandboxScores(
        id=pair.id,
        category=pair.category,
        inside=clip_psnr(edited, pair.target, pair.mask),
        outside=clip_psnr(edited, pair.target, outside),
        copy_inside=clip_psnr(pair.source, pair.target, pair.mask),
        **ceilings,
        **{name: getattr(oracle, name) for name in ORACLE_SCORES},
    )


# --- editing items ------------------------------------------------------------------------------------


def collate_pairs(pairs: Sequence[EditPair]) -> EditBatch:
    """Items of one task and size as a batch."""
    samples = []
    for pair in pairs:
        frames, height, width = pair.source.shape[:3]
        references = () if pair.reference is None else (pair.reference,)
        sample = EditSample(
            id=pair.id,
            task=TaskKind.of(frames, len(references)),
            instruction=pair.instruction,
            size=(frames, height, width),
            source_FHWC=pair.source,
            target_FHWC=pair.target,
            reference_images=references,
            references_RHWC=letterbox_references(references, height, width),
            category=pair.category,
        )
        samples.append(sample)
    return collate(samples)


def pair_editor(model: KiwiEdit, sampling: Sampling, seed: int = 0) -> PairEditor:
    """A model as an editor of items; an item's edit does not depend on the others of its batch."""
    device = next(model.parameters()).device

    def edit(pairs: Sequence[EditPair]) -> list[Pixels]:
        batch = collate_pairs(pairs)
        for name in ("source_BCFHW", "target_BCFHW", "references_BRCHW"):
            setattr(batch, name, getattr(batch, name).to(device))
        return [to_pixels(video) for video in sample_edits(model, batch, sampling, seed)]

    return edit


def edit_pairs(pairs: Sequence[EditPair], editor: PairEditor) -> dict[str, Pixels]:
    """Edit items; the edited videos by id."""
    batches = group_batches(pairs)
    return {pair.id: video for batch in batches for pair, video in zip(batch, editor(batch), strict=True)}


def group_batches(pairs: Iterable[EditPair]) -> list[list[EditPair]]:
    """Items in batches of one task and size."""

    def kind(pair: EditPair) -> tuple[bool, tuple[int, ...]]:
        return pair.reference is not None, pair.source.shape

    groups = [list(group) for _, group in groupby(sorted(pairs, key=kind), key=kind)]
    return [group[start : start + BATCH] for group in groups for start in range(0, len(group), BATCH)]


@torch.no_grad()
def round_trips(vae: VideoVae, clips: Sequence[Pixels]) -> list[Pixels]:
    """Encode and decode clips of one size."""
    video = to_video_tensor(np.stack(clips)).to(next(vae.parameters()).device)
    return [to_pixels(decoded) for decoded in vae.decode(vae.encode(video))]


# --- tables and pictures ------------------------------------------------------------------------------


def category_mean(scores: Iterable[SandboxScores], name: str) -> Interval | None:
    """A score's mean over categories of the means over their items; None if no item has it."""
    groups: dict[str, list[float]] = {}
    for item in scores:
        if not isnan(value := getattr(item, name)):
            groups.setdefault(item.category, []).append(value)
    return bootstrap_mean(list(groups.values())) if groups else None


def format_mean(scores: Iterable[SandboxScores], name: str) -> str:
    """A score's `category_mean` with its interval as a table's cell, dB with one digit; empty if no item has it."""
    mean = category_mean(scores, name)
    return "" if mean is None else mean.rounded(1 if name in PSNRS else 2)


def few_items_note(counts: Iterable[int]) -> str:
    """A sentence for a table's note, with a space before it, if some of its means are over very few items."""
    if all(count >= MIN_ITEMS for count in counts):
        return ""
    return f" Means of fewer than {MIN_ITEMS} items are unreliable: their intervals can be wider than the scale."


def score_tables(scores: Sequence[SandboxScores]) -> tuple[Table, Table]:
    """Fidelity and the oracle's scores, a row for each category and one for the mean over categories."""
    categories = [name for name in CATEGORIES if any(item.category == name for item in scores)]
    groups = {name: [item for item in scores if item.category == name] for name in categories}
    groups["mean"] = list(scores)

    def rows(names: Sequence[str]) -> list[tuple[object, ...]]:
        return [(title, len(group), *(format_mean(group, name) for name in names)) for title, group in groups.items()]

    few = few_items_note(map(len, groups.values()))
    fidelity = Table(
        "PSNR (dB) inside and outside the mask: edits, unedited copies, the VAE's round trip",
        ("category", "items", "in", "copy in", "VAE in", "out", "VAE out"),
        rows(PSNRS),
        "Means over items with 95% intervals (bootstrap); the last row is the mean over categories. VAE: the round trip"
        f" of the target inside, of the source outside.{few}",
    )
    oracle = Table(
        "The oracle's scores, 1 to 5",
        ("category", "items", *ORACLE_SCORES),
        rows(ORACLE_SCORES),
        f"Means over items with 95% intervals (bootstrap); the last row is the mean over categories.{few}",
    )
    return fidelity, oracle


def edit_sheet(
    pairs: Sequence[EditPair], edits: Mapping[str, Mapping[str, Pixels]], frame: int | None = None
) -> Pixels:
    """A contact sheet of edits, (H, W, 3): in each row an item's reference, source, edits and target.

    Args:
        pairs: the items.
        edits: edited videos by id, by the title of their column.
        frame: index of the frame to show; the middle one for None.
    """
    rows = []
    for pair in pairs:
        at = len(pair.source) // 2 if frame is None else frame
        reference = np.full_like(pair.source[0], BLANK) if pair.reference is None else pair.reference
        clips = (pair.source, *(videos[pair.id] for videos in edits.values()), pair.target)
        images = [reference, *(clip[at] for clip in clips)]
        rows.append([resize(image[None], CELL, CELL * image.shape[1] // image.shape[0])[0] for image in images])
    return contact_sheet(rows, [pair.instruction for pair in pairs], ["reference", "source", *edits, "target"])
