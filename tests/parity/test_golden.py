from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kiwi.__main__ import main
from kiwi.parity.cases import CASES
from kiwi.parity.golden import TOLERANCE, compare_case, load_case

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("name", CASES)
def test_every_output_agrees_with_the_published_numbers(name):
    case = load_case(GOLDEN / f"{name}.json")
    verdict = compare_case(case, CASES[name])
    assert len(verdict.differences) == len(case.group("out/")) > 0
    assert verdict.worst[1] <= TOLERANCE / 10, verdict.worst


@pytest.fixture
def folder(tmp_path):
    """A copy of the vectors that may be spoiled."""
    for name in CASES:
        for suffix in (".json", ".safetensors"):
            (tmp_path / name).with_suffix(suffix).write_bytes((GOLDEN / name).with_suffix(suffix).read_bytes())
    return tmp_path


def test_the_command_prints_one_line_a_case_and_exits_zero(folder, capsys):
    assert main(["parity", str(folder)]) == 0
    told = capsys.readouterr().out
    for name in CASES:
        assert name in told


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        ("dit", "weights/dit.blocks.1.cross_attn.k.weight"),
        ("dit", "weights/ref_vae_condition.patch_embedding.weight"),
        ("connectors", "weights/mllm.connetor.2.bias"),
        ("end_to_end", "weights/vae_condition.patch_embedding.bias"),
        ("scheduler", "in/train_x0"),
    ],
)
def test_one_perturbed_number_makes_the_command_exit_one(folder, name, weight):
    file = (folder / name).with_suffix(".safetensors")
    tensors = load_file(file)
    tensors[weight].view(-1)[0] += 0.1
    save_file(tensors, file)
    assert main(["parity", str(folder), "--case", name]) == 1


def test_an_output_that_is_not_computed_counts_as_a_failure(folder):
    file = folder / "connectors.safetensors"
    save_file(load_file(file) | {"out/unheard_of": torch.zeros(1)}, file)
    assert main(["parity", str(folder), "--case", "connectors"]) == 1


@pytest.mark.parametrize("spoil", ["out/", "in/", "weights/", "{}", "[]"])
@pytest.mark.parametrize("name", ["connectors", "dit", "mllm", "vae_wan21"])
def test_a_case_that_lacks_something_is_told_by_its_file(folder, capsys, name, spoil):
    file = (folder / name).with_suffix(".safetensors")
    if spoil in ("{}", "[]"):
        file.with_suffix(".json").write_text(spoil)
    else:
        save_file({key: tensor for key, tensor in load_file(file).items() if not key.startswith(spoil)}, file)
    assert main(["parity", str(folder), "--case", name]) == 2
    told = capsys.readouterr().err
    assert name in told
    assert "Traceback" not in told


def test_a_folder_without_cases_is_refused(tmp_path, capsys):
    assert main(["parity", str(tmp_path)]) == 2
    assert "no such golden cases" in capsys.readouterr().err
