"""Options of the evaluation commands of the sandbox; importing them does not import torch."""

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

    Writes OUT/fidelity.csv (PSNR inside and outside the mask of the edit, for the edited video, the unedited source and
    the VAE's round trip), OUT/oracle.csv (the oracle's scores) and OUT/controls.csv (overall scores of controls, which
    are edits with another item's instruction or reference and show whether the editor uses both); measured.md has all
    three tables, edits.png shows some edits. All means have 95% intervals over items. Rerun the same command to resume.

    Args:
        out: folder for the results
        model: model folder or hub id; "sandbox" is the editor included in kiwi
        steps: number of denoising steps (default: the model's)
        noise: random seed of the initial noise
        controls: edit and score the controls
        device: cpu, cuda, cuda:1 ... (default: cuda if available)
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
        self.require_at_least(1, "steps")
        if (self.frames - 1) % 4:
            message = "--frames must be 4k + 1, such as 5 or 9"
            raise InputError(message, code="unsupported-video-size", got=self.frames)


@dataclass(frozen=True, kw_only=True)
class AnchorOptions(WorldOptions):
    """Check the oracle on anchors, which are edits whose oracle scores are known, and on degraded targets.

    Writes OUT/anchors.md and anchors.csv (scores of the exact target, the unedited source, a blend of both, edits with
    one mistake, and the target encoded and decoded by a VAE), round_trip.csv (the VAE's scores by category), and
    damage.csv, damage.png and damage.pdf (how the scores fall as the target is degraded). The exit code is 1 if an
    anchor fails. Anchors that apply to none of the items (such as "wrong place" if no item adds an object) are ignored.

    Args:
        out: folder for the results
        vae: folder or hub id of the VAE; "sandbox/vae" is included in kiwi, "none" skips the reconstruction
    """

    out: Path = positional()
    vae: str = shipped.VAE
    items: int = 140
    frames: int = 5
    size: int = 32
    split: SplitName = "test"
