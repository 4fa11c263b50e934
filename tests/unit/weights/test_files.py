import json
import pickle

import pytest
import torch
from safetensors.torch import save_file

import kiwi.weights.files as files
from kiwi.errors import CheckpointError, InputError
from kiwi.weights.files import read_shapes, read_weights, saved_dtype, write_weights

STATE = {"a.weight": torch.arange(12.0).reshape(3, 4), "b": torch.ones(5).bfloat16(), "c": torch.zeros(1000)}


def same(found):
    return found.keys() == STATE.keys() and all(
        torch.equal(found[n], t) and found[n].dtype == t.dtype for n, t in STATE.items()
    )


def test_one_file_comes_back_as_it_was(tmp_path):
    write_weights(STATE, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    assert same(read_weights(tmp_path))
    assert same(read_weights(tmp_path / "model.safetensors"))
    assert read_shapes(tmp_path) == {"a.weight": (3, 4), "b": (5,), "c": (1000,)}


def test_large_weights_are_sharded_with_an_index(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "SHARD", 2000)
    write_weights(STATE, tmp_path, "diffusion_pytorch_model")
    shards = sorted(p.name for p in tmp_path.glob("*.safetensors"))
    assert len(shards) == 2
    index = json.loads((tmp_path / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == STATE.keys()
    assert same(read_weights(tmp_path))
    assert read_shapes(tmp_path)["a.weight"] == (3, 4)
    (tmp_path / shards[0]).unlink()
    with pytest.raises(CheckpointError, match=f"shards of .* are missing.*{shards[0]}"):
        read_weights(tmp_path)


def test_an_index_may_not_name_files_outside_its_folder(tmp_path):
    save_file(STATE, tmp_path / "secret.safetensors")
    folder = tmp_path / "inner"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(InputError, match="leaves the folder"):
        read_weights(folder)


def test_a_torch_file_is_read_wrapped_or_not(tmp_path):
    for name, content in (
        ("plain.pth", STATE),
        ("wrapped.pth", {"model_state": STATE}),
        ("l.ckpt", {"state_dict": STATE}),
    ):
        torch.save(content, tmp_path / name)
        assert same(read_weights(tmp_path / name))
        assert read_shapes(tmp_path / name)["b"] == (5,)


class Bomb:
    def __reduce__(self):
        return (print, ("executed",))


def test_code_in_a_torch_file_is_never_run(tmp_path, capsys):
    torch.save({"a": Bomb()}, tmp_path / "bomb.pth")
    (tmp_path / "old.pth").write_bytes(pickle.dumps({"a": Bomb()}))
    for name in ("bomb.pth", "old.pth"):
        with pytest.raises(CheckpointError, match="cannot be read"):
            read_weights(tmp_path / name)
    assert "executed" not in capsys.readouterr().out


def test_what_is_not_named_tensors_is_refused(tmp_path):
    torch.save({"step": 3, "a": torch.ones(1)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="more than named tensors"):
        read_weights(tmp_path / "x.pth")


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json", "model.pth"])
def test_damaged_files_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x10\x00\x00")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_weights(tmp_path / name)


def test_a_folder_with_none_or_two_sets_is_refused_with_what_it_holds(tmp_path):
    save_file(STATE, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"other\.safetensors"):
        read_weights(tmp_path)
    save_file(STATE, tmp_path / "model.safetensors")
    assert same(read_weights(tmp_path))
    save_file(STATE, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError, match="one set of weights"):
        read_weights(tmp_path)
    with pytest.raises(CheckpointError, match="no weights at"):
        read_weights(tmp_path / "nothing")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(CheckpointError, match="not a weights file"):
        read_weights(tmp_path / "notes.txt")


def test_the_type_that_loses_nothing(tmp_path):
    write_weights(STATE, tmp_path)
    assert saved_dtype(tmp_path) == "float32"
    write_weights({name: tensor.bfloat16() for name, tensor in STATE.items()}, tmp_path)
    assert saved_dtype(tmp_path) == "bfloat16"
