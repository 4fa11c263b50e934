"""Check whether a model uses its source, by comparing three validation losses at fixed noise levels.

`loss` is computed with the correct source, and `loss_swapped` with that of another sample. `loss_blind` is the lowest
loss of linear predictors that know statistics of the training targets, but not the source. If the model uses its
source, `loss` is lower than the other two.

Each blind predictor gets a block of noisy latents (side x side positions, of one frame or of all frames), and knows the
mean and covariance of such blocks over the *training* targets; its loss on the validation targets has a closed form.
At each noise level, the block kind and covariance shrinkage with the lowest validation loss are taken, which favours
the blind predictor.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

SIGMAS = (0.3, 0.5, 0.65, 0.75, 0.83, 0.9, 0.95, 0.99)
"""Noise levels of validation, denser where the shifted schedule places more of its steps."""

MEAN_LOSSES = ("loss", "loss_swapped", "loss_blind")
"""Names of the three losses that are means over all noise levels."""

BLOCK_SIDES = (1, 2, 4)  # in latent positions
MAX_BLOCK_SIZE = 1024
"""Maximum number of values in a block: the covariance of larger ones takes too long."""
SHRINKAGE = (0.0, 0.01, 0.03, 0.1, 0.3)
"""Candidate shrinkages of the covariance towards a multiple of the identity."""

BlockKind = tuple[int, int, bool]
"""Number of frames of the clip, side of the block, and whether the block spans all frames."""


class SourceCheck:
    """Accumulates the losses of a validation run (B samples, S = len(SIGMAS) noise levels).

    It can use moments of the `training` targets that an earlier check has computed.
    """

    def __init__(self, training: dict[BlockKind, Moments] | None = None) -> None:
        self.losses_S: list[Tensor] = []
        self.tasks: list[str] = []
        self.swapped_losses_S: list[Tensor] = []
        self.blind_predictors = BlindPredictors(training)

    def add(self, task: str, x0_BCFHW: Tensor, losses_BS: Tensor, swapped_losses_BS: Tensor | None) -> None:
        """Add a batch: target latents, and losses at each noise level with the correct and with a swapped source."""
        self.tasks += [task] * len(losses_BS)
        self.losses_S += list(losses_BS.double().cpu())
        self.swapped_losses_S += [] if swapped_losses_BS is None else list(swapped_losses_BS.double().cpu())
        self.blind_predictors.add_validation(x0_BCFHW)

    def gather(self) -> None:
        """Add the batches of the other processes, so that all report the same losses."""
        if not (dist.is_available() and dist.is_initialized()):
            return
        checks: list[SourceCheck] = [self] * dist.get_world_size()
        dist.all_gather_object(checks, self)
        for rank, check in enumerate(checks):
            if rank != dist.get_rank():
                self.tasks += check.tasks
                self.losses_S += check.losses_S
                self.swapped_losses_S += check.swapped_losses_S
                self.blind_predictors.merge(check.blind_predictors)

    def summarize(self) -> dict[str, float]:
        """Mean losses over samples: over all noise levels, at each level, and by task. Empty before any batch."""
        if not self.losses_S:
            return {}
        mean_S = torch.stack(self.losses_S).mean(0)
        summary = {"loss": float(mean_S.mean())}
        summary |= {f"loss_at_{sigma:g}": float(loss) for sigma, loss in zip(SIGMAS, mean_S, strict=True)}
        for task in sorted(set(self.tasks)):
            task_losses_S = [loss_S for loss_S, kind in zip(self.losses_S, self.tasks, strict=True) if kind == task]
            summary[f"loss_{task}"] = float(torch.stack(task_losses_S).mean())
        if self.swapped_losses_S:
            summary["loss_swapped"] = float(torch.stack(self.swapped_losses_S).mean())
        if (blind_S := self.blind_predictors.compute_losses(torch.tensor(SIGMAS))) is not None:
            summary["loss_blind"] = float(blind_S.mean())
            summary |= {f"loss_blind_at_{s:g}": float(loss) for s, loss in zip(SIGMAS, blind_S, strict=True)}
        return summary


@dataclass
class Moments:
    """Sums over n blocks of K values each: of the blocks, and of their outer products."""

    n: int
    sum_K: Tensor
    outer_KK: Tensor

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.n + other.n, self.sum_K + other.sum_K, self.outer_KK + other.outer_KK)

    def second_moments_about(self, centre_K: Tensor) -> Tensor:
        """Second moments about `centre_K`, (K, K)."""
        mean = self.sum_K / self.n
        cross = torch.outer(mean, centre_K)
        return self.outer_KK / self.n - cross - cross.T + torch.outer(centre_K, centre_K)


class BlindPredictors:
    """Linear predictors of the velocity that do not use the source, given by the moments of the training targets."""

    def __init__(self, training: dict[BlockKind, Moments] | None = None) -> None:
        self.training: dict[BlockKind, Moments] = {} if training is None else training
        self.validation: dict[BlockKind, Moments] = {}
        self.sample_counts: Counter[int] = Counter()
        """Number of validation samples by their number of frames."""

    def add_training(self, x0_BCFHW: Tensor) -> None:
        """Add target latents that the predictors are fitted to."""
        _add_blocks(self.training, x0_BCFHW)

    def add_validation(self, x0_BCFHW: Tensor) -> None:
        """Add target latents that the predictors are evaluated on."""
        _add_blocks(self.validation, x0_BCFHW)
        self.sample_counts[x0_BCFHW.shape[2]] += len(x0_BCFHW)

    def merge(self, other: BlindPredictors) -> None:
        """Add the validation targets of another process; all processes have the same training targets."""
        for kind, moments in other.validation.items():
            self.validation[kind] = self.validation[kind] + moments if kind in self.validation else moments
        self.sample_counts.update(other.sample_counts)

    def compute_losses(self, sigmas_S: Tensor) -> Tensor | None:
        """Loss of the best predictor at each noise level, (S,); None if a clip length has no training targets."""
        total = torch.zeros(len(sigmas_S), dtype=torch.float64)
        for frames, count in self.sample_counts.items():
            kinds = [kind for kind in self.training.keys() & self.validation.keys() if kind[0] == frames]
            if not kinds:
                return None
            losses = [_lowest_loss(self.training[kind], self.validation[kind], sigmas_S.double()) for kind in kinds]
            total += count * torch.stack(losses).amin(dim=0)
        return total / sum(self.sample_counts.values())


def _lowest_loss(training: Moments, validation: Moments, sigmas_S: Tensor) -> Tensor:
    """Lowest expected squared error per value at each noise level, (S,), over the candidate shrinkages.

    The predictor estimates the velocity n - x_0 from x_s = (1 - s) x_0 + s n, where n is noise. Along an eigenvector
    of the training covariance with variance v, the best linear estimate is w (x_s - E[x_s]) - E[x_0] with
    w = (s - (1 - s) v) / ((1 - s)^2 v + s^2). A target at distance d from E[x_0] then has the expected squared error
    (1 - s w)^2 + d^2 (1 + (1 - s) w)^2.
    """
    mean = training.sum_K / training.n
    variances_K, basis = torch.linalg.eigh(training.second_moments_about(mean))
    squares_K = ((basis.T @ validation.second_moments_about(mean)) * basis.T).sum(1).clamp_min(0.0)
    s = sigmas_S[:, None, None]
    shrink = torch.tensor(SHRINKAGE, dtype=torch.float64)[:, None]
    v = (1 - shrink) * variances_K.clamp_min(0.0) + shrink * variances_K.mean()
    w = (s - (1 - s) * v) / ((1 - s) ** 2 * v + s**2)
    return ((1 - s * w) ** 2 + squares_K * (1 + (1 - s) * w) ** 2).mean(-1).amin(-1)


def _add_blocks(moments: dict[BlockKind, Moments], x0_BCFHW: Tensor) -> None:
    """Add the moments of all blocks of target latents, by kind of block."""
    x0 = x0_BCFHW.double().cpu()
    channels, frames, height, width = x0.shape[1:]
    for side in BLOCK_SIDES:
        for spans_frames in {False, frames > 1}:
            if min(height, width) < side or channels * side * side * (frames if spans_frames else 1) > MAX_BLOCK_SIZE:
                continue
            step = max(1, side // 2)
            blocks = x0.unfold(3, side, step).unfold(4, side, step).permute(0, 3, 4, 2, 1, 5, 6)
            rows = blocks.flatten(3).flatten(0, 2) if spans_frames else blocks.flatten(4).flatten(0, 3)
            added = Moments(len(rows), rows.sum(0), rows.T @ rows)
            kind = (frames, side, spans_frames)
            moments[kind] = moments[kind] + added if kind in moments else added
