import pytest

from kiwi.errors import SpecError
from kiwi.models.dit.transformer import DiTConfig

NAMES = ("dim", "ffn_dim", "num_heads", "num_layers", "freq_dim", "latent_channels")


@pytest.mark.parametrize(
    "sizes",
    [{name: value} for name in NAMES for value in (0, -2)]
    + [{"patch_size": (1, 0, 2)}, {"patch_size": (2, 2, 2)}, {"freq_dim": 3}, {"dim": 100}]
    + [{"eps": value} for value in (0.0, -1e-6, float("inf"), float("nan"))],
    ids=str,
)
def test_invalid_sizes_are_rejected_and_named(sizes):
    with pytest.raises(SpecError, match=next(iter(sizes))):
        DiTConfig(**sizes)
