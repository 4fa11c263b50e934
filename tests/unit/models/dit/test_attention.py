"""Unfused attention agrees with the fused kernel, each is used where it is faster; positions are rotated as in Wan."""

import pytest
import torch
import torch.nn.functional as F

from kiwi.models.dit import attention
from kiwi.models.dit.attention import MAX_UNFUSED_KEYS, attend, attend_unfused, compute_rope, rotate


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


def test_real_arithmetic_equals_complex_multiplication():
    table = compute_rope(2, 3, 4, 24)
    x = torch.randn(2, 3, 24, 24, dtype=torch.float32)
    rotated = torch.view_as_complex(x.double().unflatten(-1, (-1, 2))) * torch.complex(table.cos_LK, table.sin_LK)
    assert torch.allclose(rotate(x, table.float()), torch.view_as_real(rotated).flatten(-2).float(), atol=1e-6)


def test_scores_depend_on_relative_positions_only():
    table = compute_rope(5, 1, 1, 24).float()
    q, k = torch.randn(24), torch.randn(24)
    rotated_q, rotated_k = (rotate(v.expand(1, 1, 5, 24), table)[0, 0] for v in (q, k))
    scores = rotated_q @ rotated_k.T
    assert torch.allclose(scores[0, 2], scores[2, 4], atol=1e-5)
    assert not torch.allclose(scores[0, 2], scores[0, 3], atol=1e-3)


def test_channels_are_split_over_frame_height_and_width_as_wan_does():
    """Head width 32: 12 channels for time, 10 for each side, so 6 + 5 + 5 pairs."""
    table = compute_rope(3, 1, 1, 32)
    assert (table.sin_LK[:, 6:] == 0).all()
    assert (table.sin_LK[1:, :6] != 0).all()
