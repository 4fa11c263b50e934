"""The two ways to compute attention say the same."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kiwi.models.dit import attention
from kiwi.models.dit.attention import SHORT, attend, attend_unfused


def given(dtype, keys):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, length, 16).to(dtype).requires_grad_() for length in (7, keys, keys))
    mask = torch.ones(2, 1, 1, keys, dtype=torch.bool)
    mask[1, ..., 5:] = False
    return q, k, v, mask


@pytest.mark.parametrize("masked", [False, True])
def test_bf16_on_a_processor_is_as_near_to_the_exact_result_as_the_fused_kernel(masked):
    *qkv, mask = given(torch.bfloat16, 9)
    mask = mask if masked else None
    exact = F.scaled_dot_product_attention(*(x.double() for x in qkv), attn_mask=mask)
    plain, fused = attend_unfused(*qkv, mask), F.scaled_dot_product_attention(*qkv, attn_mask=mask)
    assert plain.dtype == torch.bfloat16
    assert (plain.double() - exact).abs().max() <= 2 * (fused.double() - exact).abs().max() + 1e-3
    wanted = torch.autograd.grad(exact.sum(), qkv)
    for found, gradient in zip(torch.autograd.grad(plain.float().sum(), qkv), wanted, strict=True):
        assert (found - gradient).abs().max() < 0.03


@pytest.mark.parametrize(
    ("dtype", "keys", "native", "fused"),
    [
        (torch.float32, 9, True, 1),
        (torch.bfloat16, 9, True, 0),
        (torch.bfloat16, 9, False, 1),
        (torch.bfloat16, SHORT + 1, True, 1),
    ],
)
def test_the_fused_kernel_runs_wherever_it_is_the_faster(monkeypatch, dtype, keys, native, fused):
    calls = []
    monkeypatch.setattr(attention, "cpu_has_bf16_matmul", lambda: native)
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or kernel(*a, **k))
    attend(*given(dtype, keys))
    assert len(calls) == fused
