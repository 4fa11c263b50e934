"""KiwiConfig: every choice of the editor as one tree of specs, and the published choices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from kiwi.flow.schedule import FlowSchedule
from kiwi.models.connectors import LatentConnector, LatentSpec, QueryConnector, QuerySpec
from kiwi.models.dit.base import WanBase
from kiwi.models.dit.transformer import DiTConfig
from kiwi.models.injection import AddSource, AppendReference, ReferenceSpec, SourceSpec
from kiwi.models.mllm.encoder import MllmSpec, QwenVL
from kiwi.models.mllm.new_qwen import NewQwen
from kiwi.models.mllm.vision_input import VisionLimits
from kiwi.models.tuning import Lora
from kiwi.models.vae.wan import NewVae, VaeSpec, WanVae
from kiwi.spec import Spec

PARTS = ("dit", "query", "latent", "source", "reference")
"""The parts that an editor has of its own, beside a pretrained VAE and MLLM."""

TRAINABLE = (*PARTS, "mllm")
"""Parts that may learn; each learns as its spec says (`dit.tuning`, `mllm.tuning`)."""


@dataclass(frozen=True, kw_only=True)
class KiwiConfig(Spec):
    """One node a choice; what has a default is as in the published editor."""

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
        """What the published 5B editor is trained from: Wan2.2-TI2V-5B, Qwen2.5-VL-3B with adapters of rank 64."""
        repository = "Wan-AI/Wan2.2-TI2V-5B-Diffusers"
        return cls(
            dit=DiTConfig.wan22_5b().replace(base=WanBase(path=repository, subfolder="transformer")),
            vae=WanVae(path=repository, subfolder="vae"),
            mllm=QwenVL.qwen25_3b().replace(tuning=Lora(rank=64)),
        )

    @classmethod
    def published_14b(cls) -> KiwiConfig:
        """What the published 14B editor is trained from: Wan2.1-T2V-14B adapters of rank 128, fewer queries."""
        repository = "Wan-AI/Wan2.1-T2V-14B-Diffusers"
        base = WanBase(path=repository, subfolder="transformer", dtype="bfloat16")
        return cls(
            dit=DiTConfig.wan21_14b().replace(base=base, tuning=Lora(rank=128)),
            vae=WanVae(path=repository, subfolder="vae"),
            mllm=QwenVL.qwen25_3b().replace(tuning=Lora(rank=256), limits=VisionLimits(max_frames=10)),
            query=QueryConnector(reference=384),
        )

    @classmethod
    def untrained(cls, size: str) -> KiwiConfig:
        """A published size ("5b", "14b" or "1.3b") with every part at its published shapes and none of its weights.

        For counting on the meta device; the VAE and the MLLM are of the published architectures.
        """
        dit = {"5b": DiTConfig.wan22_5b, "14b": DiTConfig.wan21_14b, "1.3b": DiTConfig.wan21_1_3b}[size]()
        vae = NewVae.wan22() if size == "5b" else NewVae.wan21()
        return cls(dit=dit, vae=vae, mllm=NewQwen.qwen25_3b())

    def builders(self, mllm_dim: int) -> dict[str, Callable[[], nn.Module]]:
        """What builds each of the parts that an editor has of its own, for an MLLM of this width."""
        return {
            "dit": self.dit.build,
            "query": lambda: self.query.build(mllm_dim, self.dit.dim),
            "latent": lambda: self.latent.build(mllm_dim, self.dit.dim),
            "source": lambda: self.source.build(self.dit),
            "reference": lambda: self.reference.build(self.dit),
        }
