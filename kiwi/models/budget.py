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
from kiwi.media.resize import fit_size
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
    """Count parameters and operations of an editor on the meta device; its parts must not need files.

    Raises:
        InputError: if the model cannot edit a video of this size.
    """
    with torch.device("meta"):
        model = KiwiEdit(config).eval()
        _require_supported_size(workload, model)
        conditions, latents = _make_inputs(model, workload)
        with torch.no_grad(), FlopCounterMode(display=False) as conditioning:
            prepared = model.prepare(conditions, latents.shape)
        with torch.no_grad(), FlopCounterMode(display=False) as step:
            model.velocity(latents, torch.ones(1), prepared)
    modules: dict[str, nn.Module] = {part: getattr(model, part) for part in (*PARTS, "mllm", "vae")}
    parameters = {part: list(module.parameters()) for part, module in modules.items()}
    return Budget(
        parameters={part: sum(p.numel() for p in tensors) for part, tensors in parameters.items()},
        trainable={part: sum(p.numel() for p in tensors if p.requires_grad) for part, tensors in parameters.items()},
        context=conditions.context.tokens_BND.shape[1],
        tokens=len(prepared.rope.cos_LK),
        denoising_step_flops=step.get_total_flops(),
        conditioning_flops=conditioning.get_total_flops(),
    )


def with_untrained_parts(config: KiwiConfig) -> KiwiConfig:
    """Replace pretrained parts by randomly initialised ones of the same sizes, which need no files.

    Raises:
        SpecError: if the sizes of the MLLM are only known from its files.
    """
    if isinstance(config.vae, WanVae):
        channels = config.dit.latent_channels
        published = {48: NewVae.wan22(), 16: NewVae.wan21()}
        config = config.replace(vae=published.get(channels, NewVae(z_dim=channels)))
    if isinstance(config.mllm, QwenVL):
        known = {
            "Qwen/Qwen2.5-VL-3B-Instruct": NewQwen.qwen25_3b,
            "Qwen/Qwen2.5-VL-7B-Instruct": NewQwen.qwen25_7b,
            shipped.MLLM: NewQwen.sandbox,
        }
        if config.mllm.path not in known:
            expected = f"one of {', '.join(known)}, or mllm: NewQwen with the MLLM's sizes"
            message = f"the sizes of the MLLM {config.mllm.path} are not known without its files"
            raise SpecError(message, code="unknown-mllm-sizes", expected=expected)
        untrained = known[config.mllm.path]()
        config = config.replace(mllm=untrained.replace(limits=config.mllm.limits, tuning=config.mllm.tuning))
    return config.replace(dit=config.dit.replace(base=NewBase()))


def _require_supported_size(workload: Workload, model: KiwiEdit) -> None:
    frames, height, width = workload.frames, workload.height, workload.width
    multiple, step = model.size_multiple, model.vae.temporal_factor
    if min(frames, height, width) < 1 or (frames - 1) % step or height % multiple or width % multiple:
        message = f"the model cannot edit {frames} frames of {height}x{width}"
        expected = f"{step}k + 1 frames, height and width multiples of {multiple}"
        raise InputError(message, code="unsupported-video-size", expected=expected)


def _make_inputs(model: KiwiEdit, workload: Workload) -> tuple[Conditions, Tensor]:
    vae, task = model.vae, TaskKind.of(workload.frames, workload.references)
    size = (workload.height // vae.spatial_factor, workload.width // vae.spatial_factor)
    latents = torch.empty(1, vae.channels, 1 + (workload.frames - 1) // vae.temporal_factor, *size)
    reference_tokens = workload.references * workload.reference_tokens * bool(model.latent.layers)
    tokens = reference_tokens + len(model.query.queries_for(task))
    context = Context(torch.empty(1, tokens, model.config.dit.dim), None)
    return Conditions(context, latents, torch.empty(1, vae.channels, workload.references, *size)), latents
