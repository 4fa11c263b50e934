"""Unfused attention agrees with the fused kernel, and each is used where it is faster."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kiwi.models.dit import attention
from kiwi.models.dit.attention import MAX_UNFUSED_KEYS, attend, attend_unfused


def inputs(dtype, keys):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, length, 16).to(dtype).requires_grad_() for length in (7, keys, keys))
    mask = torch.ones(2, 1, 1, keys, dtype=torch.bool)
    mask[1, ..., 5:] = False
    return q, k, v, mask


@pytest.mark.parametrize("masked", [False, True])
def test_unfused_bf16_is_as_close_to_the_exact_result_as_the_fused_kernel(masked):
    *qkv, mask = inputs(torch.bfloat16, 9)
    mask = mask if masked else None
    exact = F.scaled_dot_product_attention(*(x.double() for x in qkv), attn_mask=mask)
    unfused, fused = attend_unfused(*qkv, mask), F.scaled_dot_product_attention(*qkv, attn_mask=mask)
    assert unfused.dtype == torch.bfloat16
    assert (unfused.double() - exact).abs().max() <= 2 * (fused.double() - exact).abs().max() + 1e-3
    expected = torch.autograd.grad(exact.sum(), qkv)
    gradients = torch.autograd.grad(unfused.float().sum(), qkv)
    for gradient, exact_gradient in zip(gradients, expected, strict=True):
        assert (gradient - exact_gradient).abs().max() < 0.03


@pytest.mark.parametrize(
    ("dtype", "keys", "native", "fused"),
    [
        (torch.float32, 9, True, 1),
        (torch.bfloat16, 9, True, 0),
        (torch.bfloat16, 9, False, 1),
        (torch.bfloat16, MAX_UNFUSED_KEYS + 1, True, 1),
    ],
)
def test_the_fused_kernel_runs_wherever_it_is_faster(monkeypatch, dtype, keys, native, fused):
    calls = []
    monkeypatch.setattr(attention, "cpu_has_bf16_matmul", lambda: native)
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or kernel(*a, **k))
    attend(*inputs(dtype, keys))
    assert len(calls) == fused
