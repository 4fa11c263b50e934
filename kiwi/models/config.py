"""KiwiConfig: the configuration of the editor as one tree of specs, and the published sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from kiwi.flow.schedule import FlowSchedule
from kiwi.models.connectors import LatentConnector, LatentSpec, QueryConnector, QuerySpec
from kiwi.models.dit.transformer import DiTConfig
from kiwi.models.injection import AddSource, AppendReference, ReferenceSpec, SourceSpec
from kiwi.models.mllm.encoder import MllmSpec
from kiwi.models.mllm.new_qwen import NewQwen
from kiwi.models.vae.wan import NewVae, VaeSpec
from kiwi.spec import Spec

PARTS = ("dit", "query", "latent", "source", "reference")
"""Attributes of `KiwiEdit` that hold its parts other than the VAE and the MLLM."""

TRAINABLE = (*PARTS, "mllm")
"""Parts that can be trained; `dit.tuning` and `mllm.tuning` say how."""


@dataclass(frozen=True, kw_only=True)
class KiwiConfig(Spec):
    """The editor's configuration: one spec per part, with the published ones as defaults.

    Args:
        dit: the diffusion transformer.
        vae: the video autoencoder, always frozen.
        mllm: the multimodal LLM.
        query: learnable queries, and their connector to the context.
        latent: connector from the MLLM's features of the reference images to the context.
        source: injection of the source video's latents.
        reference: injection of the reference images' latents.
        schedule: the noise schedule.
    """

    dit: DiTConfig
    vae: VaeSpec
    mllm: MllmSpec
    query: QuerySpec = field(default_factory=QueryConnector)
    latent: LatentSpec = field(default_factory=LatentConnector)
    source: SourceSpec = field(default_factory=AddSource)
    reference: ReferenceSpec = field(default_factory=AppendReference)
    schedule: FlowSchedule = field(default_factory=FlowSchedule)

    @classmethod
    def untrained(cls, size: str) -> KiwiConfig:
        """An editor of a published size ("5b", "14b" or "1.3b") with randomly initialised parts.

        It needs no files, so that its parameters can be counted on the meta device.
        """
        dit = {"5b": DiTConfig, "14b": DiTConfig.wan21_14b, "1.3b": DiTConfig.wan21_1_3b}[size]()
        vae = NewVae.wan22() if size == "5b" else NewVae.wan21()
        return cls(dit=dit, vae=vae, mllm=NewQwen.qwen25_3b())

    def builders(self, mllm_dim: int) -> dict[str, Callable[[], nn.Module]]:
        """Constructors of the parts in `PARTS`, for an MLLM of this width."""
        return {
            "dit": self.dit.build,
            "query": lambda: self.query.build(mllm_dim, self.dit.dim),
            "latent": lambda: self.latent.build(mllm_dim, self.dit.dim),
            "source": lambda: self.source.build(self.dit),
            "reference": lambda: self.reference.build(self.dit),
        }
