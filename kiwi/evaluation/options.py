"""Options of the commands that measure in the sandbox; importing them does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kiwi import shipped
from kiwi.errors import InputError
from kiwi.options import positional
from kiwi.sandbox.options import WorldOptions
from kiwi.sandbox.sampling import SplitName


@dataclass(frozen=True, kw_only=True)
class SandboxMeasureOptions(WorldOptions):
    """Edit items of the sandbox with a model and compare the edits with their exact targets.

    OUT/fidelity.csv: PSNR inside and outside the mask, beside the unedited source and the autoencoder's round trip;
    OUT/oracle.csv: the oracle's scores; OUT/controls.csv: the same scores with the instruction, or the reference, of
    another item, which shows whether the editor uses them; measured.md has all three tables, edits.png shows some
    edits. Every number has a 95% interval over items. Rerun the same command to resume.

    Args:
        out: folder to write to.
        model: model folder or hub id; sandbox is the editor that kiwi ships.
        steps: denoising steps; the model's own default unless given.
        noise: seed of the starting noise.
        controls: whether to edit with the instructions and references of other items too.
        device: cpu, cuda, cuda:1 ...; CUDA if there is any unless given.
    """

    out: Path = positional()
    model: str = shipped.EDITOR
    steps: int | None = None
    noise: int = 0
    controls: bool = True
    device: str | None = None
    items: int = 560
    frames: int = 5
    size: int = 32
    split: SplitName = "test"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps is not None and self.steps < 1:
            raise InputError("--steps must be at least 1", code="out-of-range", got=self.steps)
        if (self.frames - 1) % 4:
            raise InputError(
                "the model cannot edit videos of this length",
                code="unsupported-length",
                got=f"{self.frames} frames",
                expected="4k + 1 frames",
            )


@dataclass(frozen=True, kw_only=True)
class AnchorOptions(WorldOptions):
    """Check the oracle on edits whose scores are known, and on damage in steps.

    OUT/anchors.md and anchors.csv: the exact target, the unedited source, a blend of both, edits with one mistake, and
    the round trip of the target through an autoencoder; round_trip.csv: the round trip by category; damage.csv,
    damage.png and damage.pdf: how the scores fall with damage. The exit code is 1 if an anchor fails; an anchor that
    applies to none of the items (such as a wrong place where nothing is added) does not count.

    Args:
        out: folder to write to.
        vae: autoencoder of the round trip, a folder or hub id; sandbox/vae is the one that kiwi ships, none leaves the
            round trip out.
    """

    out: Path = positional()
    vae: str = shipped.VAE
    items: int = 140
    frames: int = 5
    size: int = 32
    split: SplitName = "test"
