"""Keyed randomness: every random number is a function of names and numbers, never of what ran before.

Training noise, sigmas, dropout and augmentation are keyed by (seed, step, sample id), initial weights
by (seed, component). One process and two, a resumed run and an uninterrupted one, and the paired arms of
an ablation therefore see the same numbers, and removing a component does not change the weights of another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


def key(*parts: str | int) -> int:
    """A 63-bit integer from names and numbers; equal parts give equal keys on every machine."""
    digest = hashlib.sha256("\x1f".join(f"{type(p).__name__}:{p}" for p in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def normal(shape: Sequence[int], *parts: str | int) -> Tensor:
    """Standard normal noise of `shape`, float32, made on the CPU so that it is the same for every device."""
    generator = torch.Generator().manual_seed(key(*parts))
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32)  # whatever the default type is


def uniform(*parts: str | int) -> float:
    """One number in [0, 1), at double precision."""
    generator = torch.Generator().manual_seed(key(*parts))
    return float(torch.rand((), generator=generator, dtype=torch.float64))


@contextmanager
def forked_rng(*parts: str | int) -> Iterator[None]:
    """Seed torch's global CPU generator by `parts` inside a block, and restore its state afterwards.

    For code that draws from the global generator, such as the constructors of modules.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(*parts))
        yield
