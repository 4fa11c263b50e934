"""The cost of an editor: parameters of each part and floating-point operations, counted on the meta device."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from kiwi import shipped
from kiwi.encoded import TaskKind
from kiwi.errors import InputError, SpecError
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
    """The size of one edit.

    Args:
        frames, height, width: size of the video; 4k + 1 frames, sides that are multiples of `KiwiEdit.size_multiple`.
        references: number of reference images.
        reference_tokens: number of visual tokens of one reference image in the MLLM.
    """

    frames: int = 81
    height: int = 704
    width: int = 1280
    references: int = 1
    reference_tokens: int = 768

    @classmethod
    def for_training(cls, config: KiwiConfig, max_frames: Iterable[int], max_pixels: int | None = None) -> Workload:
        """The largest sample that an experiment trains on, with one reference image.

        Args:
            config: editor configuration, as `with_untrained_parts` returns it.
            max_frames: largest number of frames of each data set; the published 81 if empty.
            max_pixels: largest height x width of a frame; the published 720 x 1280 if not given.
        """
        assert isinstance(config.vae, NewVae)
        # Published videos are 9 : 16; other shapes with as many pixels cost the same.
        multiple = config.dit.size_multiple(config.vae.sizes.spatial_factor)
        height, width = fit_size(9 * 512, 16 * 512, max_pixels=max_pixels or 720 * 1280, multiple=multiple)
        tokens = config.mllm.limits.max_reference_tokens
        return cls(frames=max(max_frames, default=81), height=height, width=width, reference_tokens=tokens)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Parameters of an editor, and tokens and operations of an edit.

    Args:
        parameters: number of parameters of each part.
        trainable: number of trainable parameters of each part.
        context: number of tokens that cross-attention attends to.
        tokens: length of the DiT's sequence.
        denoising_step_flops: floating-point operations of one forward denoising step; a multiply-add counts as two.
        conditioning_flops: floating-point operations that are needed once per edit, for the conditions' tokens and the
            context's keys and values.
    """

    parameters: dict[str, int]
    trainable: dict[str, int]
    context: int
    tokens: int
    denoising_step_flops: int
    conditioning_flops: int

    @property
    def total_parameters(self) -> int:
        """Number of parameters of all parts."""
        return sum(self.parameters.values())

    def total_trainable(self, parts: Collection[str] | None = None) -> int:
        """Number of trainable parameters of the named parts, or of all parts if none are given."""
        return sum(count for part, count in self.trainable.items() if parts is None or part in parts)


def count_budget(config: KiwiConfig, workload: Workload) -> Budget:
    """Count parameters and operations of an editor on the meta device.

    Args:
        config: editor configuration whose parts need no files; `with_untrained_parts` makes one.
        workload: size of the edit.

    Raises:
        InputError: if the model cannot edit a video of this size.
    """
    with torch.device("meta"):
        model = KiwiEdit(config).eval()
        _require_supported_size(workload, model)
        conditions, latents = _make_inputs(model, workload)
        sigma = torch.ones(1)
        with torch.no_grad(), FlopCounterMode(display=False) as conditioning:
            prepared = model.prepare(conditions, latents.shape)
        with torch.no_grad(), FlopCounterMode(display=False) as step:
            model.velocity(latents, sigma, prepared)
    modules: dict[str, nn.Module] = {part: getattr(model, part) for part in (*PARTS, "mllm", "vae")}
    added = model.source.num_added_tokens(prepared.source_BLD) + model.reference.num_added_tokens(
        prepared.reference_BRD
    )
    frames, height, width = prepared.grid
    return Budget(
        parameters={part: _count_parameters(module.parameters()) for part, module in modules.items()},
        trainable={
            part: _count_parameters(p for p in module.parameters() if p.requires_grad)
            for part, module in modules.items()
        },
        context=conditions.context.tokens_BND.shape[1],
        tokens=frames * height * width + added,
        denoising_step_flops=step.get_total_flops(),
        conditioning_flops=conditioning.get_total_flops(),
    )


def with_untrained_parts(config: KiwiConfig) -> KiwiConfig:
    """Replace pretrained parts by randomly initialised ones of the same sizes, which need no files.

    Raises:
        SpecError: if the sizes of the MLLM are only known from its files.
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
                code="unknown-mllm-sizes",
                got=config.mllm.path,
                expected=f"one of {', '.join(known)}, or a NewQwen with the MLLM's sizes",
            )
        config = config.replace(mllm=untrained.replace(limits=config.mllm.limits, tuning=config.mllm.tuning))
    return config.replace(dit=config.dit.replace(base=NewBase()))


def _require_supported_size(workload: Workload, model: KiwiEdit) -> None:
    multiple, step = model.size_multiple, model.vae.temporal_factor
    sides = (workload.height, workload.width)
    if workload.frames < 1 or (workload.frames - 1) % step or any(side < 1 or side % multiple for side in sides):
        raise InputError(
            "the model cannot edit a video of this size",
            code="unsupported-video-size",
            got=f"{workload.frames} frames of {workload.height}x{workload.width}",
            expected=f"{step}k + 1 frames, height and width multiples of {multiple}",
        )


def _make_inputs(model: KiwiEdit, workload: Workload) -> tuple[Conditions, Tensor]:
    vae, task = model.vae, TaskKind.of(workload.frames, workload.references)
    size = (workload.height // vae.spatial_factor, workload.width // vae.spatial_factor)
    latents = torch.empty(1, vae.channels, vae.latent_frames(workload.frames), *size)
    reference_tokens = workload.references * workload.reference_tokens * bool(model.latent.layers)
    tokens = reference_tokens + len(model.query.queries_for(task))
    context = Context(torch.empty(1, tokens, model.config.dit.dim), None)
    return Conditions(context, latents, torch.empty(1, vae.channels, workload.references, *size)), latents


def _count_parameters(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
