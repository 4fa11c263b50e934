"""`kiwi plan`: parameters and operations of an editor and its variants, counted without weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from kiwi import console
from kiwi.errors import InputError
from kiwi.options import Options, option, parse_assignments, positional
from kiwi.reading import read_yaml
from kiwi.spec import diff, override

if TYPE_CHECKING:
    from kiwi.models.budget import Budget, Workload


_MAX_VOXELS = 10**11
"""Pixels of all frames; the sizes of attention maps of more overflow 64 bits."""


@dataclass(frozen=True, kw_only=True)
class PlanOptions(Options):
    """Count the parameters and floating-point operations of an editor; no weights are needed.

    Only the forward pass of the DiT is counted, for one sample: the operations of one denoising step, and those done
    once per edit. A multiplication and an addition are two operations. The MLLM and the VAE are not counted.

    Args:
        size: published size, which determines the DiT, VAE and MLLM
        config: experiment of `kiwi fit` to use instead of a published size
        changes: override an option of the configuration, such as source=NoSource; may be repeated
        variants: file with a list of overrides; the table has one row for each
        frames: number of video frames, 4k + 1 (default: 81, or the experiment's)
        height: video height in pixels (default: 704, or the experiment's)
        width: video width in pixels (default: 1280, or the experiment's)
        references: number of reference images
    """

    size: Literal["5b", "14b", "1.3b"] | None = positional(None)
    config: Path | None = option(None, metavar="YAML")
    changes: tuple[str, ...] = option((), flag="--set", metavar="PATH=VALUE", repeat=True)
    variants: Path | None = option(None, metavar="YAML")
    frames: int | None = None
    height: int | None = None
    width: int | None = None
    references: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.size is None) == (self.config is None):
            raise InputError("give either a size or --config, and not both", code="conflicting-options")
        self.require_at_least(0, "references")


class Plan(NamedTuple):
    """The cost of an editor, or of several variants of it."""

    workload: Workload
    labels: list[str]
    """How each variant differs from the first configuration; empty for the configuration itself."""
    budgets: list[Budget]
    train_parts: frozenset[str]
    """Trainable parts: those of the experiment, or all parts of a published size."""


def plan(options: PlanOptions) -> Plan:
    """Count the parameters and operations of an editor, or of each of its variants.

    Raises:
        InputError: a file cannot be read, or the model cannot edit videos of this size.
        SpecError: an override does not fit the configuration.
    """
    variants = [{}] if options.variants is None else _read_variants(options.variants)
    assignments = parse_assignments(options.changes)

    from kiwi.models.budget import Workload, count_budget, with_untrained_parts
    from kiwi.models.config import TRAINABLE, KiwiConfig
    from kiwi.training.editor_experiment import read_editor_experiment

    if options.config is None:
        # Overrides are applied first: they may replace a part that could not be counted.
        config = with_untrained_parts(override(KiwiConfig.untrained(str(options.size)), assignments))
        workload = Workload(reference_tokens=config.mllm.limits.max_reference_tokens)
        train_parts = frozenset(TRAINABLE)
    else:
        experiment = read_editor_experiment(options.config)
        config = with_untrained_parts(override(experiment.config, assignments))
        train_parts = frozenset(experiment.train_parts)
        max_frames = [source.max_frames for source in experiment.data["train"]]
        workload = Workload.for_training(config, max_frames, experiment.data.get("max_pixels"))
    size = {name: value for name in ("frames", "height", "width") if (value := getattr(options, name)) is not None}
    workload = replace(workload, **size, references=options.references)
    if (voxels := workload.frames * workload.height * workload.width) > _MAX_VOXELS:
        expected = f"at most {_MAX_VOXELS:,} pixels of all frames together"
        raise InputError("the video is too large to be counted", code="out-of-range", got=voxels, expected=expected)
    configs = [override(config, variant) for variant in variants]
    changes = [diff(config, variant).items() for variant in configs]
    return Plan(
        workload,
        labels=[", ".join(f"{path} = {value}" for path, (_, value) in differing) for differing in changes],
        budgets=[count_budget(variant, workload) for variant in console.progress(configs, "counting")],
        train_parts=train_parts,
    )


def _read_variants(file: Path) -> list[dict[str, Any]]:
    entries = read_yaml(file, what="file of variants")
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        expected = "a list of mappings from dotted paths to values"
        raise InputError(f"{file} does not hold variants", code="wrong-type", expected=expected)
    return entries
