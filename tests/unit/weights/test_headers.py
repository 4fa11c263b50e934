import pytest
import torch
from safetensors.torch import save_file

from kiwi.errors import CheckpointError
from kiwi.weights.headers import read_headers, require_plausible_sizes


@pytest.fixture
def folder(tmp_path):
    tensors = {"a.weight": torch.ones(8, 16, dtype=torch.bfloat16), "b": torch.ones(())}
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def test_headers_have_shapes_and_dtypes(folder):
    assert read_headers(folder) == {"a.weight": ((8, 16), "BF16"), "b": ((), "F32")}


@pytest.mark.parametrize(
    "config",
    [
        {"num_layers": 10**9},
        {"dit": {"tuning": {"type": "Lora", "rank": 17}}},
        {"dim_mult": [1, 2, 10**12]},
        {"text_config": {"num_hidden_layers": 10**9}},
        {"query": {"image": 10**9}},
        {"vision_config": {"depth": 10**6}},
    ],
)
def test_sizes_beyond_those_of_all_tensors_are_rejected(folder, config):
    with pytest.raises(CheckpointError, check=lambda error: error.code == "mismatched-config"):
        require_plausible_sizes(config, folder)


def test_numbers_that_are_not_sizes_of_tensors_are_not_compared(folder):
    config = {
        "rope_theta": 10**6,
        "eos_token_id": 999,
        "max_pixels": 10**6,
        "num_layers": 16,
        "steps": 50,
        "rank": True,
    }
    require_plausible_sizes(config, folder)
    nested = []
    for _ in range(10_000):  # deeper than Python's stack
        nested = [nested]
    require_plausible_sizes({"layers": nested}, folder)
