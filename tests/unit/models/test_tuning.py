import pytest
import torch

from kiwi.errors import SpecError
from kiwi.models.dit.transformer import DiTConfig
from kiwi.models.tuning import Frozen, Full, Lora
from kiwi.weights.adapters import is_adapter, merge_adapters, without_base_layer

SMALL = DiTConfig(dim=48, ffn_dim=64, num_heads=2, num_layers=2, freq_dim=16, latent_channels=4)


def learning(module):
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def test_frozen_full_and_adapters_learn_nothing_all_and_the_adapters():
    assert learning(SMALL.replace(tuning=Frozen()).build()) == set()
    full = SMALL.build()
    assert learning(full) == set(full.state_dict())
    dit = SMALL.replace(tuning=Lora(rank=3)).build()
    assert learning(dit) == {name for name in dit.state_dict() if is_adapter(name)}
    for spec, module in ((Frozen(), full), (Full(), full), (Lora(rank=3), dit)):
        assert {name for name in module.state_dict() if spec.is_trainable(name)} == learning(
            SMALL.replace(tuning=spec).build()
        )


def test_a_dit_gets_the_published_adapters():
    dit = SMALL.replace(tuning=Lora(rank=3)).build()
    shapes = {name: tuple(t.shape) for name, t in dit.state_dict().items() if is_adapter(name)}
    assert len(shapes) == 2 * (2 * 4 + 2) * 2  # blocks x (attentions x projections + feed-forward) x (A, B)
    assert shapes["blocks.1.cross_attn.o.lora_A.default.weight"] == (3, 48)
    assert shapes["blocks.0.ffn.0.lora_B.default.weight"] == (64, 3)


def test_adapters_change_nothing_until_they_learn_and_move_no_other_initial_weight():
    torch.manual_seed(1)
    plain = SMALL.build()
    torch.manual_seed(1)
    adapted = SMALL.replace(tuning=Lora(rank=3)).build()
    base = {without_base_layer(n): t for n, t in adapted.state_dict().items() if not is_adapter(n)}
    assert base.keys() == plain.state_dict().keys()
    assert all(torch.equal(base[name], tensor) for name, tensor in plain.state_dict().items())
    x = torch.randn(2, 5, 48)
    assert torch.equal(adapted.blocks[0].self_attn.q(x), plain.blocks[0].self_attn.q(x))


def test_merged_adapters_give_what_adapters_beside_the_weights_give():
    adapted = SMALL.replace(tuning=Lora(rank=3)).build()
    for name, parameter in adapted.named_parameters():
        if is_adapter(name):
            torch.nn.init.normal_(parameter)
    state = adapted.state_dict()
    merged = merge_adapters(
        {without_base_layer(n): t for n, t in state.items() if not is_adapter(n)},
        {n: t for n, t in state.items() if is_adapter(n)},
    )
    plain = SMALL.build()
    before = plain.blocks[1].ffn(torch.ones(1, 48))
    plain.load_state_dict(merged)
    x = torch.randn(2, 5, 48)
    assert torch.allclose(adapted.blocks[1].ffn(x), plain.blocks[1].ffn(x), atol=1e-4)
    assert not torch.allclose(before, plain.blocks[1].ffn(torch.ones(1, 48)), atol=1e-2)


def test_adapters_stay_in_float32_beside_bf16_weights():
    module = torch.nn.Sequential(torch.nn.Linear(4, 4)).bfloat16()
    Lora(rank=2).apply(module, ["0"])
    types = {name: parameter.dtype for name, parameter in module.named_parameters()}
    assert {d for n, d in types.items() if is_adapter(n)} == {torch.float32}
    assert {d for n, d in types.items() if not is_adapter(n)} == {torch.bfloat16}
    assert module(torch.ones(1, 4).bfloat16()).dtype == torch.bfloat16


def test_a_target_that_does_not_exist_is_refused_with_the_names():
    with pytest.raises(SpecError, match=r"no linear layer.*q_proj.*self_attn\.q"):
        SMALL.replace(tuning=Lora(targets=("q_proj",))).build()
    with pytest.raises(SpecError, match=r"no linear layer.*'head'"):  # a module that has one, head.head
        SMALL.replace(tuning=Lora(targets=("head",))).build()
    with pytest.raises(SpecError, match="rank"):
        Lora(rank=0)
