"""KiwiEdit, the whole model on one page: the only place where its parts meet.

    source frames, instruction, reference images, queries --MLLM--> hidden states --two connectors--> context
    noisy latents, source latents, reference latents --patch embeddings--> noisy, source and reference tokens
    noisy tokens + gamma(t) * source tokens, reference tokens --DiT, context--> velocity

gamma(t) of the paper is the noise-level-dependent scale of the source tokens (kiwi.models.scaling).

B samples, C latent channels, F H W latent frames, height and width, R reference images, Q learnable queries, M the
MLLM's width, D the DiT's width, L source tokens, N context tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from kiwi.encoded import PixelsOrFeatures, TaskKind
from kiwi.keyed import forked_rng
from kiwi.models.config import KiwiConfig
from kiwi.models.connectors import Connector, Context, QueryConnectorModule, join_contexts
from kiwi.models.dit.attention import KeysValues, Rope, compute_rope
from kiwi.models.dit.transformer import DiT
from kiwi.models.injection import Injection


class EditInputs(Protocol):
    """A batch of edits, all of one task kind and one size, such as `kiwi.data.sample.EditBatch`."""

    ids: list[str]
    task: TaskKind
    instructions: list[str]
    source_frames: list[PixelsOrFeatures]
    """Source videos for the MLLM, (F, H, W, 3)."""
    reference_images: list[tuple[PixelsOrFeatures, ...]]
    """Reference images for the MLLM, (H, W, 3) of any size."""
    source_BCFHW: Tensor
    """Source videos for the VAE, in [-1, 1]."""
    references_BRCHW: Tensor
    """Reference images for the VAE, in [-1, 1], letter-boxed to the video's size; R may be 0."""


class Conditions(NamedTuple):
    """Context and latents that an edit is conditioned on."""

    context: Context
    source_BCFHW: Tensor
    reference_BCRHW: Tensor
    """Latents of each reference image as one frame; R may be 0."""


class PreparedConditions(NamedTuple):
    """Inputs of the DiT that stay the same in all denoising steps of an edit."""

    context: Sequence[KeysValues]
    """Keys and values of the context for each block."""
    source_BLD: Tensor
    """Tokens of the source video."""
    reference_BRD: Tensor
    """Tokens of the reference images; R counts tokens here."""
    rope: Rope
    grid: tuple[int, int, int]
    """Frames, rows and columns of the noisy tokens."""


class KiwiEdit(nn.Module):
    """The editor. `encode` computes the conditions, `prepare` the inputs shared by all steps, `velocity` one step.

    Args:
        config: the spec of every part.
        seed: seed for weight initialisation; each part uses an independent stream.
        empty: create all parts but the VAE and the MLLM on the meta device; a checkpoint must be loaded afterwards.
    """

    # Short names, because they are the first word of every weight's name in checkpoints, and the fields of KiwiConfig.
    dit: DiT
    query: QueryConnectorModule  # the learnable queries, and their connector to the context
    latent: Connector  # from the MLLM's features of the reference images to the context
    source: Injection  # of the source video's latents
    reference: Injection  # of the reference images' latents

    def __init__(self, config: KiwiConfig, seed: int = 0, *, empty: bool = False) -> None:
        super().__init__()
        self.config, self.schedule = config, config.schedule
        self.vae = config.vae.build_frozen(config.dit.latent_channels, seed)
        self.size_multiple = config.dit.size_multiple(self.vae.spatial_factor)
        """Height and width of a video must be multiples of this many pixels."""
        with forked_rng(seed, "mllm"):
            self.mllm = config.mllm.build()
        for part, build in config.builders(self.mllm.hidden_size).items():
            with forked_rng(seed, part), torch.device("meta") if empty else nullcontext():
                setattr(self, part, build())
        self.mllm.check_layers(self.query.layers + self.latent.layers)
        self.train()

    def train(self, mode: bool = True) -> KiwiEdit:
        """Set training mode, except that the VAE and the MLLM always stay in eval mode."""
        super().train(mode)
        self.vae.eval()
        self.mllm.eval()
        return self

    def encode(self, inputs: EditInputs, source_latents_BCFHW: Tensor | None = None) -> Conditions:
        """Compute the context with MLLM and connectors, and the latents of sources and references with the VAE.

        `source_latents_BCFHW` are latents of the sources that are already computed; the VAE then does not encode them.
        """
        queries_QM = self.query.queries_for(inputs.task)
        prompt = self.mllm.prompter(
            inputs.source_frames, inputs.instructions, inputs.reference_images, inputs.task, len(queries_QM)
        ).to(inputs.source_BCFHW.device)
        states = self.mllm(prompt, queries_QM, self.query.layers + self.latent.layers)
        context = join_contexts(self.latent(states, prompt), self.query(states, prompt))
        with torch.no_grad():
            if source_latents_BCFHW is None:
                source_latents_BCFHW = self.vae.encode(inputs.source_BCFHW)
            return Conditions(context, source_latents_BCFHW, self.vae.encode_images(inputs.references_BRCHW))

    def prepare(self, conditions: Conditions, latent_shape: Sequence[int]) -> PreparedConditions:
        """Compute once per edit: the conditions' tokens, every block's keys and values, and the rotary embedding.

        `latent_shape` is the shape (B, C, F, H, W) of the latents to denoise.
        """
        frames, height, width = grid = self.dit.patch_embedding.compute_grid(latent_shape[2:])
        source = self.source.embed(conditions.source_BCFHW, self.dit.patch_embedding)
        reference = self.reference.embed(conditions.reference_BCRHW, self.dit.patch_embedding)
        # Added tokens are whole frames of the video's grid; rotary positions follow the order of the sequence.
        num_added = self.source.num_added_tokens(source) + self.reference.num_added_tokens(reference)
        frames += num_added // (height * width)
        rope = compute_rope(frames, height, width, self.config.dit.head_dim, device=source.device).float()
        return PreparedConditions(self.dit.project_context(*conditions.context), source, reference, rope, grid)

    def velocity(
        self, latents_BCFHW: Tensor, sigma_B: Tensor, prepared: PreparedConditions, timestep_B: Tensor | None = None
    ) -> Tensor:
        """Predict d x / d sigma for each sample at its own noise level: one denoising step.

        Args:
            latents_BCFHW: noisy latents.
            sigma_B: noise levels in [0, 1], from which gamma(t) is computed.
            prepared: result of `prepare`.
            timestep_B: input of the timestep embedding; 1000 sigma if not given (the published code rounds it).
        """
        timestep_B = self.schedule.timestep(sigma_B) if timestep_B is None else timestep_B
        tokens = self.dit.patch_embedding(latents_BCFHW)
        tokens = self.source.add_condition(tokens, prepared.source_BLD, sigma_B)
        tokens = self.reference.add_condition(tokens, prepared.reference_BRD, sigma_B)
        patches = self.dit(tokens, self.dit.embed_timestep(timestep_B), prepared.rope, prepared.context)
        patches = self.reference.remove_added_tokens(patches, prepared.reference_BRD)
        patches = self.source.remove_added_tokens(patches, prepared.source_BLD)
        return self.dit.unpatchify(patches, prepared.grid).float()

    def forward(self, latents_BCFHW: Tensor, sigma_B: Tensor, conditions: Conditions) -> Tensor:
        """Prepare the conditions and predict the velocity in one call, for training."""
        return self.velocity(latents_BCFHW, sigma_B, self.prepare(conditions, latents_BCFHW.shape))
