"""Initial weights of a DiT: random, or those of a Wan model given by path or hub id."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import nn

from kiwi.errors import CheckpointError
from kiwi.spec import Spec
from kiwi.weights.files import State, read_weights
from kiwi.weights.hub import locate
from kiwi.weights.lora_files import describe_lora
from kiwi.weights.names import TEXT_EMBEDDING, dit_from_diffusers, is_diffusers_dit, rename
from kiwi.weights.strict import load_strict

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class BaseSpec(Spec, ABC):
    """Base class of all specs of a DiT's initial weights."""

    @abstractmethod
    def build(self, construct: Callable[[], Module]) -> Module:
        """Construct a module with these weights."""


@dataclass(frozen=True, kw_only=True)
class NewBase(BaseSpec):
    """Random initialisation."""

    def build(self, construct: Callable[[], Module]) -> Module:
        return construct()


@dataclass(frozen=True, kw_only=True)
class WanBase(BaseSpec):
    """Weights of a Wan model's transformer, under the original tensor names or those of diffusers.

    Args:
        path: folder or file of the transformer's weights, or a hub id such as "Wan-AI/Wan2.2-TI2V-5B-Diffusers".
        subfolder: subfolder of `path` that holds the transformer ("transformer" in repositories for diffusers).
        dtype: dtype of the weights; use bfloat16 for frozen and float32 for trainable ones.
    """

    path: str
    subfolder: str = ""
    dtype: Literal["float32", "bfloat16"] = "float32"

    def build(self, construct: Callable[[], Module]) -> Module:
        with torch.device("meta"):
            module = construct()
        state = read_wan_transformer(self.path, self.subfolder)
        # Copied, because overwriting a memory-mapped file crashes the process.
        copies = {name: tensor.to(getattr(torch, self.dtype), copy=True) for name, tensor in state.items()}
        load_strict(module, copies, f"the Wan base model {self.path}", assign=True)
        return module


def read_wan_transformer(path: str, subfolder: str = "") -> State:
    """Read a Wan transformer's weights under the original names, without the text embedding, which kiwi does not use.

    Raises:
        CheckpointError: if there is no such model, or its weights are not those of a Wan transformer.
    """
    folder = locate(path, "Wan base model", "download the model or correct the path", subfolder=subfolder)
    state = read_weights(folder)
    if is_diffusers_dit(state):
        state = rename(state, dit_from_diffusers, str(folder))
    if "patch_embedding.weight" not in state or "blocks.0.self_attn.q.weight" not in state:
        if (lora := describe_lora(state)) and not any(
            name.endswith(("norm_q.weight", ".modulation")) for name in state
        ):
            raise CheckpointError(
                f"{folder} holds adapters, not the weights of a Wan transformer",
                code="not-a-wan-transformer",
                got=lora,
                fix="give it as SRC of the format kiwi-upstream, and the Wan weights that it was trained for as --base",
            )
        got = ", ".join(sorted(state)[:5]) or "no tensors"
        expected = "tensors named blocks.0.self_attn.q.weight ..., or diffusers' blocks.0.attn1.to_q.weight ..."
        message = f"{folder} does not hold a Wan transformer"
        raise CheckpointError(message, code="not-a-wan-transformer", got=got, expected=expected)
    return {name: tensor for name, tensor in state.items() if not name.startswith(TEXT_EMBEDDING)}
