from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kiwi.__main__ import main
from kiwi.errors import InputError
from kiwi.parity import TOLERANCE, ParityOptions, check_parity
from kiwi.parity.cases import CASES, compute_vae
from kiwi.parity.golden import compare_case, load_case

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("name", CASES)
def test_every_output_equals_the_published_output(name):
    case = load_case(GOLDEN / f"{name}.json")
    result = compare_case(case, CASES[name])
    assert len(result.differences) == len(case.group("out/")) > 0
    assert result.worst[1] <= TOLERANCE / 10, result.worst


def test_the_truncated_input_of_the_vae_lacks_its_last_frame_only():
    case = load_case(GOLDEN / "vae_wan21.json")
    video = torch.cat([case.tensors["in/video"], case.tensors["in/video"][:, :, :4].flip(2)], dim=2)
    outputs = [compute_vae(replace(case, tensors=case.tensors | {"in/video": video[:, :, :n]})) for n in (9, 5)]
    assert [out["encode_truncated_T"].shape[2] for out in outputs] == [2, 1]
    assert torch.allclose(outputs[0]["encode_truncated_T"], outputs[1]["encode"], atol=1e-5)


@pytest.fixture
def folder(tmp_path):
    """A copy of the vectors that tests may damage."""
    for name in CASES:
        for suffix in (".json", ".safetensors"):
            (tmp_path / name).with_suffix(suffix).write_bytes((GOLDEN / name).with_suffix(suffix).read_bytes())
    return tmp_path


def test_the_command_prints_one_line_per_case_and_exits_with_0(folder, capsys):
    assert main(["parity", str(folder)]) == 0
    output = capsys.readouterr().out
    for name in CASES:
        assert name in output


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
def test_one_perturbed_value_makes_the_command_exit_with_1(folder, name, weight):
    file = (folder / name).with_suffix(".safetensors")
    tensors = load_file(file)
    tensors[weight].view(-1)[0] += 0.1
    save_file(tensors, file)
    assert main(["parity", str(folder), "--case", name]) == 1


def test_an_output_that_is_not_computed_is_a_failure(folder):
    file = folder / "connectors.safetensors"
    save_file(load_file(file) | {"out/unheard_of": torch.zeros(1)}, file)
    assert main(["parity", str(folder), "--case", "connectors"]) == 1


@pytest.mark.parametrize("removed", ["out/", "in/", "weights/", "{}", "[]"])
@pytest.mark.parametrize("name", ["connectors", "dit", "mllm", "vae_wan21"])
def test_the_error_for_an_incomplete_case_names_its_file(folder, capsys, name, removed):
    file = (folder / name).with_suffix(".safetensors")
    if removed in ("{}", "[]"):
        file.with_suffix(".json").write_text(removed)
    else:
        save_file({key: tensor for key, tensor in load_file(file).items() if not key.startswith(removed)}, file)
    assert main(["parity", str(folder), "--case", name]) == 2
    message = capsys.readouterr().err
    assert name in message
    assert "Traceback" not in message


def test_a_folder_without_cases_is_rejected(tmp_path):
    with pytest.raises(InputError, check=lambda error: error.code == "missing-golden-case"):
        check_parity(ParityOptions(dir=tmp_path))
