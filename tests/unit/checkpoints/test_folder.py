import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import kiwi.weights.files
from kiwi.checkpoints.folder import describe_folder, from_pretrained, save_pretrained, write_folder
from kiwi.checkpoints.folder_config import is_model_folder, read_folder_config
from kiwi.errors import CheckpointError, InputError
from kiwi.models.connectors import Context
from kiwi.models.dit.base import WanBase
from kiwi.models.kiwi import Conditions, KiwiEdit
from kiwi.models.mllm.encoder import QwenVL
from kiwi.models.sampling import EditingDefaults, Sampling
from kiwi.models.tuning import Full, Lora
from kiwi.models.vae.wan import WanVae
from kiwi.weights.names import select_prefix


@pytest.fixture
def saved(tiny_config, tmp_path):
    model = KiwiEdit(tiny_config, seed=1)
    torch.nn.init.normal_(model.dit.head.head.weight)
    defaults = EditingDefaults(max_pixels=4096, max_frames=5, sampling=Sampling(steps=3))
    save_pretrained(model, tmp_path / "model", defaults)
    return model.eval(), tmp_path / "model"


def velocity(model):
    torch.manual_seed(3)
    shape = (1, 4, 2, 4, 4)
    conditions = Conditions(Context(torch.randn(1, 6, 48), None), torch.randn(shape), torch.randn(1, 4, 1, 4, 4))
    with torch.no_grad():
        return model(torch.randn(shape), torch.tensor([0.7]), conditions)


def test_a_model_and_its_defaults_round_trip_through_a_folder(saved):
    model, folder = saved
    loaded, editing = from_pretrained(folder)
    assert torch.equal(velocity(loaded.eval()), velocity(model))
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert (editing.max_pixels, editing.max_frames, editing.sampling.steps) == (4096, 5, 3)


def test_weights_saved_as_float16_are_loaded_as_float32(saved, tmp_path):
    model, _ = saved
    save_pretrained(model, tmp_path / "half", EditingDefaults(), dtype=torch.float16)
    assert {tensor.dtype for tensor in load_file(tmp_path / "half" / "model.safetensors").values()} == {torch.float16}
    loaded, _ = from_pretrained(tmp_path / "half")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert torch.allclose(velocity(loaded.eval()), velocity(model), atol=0.02)
    assert model.dit.head.head.weight.dtype == torch.float32


def test_a_model_folder_can_be_moved(saved, tmp_path):
    model, folder = saved
    moved = folder.rename(tmp_path / "elsewhere")
    assert torch.equal(velocity(from_pretrained(moved)[0].eval()), velocity(model))


def test_the_weights_file_contains_no_frozen_part(saved):
    names = load_file(saved[1] / "model.safetensors").keys()
    assert {name.split(".")[0] for name in names} == {"dit", "query", "latent", "source", "reference"}


def test_a_checkpoint_of_another_size_is_rejected(saved):
    _, folder = saved
    record = json.loads((folder / "config.json").read_text())
    record["config"]["dit"]["ffn_dim"] = 64
    (folder / "config.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=r"with the wrong shape.*ffn"):
        from_pretrained(folder)


def test_an_unknown_spec_in_config_json_is_rejected_and_the_known_specs_are_listed(saved):
    _, folder = saved
    record = json.loads((folder / "config.json").read_text())
    record["config"]["source"] = {"type": "os.system"}
    (folder / "config.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=r"AddSource, .*NoSource"):
        from_pretrained(folder)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"format": 99}', '{"format": 1}'])
def test_a_config_json_of_another_kind_is_rejected(saved, content):
    _, folder = saved
    (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, check=lambda error: error.code == "not-a-model-folder"):
        from_pretrained(folder)


@pytest.mark.parametrize("depth", [400, 900, 100_000])
def test_a_too_deeply_nested_config_json_is_rejected(saved, depth):
    _, folder = saved
    record = json.loads((folder / "config.json").read_text())
    record["config"]["source"] = "HERE"
    (folder / "config.json").write_text(json.dumps(record).replace('"HERE"', "[" * depth + "]" * depth))
    assert not is_model_folder(folder)
    with pytest.raises(CheckpointError):
        from_pretrained(folder)


@pytest.mark.parametrize("bases", [{"dit": "0" * 64}, {"vae": 3}, ["vae"], {"what": ""}])
def test_invalid_fingerprints_are_rejected(saved, bases):
    _, folder = saved
    record = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**record, "bases": bases}))
    with pytest.raises(CheckpointError, match="bases", check=lambda error: error.code == "invalid-model-config"):
        from_pretrained(folder)


@pytest.mark.parametrize(
    ("part", "spec", "message"),
    [
        ("vae", {"type": "WanVae", "path": "./../other/vae"}, "path in .*config.json .*leaves the folder"),
        ("vae", {"type": "WanVae", "path": "./vae", "subfolder": "../../other/vae"}, "outside"),
        ("vae", {"type": "WanVae", "path": "./vae", "subfolder": "OTHER/vae"}, "outside"),
        ("base", {"type": "WanBase", "path": "./../other/model.safetensors"}, "leaves the folder"),
        ("base", {"type": "WanBase", "path": "./absent.safetensors"}, "model/absent.safetensors"),
    ],
)
def test_paths_that_leave_a_model_folder_are_rejected(saved, tmp_path, monkeypatch, part, spec, message):
    model, folder = saved
    save_pretrained(model, tmp_path / "other", EditingDefaults())
    record = json.loads((folder / "config.json").read_text())
    spec = {key: value.replace("OTHER", str(tmp_path / "other")) for key, value in spec.items()}
    (record["config"] if part == "vae" else record["config"]["dit"])[part] = spec
    (folder / "config.json").write_text(json.dumps(record))
    monkeypatch.chdir(tmp_path / "other")
    with pytest.raises((CheckpointError, InputError), match=message):
        from_pretrained(folder)


def test_an_mllm_whose_index_leaves_its_folder_is_rejected(saved, tmp_path):
    _, folder = saved
    weights = folder / "mllm/model.safetensors"
    names = load_file(weights)
    weights.rename(tmp_path / "outside.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "../../outside.safetensors")}
    (folder / "mllm/model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, check=lambda error: error.code == "path-outside-folder"):
        from_pretrained(folder)


@pytest.mark.parametrize(("path", "subfolder"), [("./vae", ""), ("vae", ""), ("../model/vae", ""), ("../model", "vae")])
def test_a_path_relative_to_the_working_folder_is_saved_as_an_absolute_path(
    saved, tiny_config, tmp_path, monkeypatch, path, subfolder
):
    _, folder = saved
    monkeypatch.chdir(folder)
    model = KiwiEdit(tiny_config.replace(vae=WanVae(path=path, subfolder=subfolder)))
    save_pretrained(model, tmp_path / "named", EditingDefaults(), self_contained=False)
    monkeypatch.chdir(tmp_path)
    vae = from_pretrained("named")[0].config.vae
    assert (vae.path, vae.subfolder) == (str(folder if subfolder else folder / "vae"), subfolder)


def test_hub_ids_of_parts_are_not_made_absolute(tiny_config, tmp_path, monkeypatch):
    (tmp_path / "Wan-AI").mkdir()
    monkeypatch.chdir(tmp_path)
    config = tiny_config.replace(
        vae=WanVae(path="Wan-AI/Wan2.2-TI2V-5B-Diffusers", subfolder="vae"),
        mllm=QwenVL(path="Qwen/Qwen2.5-VL-3B-Instruct"),
        dit=tiny_config.dit.replace(base=WanBase(path="Wan-AI/Wan2.2-TI2V-5B-Diffusers")),
    )
    write_folder("named", config, EditingDefaults(), {"x": torch.zeros(1)}, {}, {})
    assert read_folder_config(tmp_path / "named").config == config


def test_only_a_model_folder_is_replaced_by_a_model(saved, tmp_path):
    model, folder = saved
    save_pretrained(model, folder, EditingDefaults(max_frames=9))
    assert from_pretrained(folder)[1].max_frames == 9
    (tmp_path / "imp").mkdir()
    (tmp_path / "imp/thesis.tex").write_text("mine")
    with pytest.raises(InputError, match=r"thesis\.tex"):
        save_pretrained(model, tmp_path / "imp", EditingDefaults())
    assert (tmp_path / "imp/thesis.tex").read_text() == "mine"


@pytest.mark.parametrize("name", ["notes.txt", "config.json.bak", "mllm/notes.txt", "vae/more/x.json", "mine/x.json"])
def test_a_model_folder_with_other_files_in_it_is_not_replaced(saved, name):
    model, folder = saved
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("mine")
    before = contents(folder)
    with pytest.raises(InputError, match=r"Got: (notes\.txt|config.json.bak|mllm/notes|vae/more|mine)"):
        save_pretrained(model, folder, EditingDefaults(max_frames=9))
    assert contents(folder) == before


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_all_files_of_a_model_folder_have_the_same_permissions(saved):
    modes = {path.name: path.stat().st_mode & 0o777 for path in saved[1].rglob("*") if path.is_file()}
    assert modes["model.safetensors"] == modes["config.json"]
    assert len(set(modes.values())) == 1


def test_truncated_weights_are_rejected(saved):
    _, folder = saved
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, check=lambda error: error.code == "unreadable-weights"):
        from_pretrained(folder)


def test_the_error_for_a_missing_folder_names_it(tmp_path):
    with pytest.raises(CheckpointError, match="nothing", check=lambda error: error.code == "missing-model"):
        from_pretrained(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="hub"):
        from_pretrained("nobody/nothing")


def test_a_part_without_weights_is_rejected(saved):
    _, folder = saved
    for file in (folder / "vae").iterdir():
        file.unlink()
    with pytest.raises(CheckpointError, match="vae", check=lambda error: error.code == "missing-weights"):
        from_pretrained(folder)


def test_weights_are_never_loaded_in_part(saved, tiny_config):
    _, folder = saved
    state = load_file(folder / "model.safetensors")
    del state["source.patch_embedding.weight"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing \(source.patch_embedding.weight\)"):
        from_pretrained(folder)


def test_a_loaded_model_has_the_dtypes_in_which_it_was_saved(tiny_config, tmp_path):
    model = KiwiEdit(tiny_config)
    model.dit.bfloat16()
    save_pretrained(model, tmp_path / "model", EditingDefaults())
    loaded, _ = from_pretrained(tmp_path / "model")
    assert loaded.dit.blocks[0].ffn[0].weight.dtype == torch.bfloat16
    assert loaded.source.patch_embedding.weight.dtype == torch.float32
    assert all(parameter.requires_grad for parameter in loaded.dit.parameters())


def save_referencing_model(tiny_config, saved, tmp_path, **dit):
    """Save a model that references its VAE and MLLM in another folder by path, and return the model."""
    _, folder = saved
    config = tiny_config.replace(
        vae=WanVae(path=str(folder / "vae")),
        mllm=QwenVL(path=str(folder / "mllm"), dtype="float32", limits=tiny_config.mllm.limits, tuning=Lora(rank=2)),
        dit=tiny_config.dit.replace(**dit),
    )
    model = KiwiEdit(config, seed=5)
    save_pretrained(model, tmp_path / "named", EditingDefaults(), self_contained=False)
    return model


def test_parts_referenced_by_path_are_not_copied_and_adapters_are_kept(tiny_config, saved, tmp_path):
    model = save_referencing_model(tiny_config, saved, tmp_path)
    assert sorted(p.name for p in (tmp_path / "named").iterdir()) == ["config.json", "model.safetensors"]
    names = load_file(tmp_path / "named" / "model.safetensors").keys()
    language = {name for name in names if name.startswith("mllm.")}
    assert len(language) == 2 * 4 * 2
    assert all(".lora_" in name for name in language)
    loaded, _ = from_pretrained(tmp_path / "named")
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_a_referenced_vae_whose_weights_have_changed_is_rejected(tiny_config, saved, tmp_path):
    save_referencing_model(tiny_config, saved, tmp_path)
    vae = saved[1] / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor + 0.01 for name, tensor in load_file(vae).items()}, vae)
    with pytest.raises(CheckpointError, match="vae", check=lambda error: error.code == "mismatched-base-model"):
        from_pretrained(tmp_path / "named")


def test_a_dit_with_adapters_on_a_referenced_base_model_saves_only_the_adapters(tiny_config, saved, tmp_path):
    base = WanBase(path=str(tmp_path / "wan.safetensors"))
    save_file(select_prefix(load_file(saved[1] / "model.safetensors"), "dit."), base.path)
    model = save_referencing_model(tiny_config, saved, tmp_path, base=base, tuning=Lora(rank=2))
    names = load_file(tmp_path / "named" / "model.safetensors").keys()
    assert len([n for n in names if n.startswith("dit.")]) == 2 * 10 * 2
    loaded, _ = from_pretrained(tmp_path / "named")
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    save_pretrained(loaded, tmp_path / "whole", EditingDefaults())
    (tmp_path / "wan.safetensors").unlink()
    whole, _ = from_pretrained(tmp_path / "whole")
    assert torch.equal(velocity(whole.eval()), velocity(model.eval()))
    with pytest.raises(CheckpointError, check=lambda error: error.code == "missing-model"):
        from_pretrained(tmp_path / "named")


def test_a_base_model_that_was_trained_further_is_rejected(tiny_config, saved, tmp_path):
    state = select_prefix(load_file(saved[1] / "model.safetensors"), "dit.")
    base = WanBase(path=str(tmp_path / "wan.safetensors"))
    save_file(state, base.path)
    save_referencing_model(tiny_config, saved, tmp_path, base=base, tuning=Lora(rank=2))
    save_file({**state, "head.head.bias": state["head.head.bias"] + 1}, base.path)
    with pytest.raises(CheckpointError, match="dit", check=lambda error: error.code == "mismatched-base-model"):
        from_pretrained(tmp_path / "named")


def test_a_fully_trained_mllm_is_saved(tiny_config, tmp_path):
    model = KiwiEdit(tiny_config.replace(mllm=tiny_config.mllm.replace(tuning=Full())))
    save_pretrained(model, tmp_path / "model", EditingDefaults())
    names = load_file(tmp_path / "model" / "model.safetensors").keys()
    assert "mllm.model.language_model.layers.0.mlp.up_proj.weight" in names
    assert not any(name.startswith("mllm.model.visual") for name in names)
    loaded, _ = from_pretrained(tmp_path / "model")
    trainable = {n for n, p in loaded.mllm.named_parameters() if p.requires_grad}
    assert trainable
    assert all(name.startswith("model.language_model.") for name in trainable)


def test_weights_above_the_shard_size_are_sharded_and_load(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(kiwi.weights.files, "MAX_SHARD_SIZE", 100_000)
    save_pretrained(saved[0], tmp_path / "large", EditingDefaults())
    assert (tmp_path / "large" / "model.safetensors.index.json").exists()
    assert torch.allclose(velocity(from_pretrained(tmp_path / "large")[0].eval()), velocity(saved[0]), atol=1e-4)


def test_a_folder_is_described_without_building_the_model(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(KiwiEdit, "__init__", None)
    fingerprint, editing = describe_folder(saved[1])
    assert editing == read_folder_config(saved[1]).editing
    copy = shutil.copytree(saved[1], tmp_path / "copy")
    assert describe_folder(copy)[0] == fingerprint
    for file in sorted(copy.rglob("*.safetensors")):
        content = file.read_bytes()
        save_file({name: tensor + 0.5 for name, tensor in load_file(file).items()}, file)
        assert describe_folder(copy)[0] != fingerprint
        file.write_bytes(content)
    config = copy / "config.json"
    config.write_text(config.read_text().replace('"shift": 5.0', '"shift": 4.0'))
    assert describe_folder(copy)[0] != fingerprint
