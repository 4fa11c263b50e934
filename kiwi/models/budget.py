"""What an editor costs: parameters by part and floating-point operations, counted without storage or weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from kiwi import shipped
from kiwi.encoded import TaskKind
from kiwi.errors import SpecError
from kiwi.media.image import fit_size
from kiwi.models.config import PARTS, KiwiConfig
from kiwi.models.connectors import Context
from kiwi.models.dit.base import NewBase
from kiwi.models.kiwi import Conditions, KiwiEdit
from kiwi.models.mllm.encoder import QwenVL
from kiwi.models.mllm.new_qwen import NewQwen
from kiwi.models.vae.wan import NewVae, WanVae


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One edit, as the DiT sees it.

    Args:
        frames, height, width: of the video, in pixels; 4k + 1 frames, sizes multiples of the model's.
        references: reference images.
        reference_tokens: visual tokens of one in the MLLM.
    """

    frames: int = 81
    height: int = 704
    width: int = 1280
    references: int = 1
    reference_tokens: int = 768

    @classmethod
    def of_training(cls, config: KiwiConfig, max_frames: Iterable[int], max_pixels: int | None = None) -> Workload:
        """The largest sample that an experiment trains on, with one reference.

        Args:
            config: of its editor, as `with_untrained_parts` left it.
            max_frames: of its data sets; the published 81 if there are none.
            max_pixels: of a frame; the published 720 x 1280 if not given.
        """
        assert isinstance(config.vae, NewVae)
        # 9 : 16 is the shape of the published videos; other shapes of as many pixels cost the same.
        multiple = config.dit.size_multiple(config.vae.sizes.spatial_factor)
        height, width = fit_size(9 * 512, 16 * 512, max_pixels=max_pixels or 720 * 1280, multiple=multiple)
        tokens = config.mllm.limits.max_reference_tokens
        return cls(frames=max(max_frames, default=81), height=height, width=width, reference_tokens=tokens)


@dataclass(frozen=True)
class Budget:
    """Counts for one editor."""

    parameters: dict[str, int]
    """Of each part."""
    trainable: dict[str, int]
    """Of each part, those that learn."""
    context: int
    """Tokens that cross-attention sees."""
    tokens: int
    """Tokens of the DiT's sequence."""
    step_flops: int
    """Of one denoising step of one sample, forward only; a multiplication and an addition are two."""
    edit_flops: int
    """Of what is computed once an edit: tokens of the conditions, keys and values of the context."""


def count_budget(config: KiwiConfig, work: Workload) -> Budget:
    """Count an editor on the meta device.

    Args:
        config: with a VAE and an MLLM that need no files (`NewVae`, `NewQwen`) and no base model.
        work: the edit to count.
    """
    with torch.device("meta"):
        model = KiwiEdit(config).eval()
        conditions, latents = _inputs(model, work)
        sigma = torch.ones(1)
        with torch.no_grad(), FlopCounterMode(display=False) as once:
            prepared = model.prepare(conditions, latents.shape)
        with torch.no_grad(), FlopCounterMode(display=False) as step:
            model.velocity(latents, sigma, prepared)
    modules = {part: getattr(model, part) for part in (*PARTS, "mllm", "vae")}
    added = model.source.num_added_tokens(prepared.source_BLD)
    added += model.reference.num_added_tokens(prepared.reference_BRD)
    frames, height, width = prepared.grid
    return Budget(
        parameters={part: _size(list(module.parameters())) for part, module in modules.items()},
        trainable={
            part: _size([p for p in module.parameters() if p.requires_grad]) for part, module in modules.items()
        },
        context=conditions.context.tokens_BND.shape[1],
        tokens=frames * height * width + added,
        step_flops=step.get_total_flops(),
        edit_flops=once.get_total_flops(),
    )


def with_untrained_parts(config: KiwiConfig) -> KiwiConfig:
    """The same editor with untrained parts in the place of pretrained ones, so that it can be counted without files.

    Raises:
        SpecError: an MLLM of a size that only its files tell.
    """
    sizes = {48: NewVae.wan22(), 16: NewVae.wan21()}
    if isinstance(config.vae, WanVae):
        channels = config.dit.latent_channels
        config = config.replace(vae=sizes.get(channels, NewVae(z_dim=channels)))
    if isinstance(config.mllm, QwenVL):
        known = {QwenVL.qwen25_3b().path: NewQwen.qwen25_3b(), QwenVL.qwen25_7b().path: NewQwen.qwen25_7b()}
        known[shipped.MLLM] = NewQwen.sandbox()
        if (untrained := known.get(config.mllm.path)) is None:
            raise SpecError(
                "the sizes of this MLLM are not known without its files",
                got=config.mllm.path,
                wanted=f"one of {', '.join(known)}, or a NewQwen of its sizes",
            )
        config = config.replace(mllm=untrained.replace(limits=config.mllm.limits, tuning=config.mllm.tuning))
    return config.replace(dit=config.dit.replace(base=NewBase()))


TASK: dict[bool, TaskKind] = {True: TaskKind.reference, False: TaskKind.video}
"""The mode of an edit with references, and without."""


def _inputs(model: KiwiEdit, work: Workload) -> tuple[Conditions, Tensor]:
    vae, mode = model.vae, TASK[bool(work.references)]
    size = (work.height // vae.spatial_factor, work.width // vae.spatial_factor)
    latents = torch.empty(1, vae.channels, vae.latent_frames(work.frames), *size)
    seen = work.references * work.reference_tokens * bool(model.latent.layers)
    tokens = seen + len(model.query.table(mode))
    context = Context(torch.empty(1, tokens, model.config.dit.dim), None)
    return Conditions(context, latents, torch.empty(1, vae.channels, work.references, *size)), latents


def _size(parameters: Sequence[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
