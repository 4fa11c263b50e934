"""How well can velocity be predicted without seeing the source? The best of a family of linear predictors.

Each predictor sees a block of noisy latents (SIDE x SIDE positions, of one frame or of all) and knows mean and
covariance of such blocks over *training* targets; it is measured on validation targets, in closed form. The best
block and the best shrinkage are taken at each noise level in hindsight, in favour of the blind predictor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SIDES = (1, 2, 4)
MOST = 1024
"""Numbers in a block at most: larger covariances take too long."""
SHRINKAGE = (0.0, 0.01, 0.03, 0.1, 0.3)

Kind = tuple[int, int, bool]
"""Frames of the clip, side of the block, whether a block spans all frames."""


@dataclass
class Moments:
    """Sums over n blocks of K numbers each."""

    n: int
    sum_K: Tensor
    outer_KK: Tensor

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.n + other.n, self.sum_K + other.sum_K, self.outer_KK + other.outer_KK)

    def about(self, centre_K: Tensor) -> Tensor:
        """Second moments about a centre, (K, K)."""
        mean = self.sum_K / self.n
        cross = torch.outer(mean, centre_K)
        return self.outer_KK / self.n - cross - cross.T + torch.outer(centre_K, centre_K)


class BlindPredictors:
    """Collects training and validation targets, then tells the loss at given noise levels."""

    def __init__(self) -> None:
        self.known: dict[Kind, Moments] = {}
        self.met: dict[Kind, Moments] = {}
        self.samples: dict[int, int] = {}

    def learn(self, x0_BCFHW: Tensor) -> None:
        """Take in target latents that the predictors may know."""
        _add(self.known, x0_BCFHW)

    def meet(self, x0_BCFHW: Tensor) -> None:
        """Take in target latents that they are measured on."""
        _add(self.met, x0_BCFHW)
        frames = x0_BCFHW.shape[2]
        self.samples[frames] = self.samples.get(frames, 0) + len(x0_BCFHW)

    def merge(self, other: BlindPredictors) -> None:
        """Take in what another process has met; all have learned the same."""
        for kind, moments in other.met.items():
            self.met[kind] = self.met[kind] + moments if kind in self.met else moments
        for frames, count in other.samples.items():
            self.samples[frames] = self.samples.get(frames, 0) + count

    def losses(self, sigmas_S: Tensor) -> Tensor | None:
        """Loss of the best predictor at each noise level, (S,); None where clips of some length were not learned."""
        total = torch.zeros(len(sigmas_S), dtype=torch.float64)
        for frames, count in self.samples.items():
            kinds = [kind for kind in self.known.keys() & self.met.keys() if kind[0] == frames]
            if not kinds:
                return None
            best = torch.stack([_loss(self.known[kind], self.met[kind], sigmas_S.double()) for kind in kinds])
            total += count * best.amin(dim=0)
        return total / sum(self.samples.values())


def _loss(known: Moments, met: Moments, sigmas_S: Tensor) -> Tensor:
    """Expected squared error over noise, per number, of the linear estimate of n - x_0 from (1 - s) x_0 + s n.

    Along an eigenvector with variance v the estimate is w (x_s - its mean) - mean with
    w = (s - (1 - s) v) / ((1 - s)^2 v + s^2); a target at distance d from the mean then costs
    (1 - s w)^2 + d^2 (1 + (1 - s) w)^2.
    """
    mean = known.sum_K / known.n
    variances_K, basis = torch.linalg.eigh(known.about(mean))
    squares_K = ((basis.T @ met.about(mean)) * basis.T).sum(1).clamp_min(0.0)
    s = sigmas_S[:, None, None]
    shrink = torch.tensor(SHRINKAGE, dtype=torch.float64)[:, None]
    v = (1 - shrink) * variances_K.clamp_min(0.0) + shrink * variances_K.mean()
    w = (s - (1 - s) * v) / ((1 - s) ** 2 * v + s**2)
    return ((1 - s * w) ** 2 + squares_K * (1 + (1 - s) * w) ** 2).mean(-1).amin(-1)


def _add(moments: dict[Kind, Moments], x0_BCFHW: Tensor) -> None:
    x0 = x0_BCFHW.double().cpu()
    channels, frames, height, width = x0.shape[1:]
    for side in SIDES:
        for spans in {False, frames > 1}:
            if min(height, width) < side or channels * side * side * (frames if spans else 1) > MOST:
                continue
            step = max(1, side // 2)
            blocks = x0.unfold(3, side, step).unfold(4, side, step).permute(0, 3, 4, 2, 1, 5, 6)
            rows = blocks.flatten(3).flatten(0, 2) if spans else blocks.flatten(4).flatten(0, 3)
            found = Moments(len(rows), rows.sum(0), rows.T @ rows)
            kind = (frames, side, spans)
            moments[kind] = moments[kind] + found if kind in moments else found
