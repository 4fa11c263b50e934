"""KiwiEdit, the whole model in one page: the only place where its parts meet.

    source, instruction, reference --MLLM + queries--> features --two connectors--> context
    source latents, reference latents --patch embeddings--> tokens
    noisy latents + gamma(t) source tokens, reference tokens --DiT, context--> velocity

B samples, C latent channels, F H W latent frames, height and width, R reference images, N context tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kiwi.encoded import Pixels, TaskKind, VisionFeatures
from kiwi.errors import SpecError
from kiwi.keyed import forked_rng
from kiwi.models.config import KiwiConfig
from kiwi.models.connectors import Connector, Context, QueryConnectorModule, join_contexts
from kiwi.models.dit.attention import KeysValues
from kiwi.models.dit.rope import Rope, rope_table
from kiwi.models.dit.transformer import DiT
from kiwi.models.injection import Injection


class Conditions(NamedTuple):
    """What an edit is conditioned on."""

    context: Context
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
        seed: of the initial weights, drawn part by part.
        empty: leave the parts that have no base model without weights (on the meta device), to be loaded.
    """

    dit: DiT
    query: QueryConnectorModule
    latent: Connector
    source: Injection
    reference: Injection

    def __init__(self, config: KiwiConfig, seed: int = 0, *, empty: bool = False) -> None:
        super().__init__()
        self.config, self.schedule = config, config.schedule
        with forked_rng(seed, "vae"):
            self.vae = config.vae.build()
        if self.vae.channels != config.dit.latent_channels:
            got = f"{self.vae.channels} and {config.dit.latent_channels} latent channels"
            raise SpecError("VAE and DiT do not fit", got=got)
        with forked_rng(seed, "mllm"):
            self.mllm = config.mllm.build()
        for part, build in config.builders(self.mllm.hidden_size).items():
            with forked_rng(seed, part), torch.device("meta") if empty else nullcontext():
                setattr(self, part, build())
        self.mllm.check_layers(self.query.layers + self.latent.layers)
        self.vae.requires_grad_(False)
        self.train()

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
        task: TaskKind,
        source_frames: Sequence[Pixels | VisionFeatures],
        instructions: Sequence[str],
        reference_images: Sequence[Sequence[Pixels | VisionFeatures]],
        source_BCFHW: Tensor,
        references_BRCHW: Tensor,
        source_latents_BCFHW: Tensor | None = None,
    ) -> Conditions:
        """Read edits: the MLLM's features through the connectors, and the latents of source and references.

        Args:
            task: whose queries are read.
            source_frames: each sample's source video for the MLLM: uint8 (F, H, W, 3), or its vision features.
            instructions: what to do.
            reference_images: each sample's reference images for the MLLM: uint8 (H, W, 3), or their vision features.
            source_BCFHW: source video in [-1, 1], for the VAE; not looked at where there are latents.
            references_BRCHW: letter-boxed reference images in [-1, 1], for the VAE; R = 0 for none.
            source_latents_BCFHW: of the source, where the VAE has read it before.
        """
        queries_QM = self.query.table(task)
        prompt = self.mllm.prompter(source_frames, instructions, reference_images, task, len(queries_QM)).to(
            source_BCFHW.device
        )
        states = self.mllm(prompt, queries_QM, self.query.layers + self.latent.layers)
        context = join_contexts(self.latent(states, prompt), self.query(states, prompt))
        with torch.no_grad():
            source = self.vae.encode(source_BCFHW) if source_latents_BCFHW is None else source_latents_BCFHW
            reference = self.vae.encode_images(references_BRCHW)
        return Conditions(context, source, reference)

    def prepare(self, conditions: Conditions, latent_shape: Sequence[int]) -> Prepared:
        """Once an edit: tokens of the conditions, keys and values of every block, rotary table.

        Args:
            conditions: from `encode`.
            latent_shape: of the latents to be denoised, (B, C, F, H, W).
        """
        frames, height, width = grid = self.dit.patch_embedding.grid(latent_shape[2:])
        source = self.source.embed(conditions.source_BCFHW, self.dit.patch_embedding)
        reference = self.reference.embed(conditions.reference_BCRHW, self.dit.patch_embedding)
        # Added tokens are whole frames on the video's own grid; positions follow the order of the sequence.
        added = self.source.num_added_tokens(source) + self.reference.num_added_tokens(reference)
        frames += added // (height * width)
        rope = rope_table(frames, height, width, self.config.dit.head_dim, device=source.device).float()
        return Prepared(self.dit.project_context(*conditions.context), source, reference, rope, grid)

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
