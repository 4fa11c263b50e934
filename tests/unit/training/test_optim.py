import pytest
import torch

from kiwi.errors import SpecError
from kiwi.models.kiwi import KiwiEdit
from kiwi.training.optim import AdamW, is_decayed


def test_only_matrices_are_decayed(tiny_config):
    named = dict(KiwiEdit(tiny_config).named_parameters())
    assert is_decayed("dit.blocks.0.ffn.0.weight", named["dit.blocks.0.ffn.0.weight"])
    for name in ("dit.blocks.0.modulation", "dit.head.modulation", "query.queries.video", "dit.blocks.0.norm3.weight"):
        assert not is_decayed(name, named[name]), name


def test_frozen_parameters_are_in_no_group(tiny_config):
    model = KiwiEdit(tiny_config)
    optimizer, _ = AdamW().build(model.named_parameters(), 10)
    optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert optimized == {id(p) for p in model.parameters() if p.requires_grad}
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]


def test_warm_up_rises_linearly_from_the_first_step_to_the_peak():
    spec = AdamW(warmup_steps=4)
    assert [spec.lr_factor(step, 100) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_cosine_ends_at_a_tenth():
    spec = AdamW(warmup_steps=10, schedule="cosine")
    assert spec.lr_factor(10, 110) == pytest.approx(1.0)
    assert spec.lr_factor(60, 110) == pytest.approx(0.55)
    assert spec.lr_factor(110, 110) == pytest.approx(0.1)


def test_empty_groups_are_left_out():
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer, _ = AdamW().build([("w", weight)], 10)
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("settings", [{"lr": 0.0}, {"warmup_steps": -1}, {"weight_decay": -0.1}])
def test_settings_outside_their_range_are_rejected(settings):
    with pytest.raises(SpecError, check=lambda error: error.code == "out-of-range"):
        AdamW(**settings)
