"""Controls: edits that are known to be bad. A judge whose scores do not put them below the real ones says nothing.

    copy         the unedited source
    wrong source the edit of another video
    other words  the edit, judged by what another item of its category asks for
    degraded     the edit, coarse and noisy

And anchors: items that were judged before, asked again as they are, to see whether the judge has moved since.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from zlib import crc32

import numpy as np

from kiwi.bench.case import Case
from kiwi.bench.ledger import Asked, Judgement
from kiwi.bench.runner import Task
from kiwi.bench.scoring import ItemScore
from kiwi.errors import KiwiError
from kiwi.media.files import make_folder, sha256
from kiwi.media.image import resize
from kiwi.media.video import read_video, write_video
from kiwi.statistics.intervals import Interval, mean_of
from kiwi.statistics.paired import Difference, paired_difference

COPY, WRONG_SOURCE, OTHER_WORDS, DEGRADED = "copy", "wrong source", "other words", "degraded"
KINDS = (COPY, WRONG_SOURCE, OTHER_WORDS, DEGRADED)
ANCHOR = "anchor"

LEVEL = 0.05
"""Of tests."""

COARSER, NOISE, CRF = 4, 24.0, 32
"""Of degraded edits: how many times fewer pixels a side, grey levels (of 255) of noise, and x264's quality."""


def control_tasks(cases: Sequence[Case], edited: Mapping[str, Path], items: int, folder: Path) -> Iterator[Task]:
    """Controls of some items, spread over the categories; degraded videos are written, others are there.

    Args:
        cases: items whose edits were judged.
        edited: their edited videos by id; items whose video is not there are passed over.
        items: how many of each kind, at most.
        folder: where degraded videos go.
    """
    there = [case for case in cases if case.id in edited and edited[case.id].is_file()]
    chosen = _spread(there, items)
    make_folder(folder)
    for case in chosen:
        own = edited[case.id]
        yield _task(COPY, case, case.instruction, case.source)
        if (other := _other(case, there, lambda one, case=case: one.source != case.source)) is not None:
            yield _task(WRONG_SOURCE, case, case.instruction, edited[other.id])
        if (other := _other(case, there, lambda one, case=case: one.instruction != case.instruction)) is not None:
            yield _task(OTHER_WORDS, case, other.instruction, own)
        if (spoilt := _degraded(own, folder)) is not None:
            yield _task(DEGRADED, case, case.instruction, spoilt)


def anchor_tasks(
    cases: Sequence[Case], edited: Mapping[str, Path], earlier: Sequence[Judgement], items: int
) -> list[Task]:
    """Items that were judged earlier, to be asked again under repeats that they never had."""
    last: dict[str, int] = {}
    for one in earlier:
        kind, _, item = one.asked.item.rpartition(":")
        if kind in ("", ANCHOR) and one.scores is not None:
            last[item] = max(last.get(item, -1), one.asked.repeat)
    there = [case for case in cases if case.id in last and edited[case.id].is_file()]
    return [
        _task(ANCHOR, case, case.instruction, edited[case.id], repeat=last[case.id] + 1)
        for case in _spread(there, items)
    ]


@dataclass(frozen=True, kw_only=True)
class Control:
    """What a judge gave to a kind of control.

    Args:
        kind: which.
        items: how many have a score, and the real edit of the same item too.
        mean: of their scores (capped, mean of the three).
        real: of the real edits of the same items.
        above: real edits less controls, paired.
    """

    kind: str
    items: int
    mean: Interval
    real: Interval
    above: Difference

    @property
    def holds(self) -> bool:
        """Whether the real edits are above, beyond what chance could give."""
        return self.above.mean.mean > 0 and self.above.p < LEVEL

    @property
    def undecided(self) -> bool:
        """Whether the real edits are above, but of so few items that chance could always give it."""
        return not self.holds and self.above.mean.mean > 0 and 2 / 2**self.items >= LEVEL


def controls_of(judged: Sequence[ItemScore], real: Sequence[ItemScore]) -> list[Control]:
    """Controls by kind, from scores of items whose ids begin with it."""
    own = {item.case.id: item.mean("capped") for item in real}
    found = []
    for kind in KINDS:
        pairs = [
            (item.mean("capped"), own[name], item.case.source.name)
            for item in judged
            if item.case.id.startswith(f"{kind}:") and (name := item.case.id.partition(":")[2]) in own
        ]
        if pairs:
            control, edit, owners = (list(values) for values in zip(*pairs, strict=True))
            above = paired_difference([[b - a for a, b in zip(control, edit, strict=True)]], [owners])
            found.append(
                Control(kind=kind, items=len(pairs), mean=mean_of([control]), real=mean_of([edit]), above=above)
            )
    return found


def unjudged(tasks: Sequence[Task], judged: Sequence[ItemScore], why: Mapping[str, str]) -> dict[str, str]:
    """Kinds of controls without any score, with a reason: a judge may be unable to say anything of a kind."""
    scored = {item.case.id.partition(":")[0] for item in judged}
    found: dict[str, str] = {}
    for task in tasks:
        kind = task.item.partition(":")[0]
        if kind not in scored:
            found.setdefault(kind, why.get(task.item, "no answer could be read"))
    return found


def drift_of(anchors: Sequence[Judgement], earlier: Sequence[Judgement]) -> Difference | None:
    """How much higher items are judged now than when they were first; none without anchors."""
    first: dict[tuple[str, str], float] = {}
    for one in earlier:
        for name, score in (one.scores or {}).items():
            first.setdefault((_question(one.asked, one.asked.item), name), score)
    changes: dict[str, list[float]] = {}
    for one in anchors:
        item = one.asked.item.partition(":")[2]
        for name, score in (one.scores or {}).items():
            if (key := (_question(one.asked, item), name)) in first:
                changes.setdefault(item, []).append(score - first[key])
    return paired_difference([[float(np.mean(values)) for values in changes.values()]]) if changes else None


def _question(asked: Asked, item: str) -> str:
    """The same for what was asked about the same edit, whichever repeat it was."""
    return replace(asked, item=item, repeat=0).key


def _task(kind: str, case: Case, instruction: str, edited: Path, repeat: int = 0) -> Task:
    return Task(item=f"{kind}:{case.id}", case=case, instruction=instruction, edited=edited, repeats=[repeat])


def _spread(cases: Sequence[Case], items: int) -> list[Case]:
    """So many cases, the categories by turns, in an order that does not follow the names."""
    queues: dict[str, list[Case]] = {}
    for case in sorted(cases, key=lambda case: crc32(case.id.encode())):
        queues.setdefault(case.category, []).append(case)
    turns = [case for rank in range(len(cases)) for queue in queues.values() for case in queue[rank : rank + 1]]
    return turns[:items]


def _other(case: Case, cases: Sequence[Case], fits) -> Case | None:  # type: ignore[no-untyped-def]
    """The next item of the same category, else of any, that fits."""
    start = cases.index(case)
    turned = [*cases[start + 1 :], *cases[:start]]
    alike = [one for one in turned if one.category == case.category]
    return next((one for one in (*alike, *turned) if fits(one)), None)


def _degraded(edited: Path, folder: Path) -> Path | None:
    """The edit, spoilt; named by its content too, since another edit may have its name. None if it cannot be read."""
    out = folder / f"{edited.stem}_{sha256(edited)[:12]}{edited.suffix}"
    if not out.is_file():
        try:
            video = read_video(edited)
        except KiwiError:
            return None
        frames, (height, width) = video.frames_FHWC, video.frames_FHWC.shape[1:3]
        coarse = resize(frames, max(1, height // COARSER), max(1, width // COARSER))
        noise = np.random.default_rng(crc32(edited.name.encode())).normal(0, NOISE, coarse.shape)
        noisy = np.clip(coarse + noise, 0, 255).astype(np.uint8)  # of the coarse pixels: fine noise is slow to encode
        write_video(out, resize(noisy, height, width), video.fps, crf=CRF)
    return out
