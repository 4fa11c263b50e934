"""Controls and anchors, which show whether a judge can be trusted.

A control is an edit that is known to be bad, so that a judge must score it below the real edit of the same item. Kinds:

    copy               the unedited source
    wrong source       the edit of another source video
    wrong instruction  the real edit, judged by the instruction of another item
    degraded           the real edit at a quarter of the resolution, with noise

An anchor is an item that was judged by an earlier run and is judged again, to detect drift of the judge.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from zlib import crc32

import numpy as np

from kiwi.bench.ledger import Judgement, JudgementKey
from kiwi.bench.runner import JudgingTask
from kiwi.bench.scoring import ItemScore, JudgedTask
from kiwi.bench.suites import BenchmarkItem
from kiwi.errors import KiwiError
from kiwi.media.files import make_folder, sha256
from kiwi.media.resize import resize
from kiwi.media.video import read_video, write_video
from kiwi.statistics.intervals import Interval, bootstrap_mean
from kiwi.statistics.paired import Difference, estimate_difference

COPY, WRONG_SOURCE, WRONG_INSTRUCTION, DEGRADED, ANCHOR = "copy", "wrong source", "other words", "degraded", "anchor"
"""Prefixes of the ids of controls and anchors in ledgers ("copy:ID"), which must not change."""

CONTROL_KINDS = {COPY: COPY, WRONG_SOURCE: WRONG_SOURCE, WRONG_INSTRUCTION: "wrong instruction", DEGRADED: DEGRADED}
"""Name of each kind of control in reports, by prefix."""

SIGNIFICANCE = 0.05
"""p value below which a difference is significant."""

DOWNSCALING, NOISE_STD, CRF = 4, 24.0, 32
"""Degraded edits: downscaling factor, standard deviation of the noise (in grey levels of 255), and x264's CRF."""


def make_control_tasks(
    items: Sequence[BenchmarkItem], edited: Mapping[str, Path], count: int, folder: Path
) -> Iterator[JudgingTask]:
    """Make at most `count` controls of each kind, spread over the categories; write the degraded videos to `folder`.

    Args:
        items: items whose edits were judged.
        edited: edited videos by item id.
    """
    for item in _select_across_categories(items, count):
        video = edited[item.id]
        yield _make_task(COPY, item, item.instruction, item.source)
        if (other := _find_other(item, items, "source")) is not None:
            yield _make_task(WRONG_SOURCE, item, item.instruction, edited[other.id])
        if (other := _find_other(item, items, "instruction")) is not None:
            yield _make_task(WRONG_INSTRUCTION, item, other.instruction, video)
        if (degraded := _write_degraded_copy(video, folder)) is not None:
            yield _make_task(DEGRADED, item, item.instruction, degraded)


def make_anchor_tasks(
    items: Sequence[BenchmarkItem], edited: Mapping[str, Path], earlier: Sequence[Judgement], count: int
) -> list[JudgingTask]:
    """Make tasks that judge some previously judged items again, each with the next repeat index."""
    last_repeat: dict[str, int] = {}
    for judgement in earlier:
        kind, _, item_id = judgement.key.item.rpartition(":")
        if kind in ("", ANCHOR) and judgement.scores is not None:
            last_repeat[item_id] = max(last_repeat.get(item_id, -1), judgement.key.repeat)
    available = [item for item in items if item.id in last_repeat and edited[item.id].is_file()]
    return [
        _make_task(ANCHOR, item, item.instruction, edited[item.id], repeat=last_repeat[item.id] + 1)
        for item in _select_across_categories(available, count)
    ]


def get_control_kind(task_id: str) -> str:
    """The kind of control that a task's id names; empty for a real edit."""
    return CONTROL_KINDS.get(task_id.partition(":")[0], "")


@dataclass(frozen=True, kw_only=True)
class ControlResult:
    """A judge's scores of one kind of control: each item's score is the mean of its three capped scores.

    Args:
        kind: kind of control, one of the names in CONTROL_KINDS.
        items: number of items where both the control and the real edit have a score.
        control: mean score of the controls.
        edit: mean score of the real edits of the same items.
        margin: paired difference, real edit - control.
    """

    kind: str
    items: int
    control: Interval
    edit: Interval
    margin: Difference

    @property
    def is_passed(self) -> bool:
        """Whether the real edits score significantly higher."""
        return self.margin.interval.mean > 0 and self.margin.p < SIGNIFICANCE

    @property
    def is_inconclusive(self) -> bool:
        """Whether the real edits score higher, but on too few items for any margin to be significant."""
        # The permutation test flips the signs of the items' margins, so no p value of n items is below 2 / 2^n.
        smallest_p = 2 / 2**self.items
        return not self.is_passed and self.margin.interval.mean > 0 and smallest_p >= SIGNIFICANCE


def summarize_controls(controls: Sequence[ItemScore], edits: Sequence[ItemScore]) -> list[ControlResult]:
    """Compare the scores of each kind of control (ids "PREFIX:ID") with those of the real edits of the same items."""
    edit_scores = {score.item.id: score.mean("capped") for score in edits}
    results = []
    for kind in CONTROL_KINDS.values():
        pairs = [
            (score.mean("capped"), edit_scores[item_id], score.item.source.name)
            for score in controls
            if get_control_kind(score.item.id) == kind and (item_id := score.item.id.partition(":")[2]) in edit_scores
        ]
        if pairs:
            control, edit, sources = (list(values) for values in zip(*pairs, strict=True))
            margin = estimate_difference([[b - a for a, b in zip(control, edit, strict=True)]], [sources])
            means = bootstrap_mean([control]), bootstrap_mean([edit])
            results.append(ControlResult(kind=kind, items=len(pairs), control=means[0], edit=means[1], margin=margin))
    return results


def explain_unscored_controls(controls: Sequence[JudgedTask]) -> dict[str, str]:
    """The reason for each kind of control without any score, such as a kind that this judge cannot score."""
    scored_kinds = {get_control_kind(control.task.id) for control in controls if control.score is not None}
    reasons: dict[str, str] = {}
    for control in controls:
        if (kind := get_control_kind(control.task.id)) not in scored_kinds:
            reasons.setdefault(kind, control.reason or "no answer could be read")
    return reasons


def measure_drift(anchors: Sequence[Judgement], earlier: Sequence[Judgement]) -> Difference | None:
    """Measure how much the scores of anchors differ from the first scores of the same edits; None without anchors."""
    first: dict[tuple[str, str], float] = {}
    for judgement in earlier:
        for name, score in (judgement.scores or {}).items():
            first.setdefault((_make_edit_key(judgement.key, judgement.key.item), name), score)
    changes: dict[str, list[float]] = {}
    for judgement in anchors:
        item_id = judgement.key.item.partition(":")[2]
        for name, score in (judgement.scores or {}).items():
            if (key := (_make_edit_key(judgement.key, item_id), name)) in first:
                changes.setdefault(item_id, []).append(score - first[key])
    return estimate_difference([[float(np.mean(values)) for values in changes.values()]]) if changes else None


def _make_edit_key(key: JudgementKey, item_id: str) -> str:
    """A string that is equal for all repeats of the same question about an edit."""
    return replace(key, item=item_id, repeat=0).text


def _make_task(kind: str, item: BenchmarkItem, instruction: str, edited: Path, repeat: int = 0) -> JudgingTask:
    return JudgingTask(id=f"{kind}:{item.id}", item=item, instruction=instruction, edited=edited, repeats=[repeat])


def _select_across_categories(items: Sequence[BenchmarkItem], count: int) -> list[BenchmarkItem]:
    """Select `count` items, taking one from each category in turn; pseudo-random order within a category."""
    queues: dict[str, list[BenchmarkItem]] = {}
    for item in sorted(items, key=lambda item: crc32(item.id.encode())):
        queues.setdefault(item.category, []).append(item)
    turns = [item for rank in range(len(items)) for queue in queues.values() for item in queue[rank : rank + 1]]
    return turns[:count]


def _find_other(item: BenchmarkItem, items: Sequence[BenchmarkItem], field: str) -> BenchmarkItem | None:
    """The next item with a different value of a field; from the same category if there is one."""
    start = items.index(item)
    rotated = [*items[start + 1 :], *items[:start]]
    same_category = [other for other in rotated if other.category == item.category]
    return next((other for other in (*same_category, *rotated) if getattr(other, field) != getattr(item, field)), None)


def _write_degraded_copy(edited: Path, folder: Path) -> Path | None:
    """Write a degraded copy and return its path, with a hash since names of edits repeat; None if it is unreadable."""
    out = folder / f"{edited.stem}_{sha256(edited)[:12]}{edited.suffix}"
    if not out.is_file():
        try:
            video = read_video(edited)
        except KiwiError:
            return None
        frames, (height, width) = video.frames_FHWC, video.frames_FHWC.shape[1:3]
        coarse = resize(frames, max(1, height // DOWNSCALING), max(1, width // DOWNSCALING))
        noise = np.random.default_rng(crc32(edited.name.encode())).normal(0, NOISE_STD, coarse.shape)
        noisy = np.clip(coarse + noise, 0, 255).astype(np.uint8)  # before upscaling: fine noise is slow to encode
        make_folder(folder)
        write_video(out, resize(noisy, height, width), video.fps, crf=CRF)
    return out
