import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

from kiwi.errors import SpecError
from kiwi.training.muon import Muon as Optimizer
from kiwi.training.muon import orthogonalize
from kiwi.training.optim import Muon, is_hidden_weight


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv3d(3, 16, 3, padding=1), nn.Conv3d(16, 8, 3, padding=1), nn.Flatten(), nn.Linear(64, 12)
    )


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (16, 16)])
def test_singular_values_become_nearly_equal(shape):
    torch.manual_seed(0)
    left, right = torch.randn(shape[0], 8), torch.randn(8, shape[1])
    matrix = left @ torch.diag(torch.logspace(0, -1, 8)) @ right  # one direction is ten times another
    values = torch.linalg.svdvals(orthogonalize(matrix))[:8]
    assert 0.5 < values.min() <= values.max() < 1.3
    assert torch.linalg.svdvals(matrix)[:8].max() > 5 * torch.linalg.svdvals(matrix)[:8].min()


def test_a_zero_gradient_changes_nothing():
    assert torch.equal(orthogonalize(torch.zeros(4, 8)), torch.zeros(4, 8))


def test_hidden_layers_are_orthogonalized_but_not_embeddings_and_biases():
    model = network()
    optimizer, _ = Muon(lr=1.0).build(model.named_parameters(), 10)
    orthogonal = {id(p) for group in optimizer.param_groups if group["orthogonal"] for p in group["params"]}
    assert {name for name, p in model.named_parameters() if id(p) in orthogonal} == {"1.weight", "3.weight"}
    assert not is_hidden_weight("model.embed_tokens.weight", nn.Parameter(torch.zeros(500, 64)))
    assert not is_hidden_weight("norm.gamma", nn.Parameter(torch.zeros(64, 1, 1, 1)))


def test_an_orthogonal_step_has_the_size_of_adamws():
    weight = nn.Parameter(torch.zeros(16, 8, 3, 3, 3))
    optimizer = Optimizer([{"params": [weight], "orthogonal": True}], lr=0.1)
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.2 * 0.1, rel=0.3)


def test_other_parameters_are_updated_as_by_torchs_adamw():
    kiwi_model, torch_model = network(), network()
    settings = {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.1}
    first = Optimizer([{"params": list(kiwi_model.parameters())}], **settings)
    second = torch.optim.AdamW(torch_model.parameters(), **settings)
    x = torch.randn(2, 3, 2, 2, 2)
    for _ in range(5):
        for model, optimizer in ((kiwi_model, first), (torch_model, second)):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    for a, b in zip(kiwi_model.parameters(), torch_model.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_muon_resumes_from_its_state_bit_for_bit():
    x = torch.randn(4, 3, 2, 2, 2)

    def steps(model, optimizer, count):
        for _ in range(count):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

    whole, first = network(), network()
    optimizer, _ = Muon(lr=1e-2, warmup_steps=0).build(whole.named_parameters(), 10)
    steps(whole, optimizer, 4)
    before, _ = Muon(lr=1e-2, warmup_steps=0).build(first.named_parameters(), 10)
    steps(first, before, 2)
    second = copy.deepcopy(first)
    after, _ = Muon(lr=1e-2, warmup_steps=0).build(second.named_parameters(), 10)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    steps(second, after, 2)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


def test_a_closure_runs_with_gradients():
    weight = nn.Parameter(torch.ones(4, 4))
    optimizer = Optimizer([{"params": [weight], "orthogonal": True}], lr=0.1)

    def closure():
        loss = (weight @ torch.arange(4.0)).square().sum()
        loss.backward()
        return loss

    before = optimizer.step(closure).item()
    weight.grad = None
    assert closure().item() < before


@pytest.mark.parametrize("momentum", [-0.1, 1.0])
def test_momentum_outside_its_range_is_rejected(momentum):
    with pytest.raises(SpecError, match="momentum"):
        Muon(momentum=momentum)


def _run_steps(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    model = network()
    optimizer, _ = Muon(lr=0.1, warmup_steps=0).build(model.named_parameters(), 10)
    for step in range(3):
        for index, parameter in enumerate(model.parameters()):
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(10 * step + index))
        optimizer.step()
    torch.save(model.state_dict(), f"{folder}/{world}-{rank}.pt")
    if world > 1:
        dist.destroy_process_group()


def test_several_processes_divide_the_work_and_take_the_same_steps_as_one(tmp_path):
    _run_steps(0, 1, str(tmp_path))
    torch.multiprocessing.spawn(_run_steps, (3, str(tmp_path)), nprocs=3)  # one more than there are matrices
    (single,) = (torch.load(path, weights_only=True) for path in tmp_path.glob("1-*.pt"))
    for rank in range(3):
        shared = torch.load(tmp_path / f"3-{rank}.pt", weights_only=True)
        assert all(torch.equal(shared[name], single[name]) for name in single)
