"""Controls: edits that are known to be bad. A judge that does not score them below the real edits cannot be trusted.

    copy         the unedited source
    wrong source the edit of another video
    other words  the edit, judged by the instruction of another item of its category
    degraded     the edit, coarse and noisy

And anchors: items that were judged before and are judged again, to detect drift of the judge.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from zlib import crc32

import numpy as np

from kiwi.bench.ledger import Judgement, JudgementKey
from kiwi.bench.runner import JudgingTask
from kiwi.bench.scoring import ItemScore
from kiwi.bench.suites import BenchmarkItem
from kiwi.errors import KiwiError
from kiwi.media.files import make_folder, sha256
from kiwi.media.image import resize
from kiwi.media.video import read_video, write_video
from kiwi.statistics.intervals import Interval, bootstrap_mean
from kiwi.statistics.paired import Difference, paired_difference

COPY, WRONG_SOURCE, OTHER_WORDS, DEGRADED = "copy", "wrong source", "other words", "degraded"
CONTROL_KINDS = (COPY, WRONG_SOURCE, OTHER_WORDS, DEGRADED)
"""Parts of ids in ledgers, so their names stay."""

ANCHOR = "anchor"

SIGNIFICANCE = 0.05

DOWNSCALING, NOISE_STD, CRF = 4, 24.0, 32
"""Of degraded edits: factor by side, standard deviation of the noise in grey levels (of 255), x264's quality."""


def control_tasks(
    items: Sequence[BenchmarkItem], edited: Mapping[str, Path], count: int, folder: Path
) -> Iterator[JudgingTask]:
    """Controls of some items, spread over the categories; degraded videos are written, the others exist.

    Args:
        items: whose edits were judged.
        edited: their edited videos by id; items whose video is missing are skipped.
        count: of each kind, at most.
        folder: where degraded videos are written.
    """
    available = [item for item in items if item.id in edited and edited[item.id].is_file()]
    make_folder(folder)
    for item in _spread(available, count):
        video = edited[item.id]
        yield _task(COPY, item, item.instruction, item.source)
        other_source = _find_other(item, available, "source")
        if other_source is not None:
            yield _task(WRONG_SOURCE, item, item.instruction, edited[other_source.id])
        other_words = _find_other(item, available, "instruction")
        if other_words is not None:
            yield _task(OTHER_WORDS, item, other_words.instruction, video)
        if (degraded := _degrade(video, folder)) is not None:
            yield _task(DEGRADED, item, item.instruction, degraded)


def anchor_tasks(
    items: Sequence[BenchmarkItem], edited: Mapping[str, Path], earlier: Sequence[Judgement], count: int
) -> list[JudgingTask]:
    """Items that were judged earlier, to be judged again under a new repeat."""
    last_repeat: dict[str, int] = {}
    for judgement in earlier:
        kind, _, item_id = judgement.key.item.rpartition(":")
        if kind in ("", ANCHOR) and judgement.scores is not None:
            last_repeat[item_id] = max(last_repeat.get(item_id, -1), judgement.key.repeat)
    available = [item for item in items if item.id in last_repeat and edited[item.id].is_file()]
    return [
        _task(ANCHOR, item, item.instruction, edited[item.id], repeat=last_repeat[item.id] + 1)
        for item in _spread(available, count)
    ]


@dataclass(frozen=True, kw_only=True)
class ControlResult:
    """A judge's scores of one kind of control; capped, means of the three dimensions.

    Args:
        kind: of control.
        items: number of controls with a score whose item's real edit has one too.
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
        return self.margin.mean.mean > 0 and self.margin.p < SIGNIFICANCE

    @property
    def is_inconclusive(self) -> bool:
        """Whether the real edits score higher, but with so few items no margin could be significant."""
        return not self.is_passed and self.margin.mean.mean > 0 and 2 / 2**self.items >= SIGNIFICANCE


def summarize_controls(controls: Sequence[ItemScore], edits: Sequence[ItemScore]) -> list[ControlResult]:
    """Results by kind.

    Args:
        controls: scores of controls, whose ids are "KIND:ID".
        edits: scores of the real edits.
    """
    edit_scores = {score.item.id: score.mean("capped") for score in edits}
    results = []
    for kind in CONTROL_KINDS:
        pairs = [
            (score.mean("capped"), edit_scores[item_id], score.item.source.name)
            for score in controls
            if score.item.id.startswith(f"{kind}:") and (item_id := score.item.id.partition(":")[2]) in edit_scores
        ]
        if pairs:
            control, edit, sources = (list(values) for values in zip(*pairs, strict=True))
            margin = paired_difference([[b - a for a, b in zip(control, edit, strict=True)]], [sources])
            results.append(
                ControlResult(
                    kind=kind,
                    items=len(pairs),
                    control=bootstrap_mean([control]),
                    edit=bootstrap_mean([edit]),
                    margin=margin,
                )
            )
    return results


def unscored_controls(
    tasks: Sequence[JudgingTask], scored: Sequence[ItemScore], failures: Mapping[str, str]
) -> dict[str, str]:
    """Kinds of controls without any score, each with a reason: some judges cannot score some kinds."""
    scored_kinds = {score.item.id.partition(":")[0] for score in scored}
    reasons: dict[str, str] = {}
    for task in tasks:
        kind = task.id.partition(":")[0]
        if kind not in scored_kinds:
            reasons.setdefault(kind, failures.get(task.id, "no answer could be read"))
    return reasons


def measure_drift(anchors: Sequence[Judgement], earlier: Sequence[Judgement]) -> Difference | None:
    """Difference of the anchors' scores to the first scores of the same edits; None without anchors."""
    first: dict[tuple[str, str], float] = {}
    for judgement in earlier:
        for name, score in (judgement.scores or {}).items():
            first.setdefault((_edit_key(judgement.key, judgement.key.item), name), score)
    changes: dict[str, list[float]] = {}
    for judgement in anchors:
        item_id = judgement.key.item.partition(":")[2]
        for name, score in (judgement.scores or {}).items():
            if (key := (_edit_key(judgement.key, item_id), name)) in first:
                changes.setdefault(item_id, []).append(score - first[key])
    return paired_difference([[float(np.mean(values)) for values in changes.values()]]) if changes else None


def _edit_key(key: JudgementKey, item_id: str) -> str:
    """Equal for questions about the same edit, whatever the repeat."""
    return replace(key, item=item_id, repeat=0).text


def _task(kind: str, item: BenchmarkItem, instruction: str, edited: Path, repeat: int = 0) -> JudgingTask:
    return JudgingTask(id=f"{kind}:{item.id}", item=item, instruction=instruction, edited=edited, repeats=[repeat])


def _spread(items: Sequence[BenchmarkItem], count: int) -> list[BenchmarkItem]:
    """The first items in turns of one from each category, in a pseudo-random order."""
    queues: dict[str, list[BenchmarkItem]] = {}
    for item in sorted(items, key=lambda item: crc32(item.id.encode())):
        queues.setdefault(item.category, []).append(item)
    turns = [item for rank in range(len(items)) for queue in queues.values() for item in queue[rank : rank + 1]]
    return turns[:count]


def _find_other(item: BenchmarkItem, items: Sequence[BenchmarkItem], field: str) -> BenchmarkItem | None:
    """The next item of the same category, else of any, with another value of a field."""
    start = items.index(item)
    rotated = [*items[start + 1 :], *items[:start]]
    same_category = [other for other in rotated if other.category == item.category]
    return next((other for other in (*same_category, *rotated) if getattr(other, field) != getattr(item, field)), None)


def _degrade(edited: Path, folder: Path) -> Path | None:
    """A degraded copy; its name has a hash, since names of edits repeat. None if the edit cannot be read."""
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
        write_video(out, resize(noisy, height, width), video.fps, crf=CRF)
    return out
