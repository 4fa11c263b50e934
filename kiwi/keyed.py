"""Keyed randomness: every random number is a function of its key, never of the numbers drawn before.

Training noise, sigmas, dropout and augmentation are keyed by (seed, step, sample id), initial weights by
(seed, component). The same numbers are therefore drawn with one process and with two, in a resumed and in an
uninterrupted run, and in the paired arms of an ablation; removing a component does not change another's weights.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


def key(*parts: str | int) -> int:
    """Hash names and numbers to a 63-bit integer; equal parts give equal keys on every machine."""
    digest = hashlib.sha256("\x1f".join(f"{type(p).__name__}:{p}" for p in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def normal(shape: Sequence[int], *parts: str | int) -> Tensor:
    """Draw standard normal noise of `shape` in float32, on the CPU so that it is the same for every device."""
    generator = torch.Generator().manual_seed(key(*parts))
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32)  # not the default dtype


def uniform(*parts: str | int) -> float:
    """Draw one number from [0, 1), in double precision."""
    generator = torch.Generator().manual_seed(key(*parts))
    return float(torch.rand((), generator=generator, dtype=torch.float64))


@contextmanager
def forked_rng(*parts: str | int) -> Iterator[None]:
    """Seed PyTorch's global CPU generator by `parts` inside a block, and restore its state afterwards.

    For code that draws from the global generator, such as the constructors of modules.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(*parts))
        yield
