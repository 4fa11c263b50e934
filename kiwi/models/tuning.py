"""How a pretrained part is trained: not at all, through low-rank adapters, or in full."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from kiwi.errors import SpecError
from kiwi.spec import Spec, require_positive
from kiwi.weights.adapters import is_adapter, matches_target


@dataclass(frozen=True, kw_only=True)
class TuningSpec(Spec, ABC):
    """Base class of all specs that say how a pretrained part is trained."""

    @abstractmethod
    def is_trainable(self, name: str) -> bool:
        """Whether the tensor of this name is trained."""

    def apply(self, module: nn.Module, targets: Sequence[str]) -> None:
        """Make exactly the trainable weights of a module require gradients, and add adapters if the spec has any.

        By default, adapters are added to the linear layers whose names end with one of `targets`.
        """
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(self.is_trainable(name))


@dataclass(frozen=True, kw_only=True)
class Frozen(TuningSpec):
    """All of the part's weights are frozen."""

    def is_trainable(self, name: str) -> bool:
        return False


@dataclass(frozen=True, kw_only=True)
class Full(TuningSpec):
    """All of the part's weights are trained."""

    def is_trainable(self, name: str) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class Lora(TuningSpec):
    """Low-rank adapters: W + B A with W frozen and B initialised to zero (arXiv 2106.09685).

    The factor alpha / rank is 1, as in the published training. Adapters are in float32 whatever the dtype of the
    frozen weights. Their names are those of peft, with the adapter name "default".

    Args:
        rank: rank of B A; published are 64 (MLLM, 5B), 256 (MLLM, 14B) and 128 (DiT, 14B).
        targets: name endings of the linear layers that get adapters; if empty, the part's published ones.
    """

    rank: int = 64
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_positive(self, "rank")

    def apply(self, module: nn.Module, targets: Sequence[str]) -> None:
        from peft import LoraConfig, inject_adapter_in_model  # takes 0.3 s to import, and most parts have no adapters

        targets = list(self.targets or targets)
        _require_linear(module, targets)
        config = LoraConfig(r=self.rank, lora_alpha=self.rank, lora_dropout=0.0, target_modules=targets)
        # On the device of the weights, because the default device may be another (such as the meta device).
        with next(module.parameters()).device:
            inject_adapter_in_model(config, module)
        for name, parameter in module.named_parameters():
            if is_adapter(name):
                parameter.data = parameter.data.float()
        super().apply(module, targets)

    def is_trainable(self, name: str) -> bool:
        return is_adapter(name)


def _require_linear(module: nn.Module, targets: Sequence[str]) -> None:
    """Raise an error for targets that match no module or a non-linear one; as in peft, "head" also matches "x.head"."""
    is_linear = {name: isinstance(child, nn.Linear) for name, child in module.named_modules()}
    for target in targets:
        matches = [name for name in is_linear if matches_target(name, (target,))]
        if not matches or not all(is_linear[name] for name in matches):
            endings = sorted({".".join(name.split(".")[-2:]) for name in is_linear if is_linear[name]})
            message = f"the adapter target {target!r} is not the name of linear layers"
            raise SpecError(message, code="not-linear", expected=f"endings among {endings}")
