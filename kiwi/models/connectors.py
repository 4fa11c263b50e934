"""The dual connector, which maps the MLLM's hidden states to the DiT's context.

B samples, S tokens of the prompt, Q queries, M the MLLM's width, D the DiT's width, N context tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from kiwi.encoded import TaskKind
from kiwi.errors import SpecError
from kiwi.models.mllm.prompting import Prompt, gather_tokens
from kiwi.spec import Spec, require_positive

HiddenStates = Mapping[int, Tensor]
"""The MLLM's hidden states (B, S, M) by layer; -1 is the output of the final norm."""

READOUT_MASKS: dict[str, Callable[[Prompt, int], Tensor]] = {
    "queries": lambda prompt, num_queries: prompt.queries_BS,
    "tail": lambda prompt, num_queries: prompt.tail_BS(num_queries),
}
"""For each `QueryConnector.readout`: a function to the mask (B, S) of the positions whose hidden states are read."""


class Context(NamedTuple):
    """Tokens for cross-attention."""

    tokens_BND: Tensor
    mask_BN: Tensor | None
    """False at padding; None without padding."""


class Connector(nn.Module, ABC):
    """Base class of all modules that map the MLLM's hidden states to a part of the DiT's context."""

    layers: tuple[int, ...]
    """Layers of the MLLM whose hidden states are read."""

    @abstractmethod
    def forward(self, states: HiddenStates, prompt: Prompt) -> Context:
        """Compute this part of the context."""


class QueryConnectorModule(Connector):
    """A connector that also holds the learnable queries for the MLLM's prompt."""

    @abstractmethod
    def queries_for(self, task: TaskKind) -> Tensor:
        """Learnable queries (Q, M) for a task kind."""


# --- queries ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class QuerySpec(Spec, ABC):
    """Base class of all specs of connectors from learnable queries to the context."""

    @abstractmethod
    def build(self, mllm_dim: int, dit_dim: int) -> QueryConnectorModule:
        """Build the module between an MLLM and a DiT of these widths."""


@dataclass(frozen=True, kw_only=True)
class QueryConnector(QuerySpec):
    """Learnable queries at the end of the MLLM's prompt; an MLP maps their hidden states to the DiT's width.

    Args:
        image, video, reference: number of queries for each task kind.
        readout: positions whose hidden states are read. "queries" reads the queries' positions; "tail" reads the last
            Q positions of the prompt: all queries but the first two, and the two template tokens after the queries.
            Released checkpoints need "tail".
        layers: MLLM layers whose hidden states are concatenated: -1 is the output of the final norm, 0 the embeddings,
            1 the output of the first layer, ...
    """

    image: int = 256
    video: int = 512
    reference: int = 768
    readout: Literal["queries", "tail"] = "queries"
    layers: tuple[int, ...] = (-1,)

    def __post_init__(self) -> None:
        require_positive(self, "image", "video", "reference")
        _require_layers(self.layers)

    def build(self, mllm_dim: int, dit_dim: int) -> QueryConnectorModule:
        return LearnableQueryModule(self, mllm_dim, dit_dim)


class LearnableQueryModule(QueryConnectorModule):
    """Learnable queries of each task kind, and the MLP that maps their hidden states to the context."""

    def __init__(self, spec: QueryConnector, mllm_dim: int, dit_dim: int) -> None:
        super().__init__()
        counts = {"image": spec.image, "video": spec.video, "reference": spec.reference}
        self.queries = nn.ParameterDict(
            {task: nn.Parameter(0.02 * torch.randn(count, mllm_dim)) for task, count in counts.items()}
        )
        self.connector = mlp(len(spec.layers) * mllm_dim, dit_dim)
        self.layers, self.readout_mask = spec.layers, READOUT_MASKS[spec.readout]

    def queries_for(self, task: TaskKind) -> Tensor:
        return self.queries[task]

    def forward(self, states: HiddenStates, prompt: Prompt) -> Context:
        # All samples of a batch have the same number of queries, so that no padding is needed.
        mask_BS = self.readout_mask(prompt, int(prompt.queries_BS[0].sum()))
        return connect(self.connector, states, self.layers, mask_BS)


# --- dense features of the references --------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LatentSpec(Spec, ABC):
    """Base class of all specs of connectors from the reference images to the context."""

    @abstractmethod
    def build(self, mllm_dim: int, dit_dim: int) -> Connector:
        """Build the module between an MLLM and a DiT of these widths."""


@dataclass(frozen=True, kw_only=True)
class LatentConnector(LatentSpec):
    """An MLP maps the hidden states of the reference images' visual tokens to the DiT's width.

    Args:
        layers: MLLM layers whose hidden states are read, as in `QueryConnector`.
    """

    layers: tuple[int, ...] = (-1,)

    def __post_init__(self) -> None:
        _require_layers(self.layers)

    def build(self, mllm_dim: int, dit_dim: int) -> Connector:
        return LatentConnectorModule(self, mllm_dim, dit_dim)


class LatentConnectorModule(Connector):
    """The MLP that maps hidden states of the reference images' tokens to the context."""

    def __init__(self, spec: LatentConnector, mllm_dim: int, dit_dim: int) -> None:
        super().__init__()
        self.connector = mlp(len(spec.layers) * mllm_dim, dit_dim)
        self.layers = spec.layers

    def forward(self, states: HiddenStates, prompt: Prompt) -> Context:
        return connect(self.connector, states, self.layers, prompt.references_BS)


# --- off ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class NoConnector(QuerySpec, LatentSpec):
    """Turns the query connector or the latent connector off: it adds no tokens to the context."""

    def build(self, mllm_dim: int, dit_dim: int) -> NoConnectorModule:
        return NoConnectorModule(mllm_dim, dit_dim)


class NoConnectorModule(QueryConnectorModule):
    """A connector without queries and with an empty context."""

    layers = ()

    def __init__(self, mllm_dim: int, dit_dim: int) -> None:
        super().__init__()
        self.mllm_dim, self.dit_dim = mllm_dim, dit_dim

    def queries_for(self, task: TaskKind) -> Tensor:
        return torch.zeros(0, self.mllm_dim)

    def forward(self, states: HiddenStates, prompt: Prompt) -> Context:
        batch, device = prompt.input_ids_BS.shape[0], prompt.input_ids_BS.device
        return Context(torch.zeros(batch, 0, self.dit_dim, device=device), None)


def join_contexts(references: Context, queries: Context) -> Context:
    """Concatenate both parts of the DiT's context as [reference tokens, query tokens]."""
    parts = (references, queries)
    tokens = torch.cat([part.tokens_BND for part in parts], dim=1)
    if all(part.mask_BN is None for part in parts):
        return Context(tokens, None)
    masks = [
        tokens.new_ones(part.tokens_BND.shape[:2], dtype=torch.bool) if part.mask_BN is None else part.mask_BN
        for part in parts
    ]
    return Context(tokens, torch.cat(masks, dim=1))


def mlp(in_dim: int, out_dim: int) -> nn.Sequential:
    """Build Linear, tanh-GELU, Linear; the last layer is initialised to zero, so that the context starts as zeros."""
    last = nn.Linear(out_dim, out_dim)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(in_dim, out_dim), nn.GELU(approximate="tanh"), last)


def connect(connector: nn.Module, states: HiddenStates, layers: Sequence[int], mask_BS: Tensor) -> Context:
    """Concatenate the hidden states of layers, select the positions in a mask, and apply a connector's MLP."""
    features, mask_BN = gather_tokens(torch.cat([states[layer] for layer in layers], dim=-1), mask_BS)
    dtype = next(connector.parameters()).dtype  # may differ from that of the MLLM
    return Context(connector(features.to(dtype)), mask_BN)


def _require_layers(layers: tuple[int, ...]) -> None:
    if not layers or len(set(layers)) < len(layers):
        raise SpecError("layers must name at least one MLLM layer, each once", code="invalid-layers", got=layers)
