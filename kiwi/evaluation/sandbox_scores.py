"""Scores of edits in the sandbox, where the exact target is known.

The scores of an edit are reported beside those of the unedited source, and of clips that the VAE only encoded and
decoded: their round trip is an upper bound for every editor in its latent space. PSNR is `clip_psnr` inside or outside
the mask. F frames, H height, W width.
"""

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
from kiwi.media.contact_sheet import contact_sheet
from kiwi.media.resize import resize
from kiwi.models.kiwi import KiwiEdit
from kiwi.models.sampling import Sampling, sample_edits
from kiwi.models.vae.wan import VideoVae
from kiwi.sandbox.oracle import score_edit
from kiwi.sandbox.pairs import CATEGORIES, EditPair
from kiwi.statistics.intervals import Interval, bootstrap_mean
from kiwi.tables import Table

BATCH_SIZE = 16
"""Maximum number of items in a batch."""

CELL_HEIGHT, BLANK_LEVEL = 144, 232
"""Contact sheet: height of a cell, and grey level of the cell for a missing reference."""

MIN_ITEMS = 5
"""Number of items below which an interval can be wider than the scale of the scores."""

PSNR_SCORES = ("inside", "copy_inside", "ceiling_inside", "outside", "ceiling_outside")
ORACLE_SCORES = ("compliance", "consistency", "quality", "overall")
"""Fields of SandboxScores: PSNR in dB, and the oracle's scores from 1 to 5."""

PairEditor = Callable[[Sequence[EditPair]], list[Pixels]]
"""Function that edits items of one task and size; returns a video (F, H, W, 3) for each."""


@dataclass(frozen=True, kw_only=True)
class SandboxScores:
    """Scores of one edited item; a PSNR is NaN if it was not computed, or over no pixels."""

    id: str
    category: str
    inside: float
    """PSNR of the edit against the target inside the mask, in dB."""
    outside: float
    """PSNR of the edit against the target outside the mask, in dB."""
    copy_inside: float
    """PSNR of the unedited source against the target inside the mask."""
    ceiling_inside: float = nan
    """PSNR of the target's round trip through the VAE against the target inside the mask."""
    ceiling_outside: float = nan
    """PSNR of the source's round trip through the VAE against the source outside the mask."""
    compliance: float
    consistency: float
    quality: float
    overall: float


def score_item(pair: EditPair, edited: Pixels, round_trip: tuple[Pixels, Pixels] | None = None) -> SandboxScores:
    """Score an edit of an item; `round_trip` is its source and target, encoded and decoded by the VAE."""
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
    """Collate items of one task and size into a batch."""
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


def make_pair_editor(model: KiwiEdit, sampling: Sampling, seed: int = 0) -> PairEditor:
    """Wrap a model as an editor of items, whose edit of an item does not depend on the rest of the batch."""
    device = next(model.parameters()).device

    def edit(pairs: Sequence[EditPair]) -> list[Pixels]:
        batch = collate_pairs(pairs)
        for name in ("source_BCFHW", "target_BCFHW", "references_BRCHW"):
            setattr(batch, name, getattr(batch, name).to(device))
        return [to_pixels(video) for video in sample_edits(model, batch, sampling, seed)]

    return edit


def edit_pairs(pairs: Sequence[EditPair], editor: PairEditor) -> dict[str, Pixels]:
    """Edit items of any tasks and sizes, and return the edited videos by id."""
    batches = group_batches(pairs)
    return {pair.id: video for batch in batches for pair, video in zip(batch, editor(batch), strict=True)}


def group_batches(pairs: Iterable[EditPair]) -> list[list[EditPair]]:
    """Group items into batches of one task and size."""

    def task_and_size(pair: EditPair) -> tuple[bool, tuple[int, ...]]:
        return pair.reference is not None, pair.source.shape

    groups = [list(group) for _, group in groupby(sorted(pairs, key=task_and_size), key=task_and_size)]
    return [group[start : start + BATCH_SIZE] for group in groups for start in range(0, len(group), BATCH_SIZE)]


@torch.no_grad()
def reconstruct(vae: VideoVae, clips: Sequence[Pixels]) -> list[Pixels]:
    """Encode and decode clips of one size with a VAE."""
    video = to_video_tensor(np.stack(clips)).to(next(vae.parameters()).device)
    return [to_pixels(decoded) for decoded in vae.decode(vae.encode(video))]


# --- tables and images --------------------------------------------------------------------------------


def compute_category_mean(scores: Iterable[SandboxScores], name: str) -> Interval | None:
    """Average a score over the items of each category, then over categories; None if no item has the score."""
    groups: dict[str, list[float]] = {}
    for item in scores:
        if not isnan(value := getattr(item, name)):
            groups.setdefault(item.category, []).append(value)
    return bootstrap_mean(list(groups.values())) if groups else None


def format_mean(scores: Iterable[SandboxScores], name: str) -> str:
    """Format `compute_category_mean` as a table cell, PSNR with one digit; empty if no item has the score."""
    mean = compute_category_mean(scores, name)
    return "" if mean is None else mean.rounded(1 if name in PSNR_SCORES else 2)


def make_few_items_note(counts: Iterable[int]) -> str:
    """Make a warning to append to a table's note if some means are over very few items; empty otherwise."""
    if all(count >= MIN_ITEMS for count in counts):
        return ""
    return f" Means of fewer than {MIN_ITEMS} items are unreliable: their intervals can be wider than the scale."


def make_score_tables(scores: Sequence[SandboxScores]) -> tuple[Table, Table]:
    """Make the tables of PSNR and of the oracle's scores, with a row for each category and one for their mean."""
    categories = [name for name in CATEGORIES if any(item.category == name for item in scores)]
    groups = {name: [item for item in scores if item.category == name] for name in categories}
    groups["mean"] = list(scores)

    def make_rows(names: Sequence[str]) -> list[tuple[object, ...]]:
        return [(title, len(group), *(format_mean(group, name) for name in names)) for title, group in groups.items()]

    warning = make_few_items_note(map(len, groups.values()))
    fidelity = Table(
        "PSNR (dB) inside and outside the mask: edit, unedited copy, VAE round trip",
        ("category", "items", "in", "copy in", "VAE in", "out", "VAE out"),
        make_rows(PSNR_SCORES),
        "Means over items with 95% intervals (bootstrap); last row: mean over categories. in, out: inside, outside the "
        f"mask; VAE: round trip of the target (in) and of the source (out).{warning}",
    )
    oracle = Table(
        "The oracle's scores, 1 to 5",
        ("category", "items", *ORACLE_SCORES),
        make_rows(ORACLE_SCORES),
        f"Means over items with 95% intervals (bootstrap); last row: mean over categories.{warning}",
    )
    return fidelity, oracle


def draw_edit_sheet(
    pairs: Sequence[EditPair], edits: Mapping[str, Mapping[str, Pixels]], frame: int | None = None
) -> Pixels:
    """Draw a contact sheet, (H, W, 3), with the reference, source, edits and target of one item in each row.

    Args:
        pairs: items to show.
        edits: edited videos by title of their column and item id.
        frame: index of the frame to show; None for the middle frame.
    """
    rows = []
    for pair in pairs:
        index = len(pair.source) // 2 if frame is None else frame
        reference = np.full_like(pair.source[0], BLANK_LEVEL) if pair.reference is None else pair.reference
        clips = (pair.source, *(videos[pair.id] for videos in edits.values()), pair.target)
        images = [reference, *(clip[index] for clip in clips)]
        rows.append(
            [resize(image[None], CELL_HEIGHT, CELL_HEIGHT * image.shape[1] // image.shape[0])[0] for image in images]
        )
    return contact_sheet(rows, [pair.instruction for pair in pairs], ["reference", "source", *edits, "target"])
