"""Every code block of docs/extending.md runs, and what it adds arrives where the page says."""

import importlib

import pytest
import torch

from kiwi.spec import from_dict, to_dict

from .conftest import ROOT


@pytest.fixture
def modules(page_modules, tmp_path, monkeypatch):
    """Imports the page's files, from a folder in which commands find the experiments and write their own files."""
    for name in ("experiments", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(page_modules))
    return importlib.import_module


def test_the_source_injection_trains_a_step_and_starts_at_the_base_model(modules, tiny_config):
    from kiwi.models.kiwi import KiwiEdit

    spec = modules("gated_source").GatedSource()
    assert from_dict(type(tiny_config), to_dict(tiny_config.replace(source=spec))).source == spec
    source = KiwiEdit(tiny_config.replace(source=spec)).source
    tokens = torch.randn(2, 6, 48)
    assert torch.equal(source.join(tokens, torch.randn(2, 6, 48), torch.ones(2)), tokens)

    run = modules("train_gated_source").run
    from safetensors.torch import load_file

    weights = load_file(run / "model" / "model.safetensors")
    (gate,) = (tensor for name, tensor in weights.items() if name.endswith("gate_D"))
    assert gate.abs().max() > 0
