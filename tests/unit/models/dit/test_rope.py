import torch

from kiwi.models.dit.rope import rope_table, rotate


def test_real_arithmetic_equals_complex_multiplication():
    table = rope_table(2, 3, 4, 24)
    x = torch.randn(2, 3, 24, 24, dtype=torch.float32)
    rotated = torch.view_as_complex(x.double().unflatten(-1, (-1, 2))) * torch.complex(table.cos_LK, table.sin_LK)
    assert torch.allclose(rotate(x, table.float()), torch.view_as_real(rotated).flatten(-2).float(), atol=1e-6)


def test_scores_depend_on_relative_positions_only():
    table = rope_table(5, 1, 1, 24).float()
    q, k = torch.randn(24), torch.randn(24)
    rotated_q, rotated_k = (rotate(v.expand(1, 1, 5, 24), table)[0, 0] for v in (q, k))
    scores = rotated_q @ rotated_k.T
    assert torch.allclose(scores[0, 2], scores[2, 4], atol=1e-5)
    assert not torch.allclose(scores[0, 2], scores[0, 3], atol=1e-3)


def test_channels_are_split_over_frame_height_and_width_as_wan_does():
    """Head width 32: 12 channels for time, 10 for each side, so 6 + 5 + 5 pairs."""
    table = rope_table(3, 1, 1, 32)
    assert (table.sin_LK[:, 6:] == 0).all()
    assert (table.sin_LK[1:, :6] != 0).all()
