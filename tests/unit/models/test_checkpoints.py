import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from kiwi.errors import CheckpointError
from kiwi.models.checkpoints import from_pretrained, from_published_names, load_strict, save_pretrained
from kiwi.models.kiwi import Conditions, KiwiEdit
from kiwi.models.sampling import EditingDefaults, Sampling


@pytest.fixture
def saved(tiny_config, tmp_path):
    model = KiwiEdit(tiny_config, seed=1)
    torch.nn.init.normal_(model.dit.head.head.weight)
    save_pretrained(
        model, tmp_path / "model", EditingDefaults(max_pixels=4096, max_frames=5, sampling=Sampling(steps=3))
    )
    return model.eval(), tmp_path / "model"


def velocity(model):
    torch.manual_seed(3)
    shape = (1, 4, 2, 4, 4)
    conditions = Conditions(torch.randn(1, 6, 48), None, torch.randn(shape), torch.randn(1, 4, 1, 4, 4))
    with torch.no_grad():
        return model(torch.randn(shape), torch.tensor([0.7]), conditions)


def test_a_model_folder_gives_back_the_same_model_and_defaults(saved):
    model, folder = saved
    loaded, editing = from_pretrained(folder)
    assert torch.equal(velocity(loaded.eval()), velocity(model))
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert (editing.max_pixels, editing.max_frames, editing.sampling.steps) == (4096, 5, 3)


def test_a_model_folder_can_be_moved(saved, tmp_path):
    model, folder = saved
    moved = folder.rename(tmp_path / "elsewhere")
    assert torch.equal(velocity(from_pretrained(moved)[0].eval()), velocity(model))


def test_weights_hold_no_frozen_part(saved):
    names = load_file(saved[1] / "model.safetensors").keys()
    assert {name.split(".")[0] for name in names} == {"dit", "query", "latent", "source", "reference"}


def test_every_missing_unexpected_and_misshapen_name_is_told(tiny_config):
    module = torch.nn.Linear(3, 2)
    with pytest.raises(CheckpointError) as problem:
        load_strict(module, {"weight": torch.zeros(2, 4), "extra": torch.zeros(1)}, "x.safetensors")
    told = str(problem.value)
    assert "1 missing (bias)" in told
    assert "1 unexpected (extra)" in told
    assert "weight is (2, 4), not (2, 3)" in told
    assert "x.safetensors" in told


def test_nothing_is_loaded_when_something_does_not_fit():
    module = torch.nn.Linear(3, 2)
    before = module.weight.clone()
    with pytest.raises(CheckpointError):
        load_strict(module, {"weight": torch.zeros(2, 3)}, "x")
    assert torch.equal(module.weight, before)


def test_a_checkpoint_of_another_size_is_refused(saved):
    _, folder = saved
    record = json.loads((folder / "config.json").read_text())
    record["config"]["dit"]["ffn_dim"] = 64
    (folder / "config.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=r"of another shape.*ffn"):
        from_pretrained(folder)


def test_an_unknown_choice_in_config_json_is_told_with_the_choices(saved):
    _, folder = saved
    record = json.loads((folder / "config.json").read_text())
    record["config"]["source"] = {"type": "os.system"}
    (folder / "config.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="AddSource, NoSource"):
        from_pretrained(folder)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"format": 99}', '{"format": 1}'])
def test_a_config_that_is_not_ours_is_refused(saved, content):
    _, folder = saved
    (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError):
        from_pretrained(folder)


def test_truncated_weights_are_refused(saved):
    _, folder = saved
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        from_pretrained(folder)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="there is no model folder"):
        from_pretrained(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="hub"):
        from_pretrained("nobody/nothing")


def test_a_part_is_never_silently_absent(saved):
    _, folder = saved
    for file in (folder / "vae").iterdir():
        file.unlink()
    with pytest.raises(CheckpointError, match="no VAE"):
        from_pretrained(folder)


def test_published_names_are_translated_and_the_unused_text_embedding_dropped():
    names = [
        "dit.blocks.0.ffn.0.weight", "dit.text_embedding.0.weight", "vae_condition.patch_embedding.bias",
        "ref_vae_condition.patch_embedding.bias", "mllm.connetor.0.weight", "mllm.ref_queries.q",
    ]  # fmt: skip
    ours = from_published_names({name: torch.zeros(1) for name in names})
    assert sorted(ours) == [
        "dit.blocks.0.ffn.0.weight", "query.connector.0.weight", "query.queries.reference",
        "reference.patch_embedding.bias", "source.patch_embedding.bias",
    ]  # fmt: skip


def test_weights_saved_from_another_model_do_not_load_in_part(saved, tiny_config):
    _, folder = saved
    state = load_file(folder / "model.safetensors")
    del state["source.patch_embedding.weight"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing \(source.patch_embedding.weight\)"):
        from_pretrained(folder)
