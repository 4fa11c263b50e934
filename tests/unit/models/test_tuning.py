import pytest
import torch

from kiwi.errors import SpecError
from kiwi.models.dit.transformer import DiTConfig
from kiwi.models.tuning import Frozen, Full, Lora
from kiwi.weights.adapters import is_adapter, merge_adapters, without_base_layer

SMALL = DiTConfig(dim=48, ffn_dim=64, num_heads=2, num_layers=2, freq_dim=16, latent_channels=4)


def trainable(module):
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def test_frozen_trains_no_weights_full_trains_all_and_lora_the_adapters():
    assert trainable(SMALL.replace(tuning=Frozen()).build()) == set()
    full = SMALL.build()
    assert trainable(full) == set(full.state_dict())
    dit = SMALL.replace(tuning=Lora(rank=3)).build()
    assert trainable(dit) == {name for name in dit.state_dict() if is_adapter(name)}
    for spec, module in ((Frozen(), full), (Full(), full), (Lora(rank=3), dit)):
        assert {name for name in module.state_dict() if spec.is_trainable(name)} == trainable(
            SMALL.replace(tuning=spec).build()
        )


def test_a_dit_gets_the_published_adapters():
    dit = SMALL.replace(tuning=Lora(rank=3)).build()
    shapes = {name: tuple(t.shape) for name, t in dit.state_dict().items() if is_adapter(name)}
    assert len(shapes) == 2 * (2 * 4 + 2) * 2  # blocks x (attentions x projections + feed-forward) x (A, B)
    assert shapes["blocks.1.cross_attn.o.lora_A.default.weight"] == (3, 48)
    assert shapes["blocks.0.ffn.0.lora_B.default.weight"] == (64, 3)


def test_untrained_adapters_leave_outputs_and_all_other_initial_weights_unchanged():
    torch.manual_seed(1)
    plain = SMALL.build()
    torch.manual_seed(1)
    adapted = SMALL.replace(tuning=Lora(rank=3)).build()
    base = {without_base_layer(n): t for n, t in adapted.state_dict().items() if not is_adapter(n)}
    assert base.keys() == plain.state_dict().keys()
    assert all(torch.equal(base[name], tensor) for name, tensor in plain.state_dict().items())
    x = torch.randn(2, 5, 48)
    assert torch.equal(adapted.blocks[0].self_attn.q(x), plain.blocks[0].self_attn.q(x))


def test_merged_adapters_give_the_same_outputs_as_separate_ones():
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
    original_output = plain.blocks[1].ffn(torch.ones(1, 48))
    plain.load_state_dict(merged)
    x = torch.randn(2, 5, 48)
    assert torch.allclose(adapted.blocks[1].ffn(x), plain.blocks[1].ffn(x), atol=1e-4)
    assert not torch.allclose(original_output, plain.blocks[1].ffn(torch.ones(1, 48)), atol=1e-2)


def test_adapters_stay_in_float32_beside_bf16_weights():
    module = torch.nn.Sequential(torch.nn.Linear(4, 4)).bfloat16()
    Lora(rank=2).apply(module, ["0"])
    types = {name: parameter.dtype for name, parameter in module.named_parameters()}
    assert {d for n, d in types.items() if is_adapter(n)} == {torch.float32}
    assert {d for n, d in types.items() if not is_adapter(n)} == {torch.bfloat16}
    assert module(torch.ones(1, 4).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "target", ["q_proj", "head"]
)  # a missing module, and one that contains a linear layer, head.head
def test_a_target_that_is_not_linear_is_rejected_with_the_possible_names(target):
    with pytest.raises(SpecError, match=rf"{target}.*self_attn\.q") as caught:
        SMALL.replace(tuning=Lora(targets=(target,))).build()
    assert caught.value.code == "not-linear"


def test_a_rank_of_zero_is_rejected():
    with pytest.raises(SpecError, match="rank"):
        Lora(rank=0)
