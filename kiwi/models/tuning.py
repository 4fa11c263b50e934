"""How a pretrained part learns: not at all, through low-rank adapters, or in full."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from kiwi.errors import SpecError
from kiwi.spec import Spec
from kiwi.weights.adapters import is_adapter, matches_target


@dataclass(frozen=True, kw_only=True)
class TuningSpec(Spec, ABC):
    """The family of ways in which a pretrained part learns."""

    @abstractmethod
    def apply(self, module: nn.Module, targets: Sequence[str]) -> None:
        """Prepare a module that holds its pretrained weights; afterwards, what requires gradients is what learns.

        Args:
            module: changed in place.
            targets: names of the linear layers that adapters go to unless the spec names others.
        """

    @abstractmethod
    def is_trainable(self, name: str) -> bool:
        """Whether a tensor of the prepared module may differ from the pretrained one, by its name."""


@dataclass(frozen=True, kw_only=True)
class Frozen(TuningSpec):
    """The part keeps its weights."""

    def apply(self, module: nn.Module, targets: Sequence[str]) -> None:
        module.requires_grad_(False)

    def is_trainable(self, name: str) -> bool:
        return False


@dataclass(frozen=True, kw_only=True)
class Full(TuningSpec):
    """All of the part's weights learn."""

    def apply(self, module: nn.Module, targets: Sequence[str]) -> None:
        module.requires_grad_(True)

    def is_trainable(self, name: str) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class Lora(TuningSpec):
    """Low-rank adapters, W + B A with B zero at the start; the weights themselves stay (arXiv 2106.09685).

    The factor alpha / rank is 1, as in the published training. Adapters are kept in float32 whatever the type of
    the weights. Their names are peft's, with the adapter called "default".

    Args:
        rank: of A and B; published are 64 (MLLM, 5B), 256 (MLLM, 14B) and 128 (DiT, 14B).
        targets: name endings of the linear layers that get adapters; none for the part's usual ones.
    """

    rank: int = 64
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise SpecError("the rank of an adapter is at least 1", got=self.rank)

    def apply(self, module: nn.Module, targets: Sequence[str]) -> None:
        wanted = list(self.targets or targets)
        modules = dict(module.named_modules())
        # Every module that peft will take for a target, which must all be linear: "head" also ends "head.head".
        meant = {t: [child for name, child in modules.items() if matches_target(name, (t,))] for t in wanted}
        if wrong := [t for t, found in meant.items() if not found or not all(isinstance(m, nn.Linear) for m in found)]:
            linear = (name for name, child in modules.items() if isinstance(child, nn.Linear))
            endings = sorted({".".join(name.split(".")[-2:]) for name in linear})
            raise SpecError("there is no linear layer for an adapter", got=wrong, wanted=f"endings among {endings}")
        module.requires_grad_(False)
        config = LoraConfig(r=self.rank, lora_alpha=self.rank, lora_dropout=0.0, target_modules=wanted)
        # Where the weights are, whatever the default device is (a meta device above all).
        with next(module.parameters()).device:
            inject_adapter_in_model(config, module)
        for name, parameter in module.named_parameters():
            if is_adapter(name):
                parameter.data = parameter.data.float()
                parameter.requires_grad_(True)

    def is_trainable(self, name: str) -> bool:
        return is_adapter(name)
