"""KiwiEdit, the whole model in one page: the only place where its parts meet.

    source, instruction, reference --MLLM + queries--> features --two connectors--> context
    source latents, reference latents --patch embeddings--> tokens
    noisy latents + gamma(t) source tokens, reference tokens --DiT, context--> velocity

B samples, C latent channels, F H W latent frames, height and width, R reference images, N context tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kiwi.errors import SpecError
from kiwi.flow.schedule import FlowSchedule
from kiwi.keyed import forked_rng
from kiwi.models.attention import KeysValues
from kiwi.models.connectors import LatentConnector, LatentSpec, Mode, QueryConnector, QuerySpec
from kiwi.models.dit import DiT, DiTConfig
from kiwi.models.injection import AddSource, AppendReference, ReferenceSpec, SourceSpec
from kiwi.models.mllm import MllmSpec, QwenVL
from kiwi.models.prompting import Frames
from kiwi.models.rope import Rope, rope_table
from kiwi.models.vae import VaeSpec, WanVae
from kiwi.spec import Spec


@dataclass(frozen=True, kw_only=True)
class KiwiConfig(Spec):
    """One node a choice. What has a default is as in the published editor; `published_5b` is all of it."""

    dit: DiTConfig
    vae: VaeSpec
    mllm: MllmSpec
    query: QuerySpec = field(default_factory=QueryConnector)
    latent: LatentSpec = field(default_factory=LatentConnector)
    source: SourceSpec = field(default_factory=AddSource)
    reference: ReferenceSpec = field(default_factory=AppendReference)
    schedule: FlowSchedule = field(default_factory=FlowSchedule)

    @classmethod
    def published_5b(cls) -> KiwiConfig:
        """The published editor on Wan2.2-TI2V-5B and Qwen2.5-VL-3B."""
        vae = WanVae(path="Wan-AI/Wan2.2-TI2V-5B-Diffusers", subfolder="vae")
        return cls(dit=DiTConfig.wan22_5b(), vae=vae, mllm=QwenVL(path="Qwen/Qwen2.5-VL-3B-Instruct"))


class Conditions(NamedTuple):
    """What an edit is conditioned on."""

    context_BND: Tensor
    context_mask_BN: Tensor | None
    source_BCFHW: Tensor
    reference_BCRHW: Tensor
    """One latent frame a reference image; R may be 0."""


class Prepared(NamedTuple):
    """Everything that does not change from one denoising step to the next."""

    context: Sequence[KeysValues]
    source_BLD: Tensor
    reference_BRD: Tensor
    rope: Rope
    grid: tuple[int, int, int]


class KiwiEdit(nn.Module):
    """The editor. `encode` makes conditions, `prepare` what all steps share, `velocity` is one step.

    Args:
        config: the choices.
        seed: of the initial weights; each part draws its own under (seed, its name), so that exchanging or
            removing one leaves the initial weights of the others as they were.
    """

    def __init__(self, config: KiwiConfig, seed: int = 0) -> None:
        super().__init__()
        self.config, self.schedule = config, config.schedule
        with forked_rng(seed, "vae"):
            self.vae = config.vae.build()
        if self.vae.channels != config.dit.latent_channels:
            raise SpecError(
                "VAE and DiT do not fit", got=f"{self.vae.channels} and {config.dit.latent_channels} latent channels"
            )
        with forked_rng(seed, "mllm"):
            self.mllm = config.mllm.build()
        with forked_rng(seed, "dit"):
            self.dit = DiT(config.dit)
        with forked_rng(seed, "query"):
            self.query = config.query.build(self.mllm.hidden_size, config.dit.dim)
        with forked_rng(seed, "latent"):
            self.latent = config.latent.build(self.mllm.hidden_size, config.dit.dim)
        with forked_rng(seed, "source"):
            self.source = config.source.build(config.dit)
        with forked_rng(seed, "reference"):
            self.reference = config.reference.build(config.dit)
        for frozen in (self.vae, self.mllm):
            frozen.requires_grad_(False).eval()

    @property
    def size_multiple(self) -> int:
        """Height and width of a video must be multiples of this many pixels."""
        return self.vae.spatial_factor * self.config.dit.patch_size[1]

    def train(self, mode: bool = True) -> KiwiEdit:
        """As usual, except that the frozen parts stay in eval mode."""
        super().train(mode)
        self.vae.eval()
        self.mllm.eval()
        return self

    def encode(
        self,
        mode: Mode,
        frames: Sequence[Frames],
        instructions: Sequence[str],
        pictures: Sequence[Sequence[Frames]],
        source_BCFHW: Tensor,
        references_BRCHW: Tensor,
    ) -> Conditions:
        """Read edits: the MLLM's features through the connectors, and the latents of source and references.

        Args:
            mode: whose queries are read.
            frames: each sample's source video as uint8 (F, H, W, 3), for the MLLM.
            instructions: what to do.
            pictures: each sample's reference images as uint8 (H, W, 3), for the MLLM.
            source_BCFHW: source video in [-1, 1], for the VAE.
            references_BRCHW: letter-boxed reference images in [-1, 1], for the VAE; R = 0 for none.
        """
        queries_QM = self.query.queries[mode]
        prompt = self.mllm.prompter(frames, instructions, pictures, mode, len(queries_QM))
        features = self.mllm(prompt.to(source_BCFHW.device), queries_QM)
        dtype = queries_QM.dtype
        queries, references = self.query(features.queries_BQM.to(dtype)), self.latent(features.references_BRM.to(dtype))
        with torch.no_grad():
            source, reference = self.vae.encode(source_BCFHW), self.vae.encode_images(references_BRCHW)
        return Conditions(*join_context(references, features.references_mask_BR, queries), source, reference)

    def prepare(self, conditions: Conditions, latent_shape: Sequence[int]) -> Prepared:
        """Once an edit: tokens of the conditions, keys and values of every block, rotary table.

        Args:
            conditions: from `encode`.
            latent_shape: of the latents to be denoised, (B, C, F, H, W).
        """
        frames, height, width = grid = self.dit.patch_embedding.grid(latent_shape[2:])
        source, reference = self.source.embed(conditions.source_BCFHW), self.reference.embed(conditions.reference_BCRHW)
        # Added tokens are whole frames on the video's own grid; positions follow the order of the sequence.
        frames += (self.source.added(source) + self.reference.added(reference)) // (height * width)
        rope = rope_table(frames, height, width, self.config.dit.head_dim, device=conditions.context_BND.device)
        context = self.dit.project_context(conditions.context_BND, conditions.context_mask_BN)
        return Prepared(context, source, reference, rope.float(), grid)

    def velocity(
        self, latents_BCFHW: Tensor, sigma_B: Tensor, prepared: Prepared, timestep_B: Tensor | None = None
    ) -> Tensor:
        """One step: d x / d sigma of each sample at its own noise level.

        Args:
            latents_BCFHW: noisy latents.
            sigma_B: noise levels in [0, 1]; gamma(t) sees these.
            prepared: from `prepare`.
            timestep_B: what the time embedding sees; 1000 sigma unless given (published code rounds it).
        """
        timestep_B = self.schedule.timestep(sigma_B) if timestep_B is None else timestep_B
        tokens = self.dit.patch_embedding(latents_BCFHW)
        tokens = self.source.join(tokens, prepared.source_BLD, sigma_B)
        tokens = self.reference.join(tokens, prepared.reference_BRD, sigma_B)
        patches = self.dit(tokens, self.dit.time(timestep_B), prepared.rope, prepared.context)
        patches = self.reference.drop(patches, prepared.reference_BRD)
        patches = self.source.drop(patches, prepared.source_BLD)
        return self.dit.unpatchify(patches, prepared.grid).float()

    def forward(self, latents_BCFHW: Tensor, sigma_B: Tensor, conditions: Conditions) -> Tensor:
        """`prepare` and `velocity` at once, for training: one step of one batch."""
        return self.velocity(latents_BCFHW, sigma_B, self.prepare(conditions, latents_BCFHW.shape))


def join_context(references_BRD: Tensor, mask_BR: Tensor | None, queries_BQD: Tensor) -> tuple[Tensor, Tensor | None]:
    """The DiT's context, [reference tokens, query tokens], and its mask (None when nothing is padding)."""
    context = torch.cat((references_BRD, queries_BQD), dim=1)
    if mask_BR is None:
        return context, None
    return context, torch.cat((mask_BR, mask_BR.new_ones(queries_BQD.shape[:2])), dim=1)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run a block in eval mode without gradients, then go back to the mode before."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
