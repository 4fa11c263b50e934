import json
import pickle

import pytest
import torch
from safetensors.torch import save_file

import kiwi.weights.files as files
from kiwi.errors import CheckpointError
from kiwi.weights.files import choose_lossless_dtype, read_weights, write_weights

STATE = {"a.weight": torch.arange(12.0).reshape(3, 4), "b": torch.ones(5).bfloat16(), "c": torch.zeros(1000)}


def same(state):
    equal = [torch.equal(state[name], tensor) and state[name].dtype == tensor.dtype for name, tensor in STATE.items()]
    return state.keys() == STATE.keys() and all(equal)


def test_one_file_round_trips(tmp_path):
    write_weights(STATE, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    assert same(read_weights(tmp_path))
    assert same(read_weights(tmp_path / "model.safetensors"))


def test_large_weights_are_sharded_with_an_index(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_SHARD_SIZE", 2000)
    write_weights(STATE, tmp_path, "diffusion_pytorch_model")
    shards = sorted(p.name for p in tmp_path.glob("*.safetensors"))
    assert len(shards) == 2
    index = json.loads((tmp_path / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == STATE.keys()
    assert same(read_weights(tmp_path))
    (tmp_path / shards[0]).unlink()
    with pytest.raises(CheckpointError, match=shards[0], check=lambda error: error.code == "missing-weights"):
        read_weights(tmp_path)


def test_an_index_may_not_reference_files_outside_its_folder(tmp_path):
    save_file(STATE, tmp_path / "secret.safetensors")
    folder = tmp_path / "inner"
    folder.mkdir()
    for name in ("../secret.safetensors", str(tmp_path / "secret.safetensors"), 3):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(CheckpointError, check=lambda error: error.code == "path-outside-folder"):
            read_weights(folder)


def sharded(folder, shards, index):
    folder.mkdir(exist_ok=True)
    for name, state in shards.items():
        save_file(state, folder / f"{name}.safetensors")
    weight_map = {tensor: f"{name}.safetensors" for tensor, name in index.items()}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


ONE = torch.ones(1)


@pytest.mark.parametrize(
    ("shards", "index", "message"),
    [
        ({"x": {"a": ONE}, "y": {"a": 2 * ONE, "b": ONE}}, {"a": "x", "b": "y"}, "1 tensors in two shards: a"),
        ({"x": {"a": ONE}}, {"a": "x", "b": "x"}, "not in the shard listed for them: b"),
        ({"x": {"a": ONE, "b": 2 * ONE}}, {"a": "x"}, "not in the shard listed for them: b"),
        ({"x": {"a": ONE}, "y": {"b": ONE}}, {"a": "y", "b": "x"}, "2 tensors not in the shard listed for them: a, b"),
    ],
)
def test_an_index_must_match_its_shards(tmp_path, shards, index, message):
    folder = sharded(tmp_path / "m", shards, index)
    with pytest.raises(CheckpointError, match=message, check=lambda error: error.code == "mismatched-shards"):
        read_weights(folder)


def test_shards_that_are_links_as_in_the_hubs_cache_are_read(tmp_path):
    folder = sharded(tmp_path / "m", {"x": {"a": ONE}}, {"a": "x"})
    (folder / "x.safetensors").rename(tmp_path / "blob")
    (folder / "x.safetensors").symlink_to(tmp_path / "blob")
    assert read_weights(folder).keys() == {"a"}


def test_a_torch_file_is_read_with_or_without_a_wrapping_dict(tmp_path):
    for name, content in (
        ("plain.pth", STATE),
        ("wrapped.pth", {"model_state": STATE}),
        ("l.ckpt", {"state_dict": STATE}),
    ):
        torch.save(content, tmp_path / name)
        assert same(read_weights(tmp_path / name))


class Bomb:
    def __reduce__(self):
        return (print, ("executed",))


def test_code_in_a_torch_file_is_never_run(tmp_path, capsys):
    torch.save({"a": Bomb()}, tmp_path / "bomb.pth")
    (tmp_path / "old.pth").write_bytes(pickle.dumps({"a": Bomb()}))
    for name in ("bomb.pth", "old.pth"):
        with pytest.raises(CheckpointError, match="never run") as caught:
            read_weights(tmp_path / name)
        assert caught.value.code == "unreadable-weights"
        assert "weights_only" not in str(caught.value)
    assert "executed" not in capsys.readouterr().out


def test_a_torch_file_of_the_old_format_is_read(tmp_path):
    torch.save(STATE, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert same(read_weights(tmp_path / "old.pth"))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04garbage", b"\x80\x02garbage", bytes(range(256)), b"cos\n"])
def test_the_message_about_damaged_data_does_not_repeat_the_advice_of_pytorch(tmp_path, content):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(CheckpointError, check=lambda error: error.code == "unreadable-weights") as caught:
        read_weights(tmp_path / "x.pth")
    assert not any(word in str(caught.value) for word in ("weights_only", "mmap", "torch."))


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ({"step": 3, "a": torch.ones(1)}, "not-a-state-dict"),
        ({0: torch.ones(1)}, "not-a-state-dict"),
        ({"state_dict": {"a": torch.ones(1)}, "model_state": {"a": torch.zeros(1)}}, "ambiguous-weights"),
    ],
)
def test_a_file_without_exactly_one_state_dict_is_rejected(tmp_path, content, code):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, check=lambda error: error.code == code):
        read_weights(tmp_path / "x.pth")


def test_a_dict_that_contains_itself_is_rejected(tmp_path):
    circle = {}
    circle["state_dict"] = circle
    torch.save(circle, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, check=lambda error: error.code == "not-a-state-dict"):
        read_weights(tmp_path / "x.pth")


def test_missing_read_permission_is_reported(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").touch()
    monkeypatch.setattr(files.os, "access", lambda path, mode: False)
    with pytest.raises(CheckpointError, match="permission"):
        read_weights(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json", "model.pth"])
def test_damaged_files_are_rejected(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x10\x00\x00")
    with pytest.raises(CheckpointError, check=lambda error: error.code == "unreadable-weights"):
        read_weights(tmp_path / name)


def test_a_folder_must_contain_exactly_one_set_of_weights(tmp_path):
    save_file(STATE, tmp_path / "other.safetensors")
    with pytest.raises(
        CheckpointError, match=r"other\.safetensors", check=lambda error: error.code == "missing-weights"
    ):
        read_weights(tmp_path)
    save_file(STATE, tmp_path / "model.safetensors")
    assert same(read_weights(tmp_path))
    save_file(STATE, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError, check=lambda error: error.code == "ambiguous-weights"):
        read_weights(tmp_path)
    with pytest.raises(CheckpointError, check=lambda error: error.code == "missing-weights"):
        read_weights(tmp_path / "nothing")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(CheckpointError, check=lambda error: error.code == "wrong-suffix"):
        read_weights(tmp_path / "notes.txt")


def test_the_dtype_chosen_for_loading_loses_no_precision(tmp_path):
    write_weights(STATE, tmp_path)
    assert choose_lossless_dtype(tmp_path) == "float32"
    write_weights({name: tensor.bfloat16() for name, tensor in STATE.items()}, tmp_path)
    assert choose_lossless_dtype(tmp_path) == "bfloat16"
    write_weights({"a": torch.ones(3).half(), "b": torch.ones(3).bfloat16()}, tmp_path)
    assert choose_lossless_dtype(tmp_path) == "float32"
