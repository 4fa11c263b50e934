"""The dual connector: from the MLLM's hidden states to the DiT's context.

B batch, Q queries, R reference tokens, M the MLLM's width, D the DiT's width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from kiwi.errors import SpecError
from kiwi.spec import Spec

Mode = Literal["image", "video", "reference"]
"""What an edit is asked with; each mode has a query table of its own (the paper's three)."""


@dataclass(frozen=True, kw_only=True)
class QuerySpec(Spec, ABC):
    """The family of the instruction's way into the context."""

    @abstractmethod
    def build(self, mllm_dim: int, dit_dim: int) -> QueryModule:
        """The module between an MLLM and a DiT of these widths."""


@dataclass(frozen=True, kw_only=True)
class QueryConnector(QuerySpec):
    """Learnable queries read by the MLLM, their last hidden states mapped to the DiT's width.

    Args:
        image, video, reference: number of queries in each mode.
    """

    image: int = 256
    video: int = 512
    reference: int = 768

    def __post_init__(self) -> None:
        if min(self.image, self.video, self.reference) < 1:
            raise SpecError("every mode needs at least one query", got=self)

    def build(self, mllm_dim: int, dit_dim: int) -> QueryModule:
        return QueryModule(self, mllm_dim, dit_dim)


class QueryModule(nn.Module):
    """The query tables and their connector."""

    def __init__(self, spec: QueryConnector, mllm_dim: int, dit_dim: int) -> None:
        super().__init__()
        counts = {"image": spec.image, "video": spec.video, "reference": spec.reference}
        self.queries = nn.ParameterDict(
            {mode: nn.Parameter(0.02 * torch.randn(count, mllm_dim)) for mode, count in counts.items()}
        )
        self.connector = connector(mllm_dim, dit_dim)

    def forward(self, features_BQM: Tensor) -> Tensor:
        """Instruction context (B, Q, D) from the queries' hidden states."""
        return self.connector(features_BQM)


@dataclass(frozen=True, kw_only=True)
class LatentSpec(Spec, ABC):
    """The family of the reference's way into the context."""

    @abstractmethod
    def build(self, mllm_dim: int, dit_dim: int) -> nn.Module:
        """The module between an MLLM and a DiT of these widths."""


@dataclass(frozen=True, kw_only=True)
class LatentConnector(LatentSpec):
    """The reference image's dense features (the hidden states of its visual tokens), mapped to the DiT's width."""

    def build(self, mllm_dim: int, dit_dim: int) -> nn.Module:
        return LatentModule(mllm_dim, dit_dim)


class LatentModule(nn.Module):
    """The connector of the reference's features."""

    def __init__(self, mllm_dim: int, dit_dim: int) -> None:
        super().__init__()
        self.connector = connector(mllm_dim, dit_dim)

    def forward(self, features_BRM: Tensor) -> Tensor:
        """Reference context (B, R, D)."""
        return self.connector(features_BRM)


def connector(mllm_dim: int, dit_dim: int) -> nn.Sequential:
    """Linear, tanh-GELU, Linear; the last starts at zero, so that training starts from an empty context."""
    last = nn.Linear(dit_dim, dit_dim)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(mllm_dim, dit_dim), nn.GELU(approximate="tanh"), last)
