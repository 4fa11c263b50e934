"""Self- and cross-attention of the DiT, with RMS-normalised queries and keys and a 3D rotary position embedding.

B batch, L tokens in row-major (frame, row, column) order, N context tokens, D width, H heads, E = D / H channels of a
head, K = E / 2 rotated pairs of adjacent channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from kiwi.models.device import cpu_has_bf16_matmul


class Rope(NamedTuple):
    """Cosines and sines of the angle by which each channel pair of each token is rotated."""

    cos_LK: Tensor
    sin_LK: Tensor

    def float(self) -> Rope:
        """Convert the table to float32, in which `rotate` computes."""
        return Rope(self.cos_LK.float(), self.sin_LK.float())


def compute_rope(frames: int, height: int, width: int, head_dim: int, *, device: torch.device | str = "cpu") -> Rope:
    """Compute the table of a frames x height x width token grid in float64.

    As in Wan, the last head_dim // 3 channels are for columns, as many before them for rows, and the rest for frames.
    """
    lengths, third = (frames, height, width), head_dim // 3
    positions_L3 = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64, device=device) for n in lengths))
    angles = []
    for axis, dim in enumerate((head_dim - 2 * third, third, third)):
        frequency = 10000.0 ** -(torch.arange(0, dim, 2, dtype=torch.float64, device=device) / dim)
        angles.append(torch.outer(positions_L3[:, axis], frequency))
    angles_LK = torch.cat(angles, dim=1)
    return Rope(angles_LK.cos(), angles_LK.sin())


def rotate(x_BHLE: Tensor, rope: Rope) -> Tensor:
    """Rotate each pair of adjacent channels of every head, in float32; the result has the dtype of `x_BHLE`."""
    x, y = x_BHLE.float().unflatten(-1, (-1, 2)).unbind(-1)
    rotated = torch.stack((x * rope.cos_LK - y * rope.sin_LK, x * rope.sin_LK + y * rope.cos_LK), dim=-1)
    return rotated.flatten(-2).to(x_BHLE.dtype)


class RMSNorm(nn.Module):
    """RMS norm with a learned weight, computed in float32 over the last axis (all heads together, as in Wan)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise a tensor of any leading shape."""
        return F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype) * self.weight.to(x.dtype)


class KeysValues(NamedTuple):
    """Keys and values of one block's attention; those of the context are computed once per edit."""

    keys_BHNE: Tensor
    values_BHNE: Tensor
    mask_B11N: Tensor | None
    """False at padding; None without padding."""


MAX_UNFUSED_KEYS = 1024
"""Largest number of keys for which bf16 attention on a CPU is computed without the fused kernel."""


def attend(q_BHLE: Tensor, keys_BHNE: Tensor, values_BHNE: Tensor, mask: Tensor | None) -> Tensor:
    """Compute softmax attention (B, H, L, E) with the kernel that is fastest on the device.

    `mask` is True where a key may be attended to, and broadcasts to (B, H, L, N).
    """
    # PyTorch's fused CPU kernel is slow in bf16, above all in the backward pass: without it a DiT of 1.15 M parameters
    # trained at 72 instead of 25 samples/s on one core with avx512_bf16. In float32, and on CPUs without native bf16,
    # the fused kernel is faster (benchmarks/speed/attention.py measures it).
    is_cpu_bf16 = q_BHLE.device.type == "cpu" and q_BHLE.dtype == torch.bfloat16
    if is_cpu_bf16 and keys_BHNE.shape[2] <= MAX_UNFUSED_KEYS and cpu_has_bf16_matmul():
        return attend_unfused(q_BHLE, keys_BHNE, values_BHNE, mask)
    return F.scaled_dot_product_attention(q_BHLE, keys_BHNE, values_BHNE, attn_mask=mask)


def attend_unfused(q_BHLE: Tensor, keys_BHNE: Tensor, values_BHNE: Tensor, mask: Tensor | None) -> Tensor:
    """Compute attention like `attend`, by two matrix products and a float32 softmax; needs memory for all scores."""
    scores_BHLN = (q_BHLE @ keys_BHNE.transpose(-1, -2)).float() * q_BHLE.shape[-1] ** -0.5
    if mask is not None:
        scores_BHLN = scores_BHLN.masked_fill(~mask, float("-inf"))
    return scores_BHLN.softmax(dim=-1).to(values_BHNE.dtype) @ values_BHNE


class _Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(dim, eps), RMSNorm(dim, eps)

    def _split_heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "b l (h e) -> b h l e", h=self.num_heads)

    def _attend(self, q_BHLE: Tensor, kv: KeysValues) -> Tensor:
        keys, values = kv.keys_BHNE.to(q_BHLE.dtype), kv.values_BHNE.to(q_BHLE.dtype)
        attended = attend(q_BHLE, keys, values, kv.mask_B11N)
        return self.o(rearrange(attended, "b h l e -> b l (h e)"))


class SelfAttention(_Attention):
    """Attention among the tokens of the sequence, with rotary position embedding."""

    def forward(self, x_BLD: Tensor, rope: Rope) -> Tensor:
        """Attend among the tokens (B, L, D)."""
        q = rotate(self._split_heads(self.norm_q(self.q(x_BLD))), rope)
        k = rotate(self._split_heads(self.norm_k(self.k(x_BLD))), rope)
        return self._attend(q, KeysValues(k, self._split_heads(self.v(x_BLD)), None))


class CrossAttention(_Attention):
    """Attention from the tokens of the sequence to the connectors' context."""

    def project(self, context_BND: Tensor, mask_BN: Tensor | None) -> KeysValues:
        """Compute keys and values of the context, which are the same in all denoising steps."""
        context_BND = context_BND.to(self.k.weight.dtype)  # connectors may have another dtype than the DiT
        keys, values = self._split_heads(self.norm_k(self.k(context_BND))), self._split_heads(self.v(context_BND))
        return KeysValues(keys, values, None if mask_BN is None else mask_BN[:, None, None, :])

    def forward(self, x_BLD: Tensor, context: KeysValues) -> Tensor:
        """Attend from the tokens (B, L, D) to the projected context."""
        return self._attend(self._split_heads(self.norm_q(self.q(x_BLD))), context)
