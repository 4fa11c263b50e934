"""What becomes of the tensors of a training checkpoint: all used, filled where a stage had none, or refused."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import kiwi.checkpoints.assemble
from kiwi.__main__ import main
from kiwi.checkpoints.folder import from_pretrained, read_folder_config
from kiwi.keyed import forked_rng
from kiwi.models.connectors import LatentConnector
from kiwi.models.injection import NoReference
from kiwi.models.scaling import LearnableScale
from kiwi.weights.files import read_weights
from kiwi.weights.strict import fingerprint
from tests.unit.checkpoints.conftest import beside, convert, edit

STAGES = {
    1: ("mllm.image_queries", "mllm.connetor"),
    2: ("mllm.image_queries", "mllm.connetor", "mllm.video_queries", "dit.", "vae_condition"),
}


@pytest.mark.parametrize("stage", STAGES)
def test_what_an_earlier_stage_did_not_have_is_filled_and_told(checkpoint, config, tmp_path, capsys, stage):
    state = load_file(checkpoint / "c.safetensors")
    kept = {n: t for n, t in state.items() if n.removeprefix("pipe.").startswith(STAGES[stage])}
    save_file(kept, tmp_path / "s.safetensors")
    dit = {n.removeprefix("pipe.dit."): t for n, t in state.items() if n.startswith("pipe.dit.")}
    save_file(dit, tmp_path / "base.safetensors")
    base, more = ["--base", f"{tmp_path}/base.safetensors"], ["--set", "query.reference=5", "--set", "query.video=4"]
    back = ["convert", "kiwi-upstream", f"{tmp_path}/s.safetensors", f"{tmp_path}/a", *beside(checkpoint / "m")]
    needs = base if stage == 1 else []
    assert main([*back, *(base if stage == 2 else [])]) == 2
    assert ("needs the base model" if stage == 1 else "leave out --base") in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
    assert main([*back, *needs, *more]) == 0
    told = " ".join(capsys.readouterr().out.split())
    found, wanted = read_weights(tmp_path / "a"), read_weights(checkpoint / "m")
    assert torch.equal(found["dit.blocks.0.ffn.0.weight"], wanted["dit.blocks.0.ffn.0.weight"])
    assert torch.equal(found["query.queries.image"], wanted["query.queries.image"])
    assert 0.01 < found["query.queries.reference"].std() < 0.03
    assert found["latent.connector.2.weight"].abs().max() == 0
    assert (found["source.patch_embedding.weight"].abs().max() == 0) == (stage == 1)
    assert read_folder_config(tmp_path / "a").config.reference == NoReference()
    for part in ("query.queries.reference", "latent.connector"):
        assert f"{part} │ not in the checkpoint: initial values" in told


@pytest.mark.parametrize("spoil", ["missing", "unexpected", "misshapen", "half a group"])
def test_a_checkpoint_that_does_not_fit_is_refused_by_name_and_nothing_written(checkpoint, tmp_path, capsys, spoil):
    state = load_file(checkpoint / "c.safetensors")
    name = "pipe.mllm.connetor.2.bias" if spoil == "half a group" else "pipe.dit.blocks.1.ffn.2.bias"
    if spoil == "unexpected":
        name = "pipe.dit.blocks.1.ffn.2.gain"
        state[name] = torch.ones(1)
    elif spoil == "misshapen":
        state[name] = torch.ones(7)
    else:
        del state[name]
    save_file(state, tmp_path / "c.safetensors")
    back = ["convert", "kiwi-upstream", f"{tmp_path}/c.safetensors", f"{tmp_path}/a", *beside(checkpoint / "m")]
    assert main(back) == 2
    told = capsys.readouterr().err
    ours = {"pipe.mllm.connetor.2.bias": "query.connector.2.bias"}.get(name, name.removeprefix("pipe."))
    assert ours in told
    assert {"misshapen": "with the wrong shape", "unexpected": "unexpected"}.get(spoil, "missing") in told
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.safetensors"]


MIXES = {
    "norms": lambda name: torch.float32 if "norm" in name else torch.bfloat16,
    "one": lambda name: torch.bfloat16 if name == "pipe.dit.blocks.1.ffn.2.bias" else torch.float32,
    "halves": lambda name: torch.float16 if "ffn" in name else torch.bfloat16,
    "parts": lambda name: torch.bfloat16 if name.startswith("pipe.dit") else torch.float32,
    "other parts": lambda name: torch.float32 if name.startswith("pipe.dit") else torch.bfloat16,
    "double": lambda name: torch.float64,
    "half": lambda name: torch.float16,
}


@pytest.mark.parametrize("mix", MIXES)
def test_tensors_of_several_types_become_one_a_part_and_edit(checkpoint, tmp_path, capsys, mix):
    state = {name: tensor.to(MIXES[mix](name)) for name, tensor in load_file(checkpoint / "c.safetensors").items()}
    assert convert(checkpoint, tmp_path, state) == 0
    told = " ".join(capsys.readouterr().out.split())
    types = {}
    for name, tensor in read_weights(tmp_path / "a").items():
        types.setdefault(name.split(".")[0], set()).add(tensor.dtype)
    assert all(len(found) == 1 for found in types.values())
    whole = {"half": torch.float16, "parts": torch.bfloat16}.get(mix, torch.float32)
    assert types["dit"] == {whole}
    assert ("in the checkpoint: all as float32" in told) == (mix in ("norms", "one", "halves", "double"))
    edited = edit(from_pretrained(tmp_path / "a")[0].eval())
    assert (edited - edit(from_pretrained(checkpoint / "m")[0].eval())).abs().mean() < 0.05


@pytest.mark.parametrize(
    "spoil",
    [torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn, float("nan"), float("inf")],
    ids=str,
)
@pytest.mark.parametrize("name", ["pipe.dit.blocks.1.ffn.2.bias", "pipe.mllm.connetor.2.bias"])
def test_tensors_that_no_model_can_calculate_with_are_refused_by_name(checkpoint, tmp_path, capsys, name, spoil):
    state = load_file(checkpoint / "c.safetensors")
    if isinstance(spoil, float):
        state[name][1] = spoil
    else:
        state[name] = state[name].to(spoil)
    assert convert(checkpoint, tmp_path, state) == 2
    told = capsys.readouterr().err
    assert name.removeprefix("pipe.").replace("mllm.connetor", "query.connector") in told
    assert ("NaN or infinite" if isinstance(spoil, float) else str(spoil).removeprefix("torch.")) in told


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("query.layers=[99]", "query.layers cannot be set"),
        ("latent.layers=[0]", "latent.layers cannot be set"),
        ("source=NoSource", "source cannot be set"),
        ("source.scale=LearnableScale", "source.scale cannot be set"),
        ("mllm.path=elsewhere", "mllm.path cannot be set"),
        ("dit.num_heads=-2", "num_heads must be at least 1"),
        ("dit.num_heads=0", "num_heads must be at least 1"),
        ("dit.num_heads=abc", "dit.num_heads has the wrong type. Got: 'abc'"),
        ("dit.num_heads=null", "dit.num_heads has the wrong type"),
        ("dit.eps=1e-6", "with a point"),
        ("mllm.limits.max_reference_tokens=0", "max_reference_tokens must be at least 1"),
        ("reference=NoReference", "unexpected"),
        ("query.image=7", "query.queries.image"),
    ],
)
def test_choices_that_contradict_a_checkpoint_or_cannot_be_are_refused(checkpoint, tmp_path, capsys, change, told):
    assert convert(checkpoint, tmp_path, load_file(checkpoint / "c.safetensors"), "--set", change) == 2
    assert told in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "a").exists()


def test_a_part_that_a_checkpoint_lacks_may_be_chosen(checkpoint, tmp_path, capsys):
    state = {n: t for n, t in load_file(checkpoint / "c.safetensors").items() if not n.startswith("pipe.vae_cond")}
    assert convert(checkpoint, tmp_path, state, "--set", "source.scale=LearnableScale") == 0
    assert read_folder_config(tmp_path / "a").config.source.scale == LearnableScale()
    dit = {name: tensor for name, tensor in state.items() if name.startswith("pipe.dit.")}
    assert convert(checkpoint, tmp_path, dit, "--set", "query.layers=[99]") == 2
    assert "no such layers" in capsys.readouterr().err


def test_blocks_are_counted_without_a_gap_before_any_is_made(checkpoint, tmp_path, capsys):
    state = load_file(checkpoint / "c.safetensors")
    assert convert(checkpoint, tmp_path, state | {"pipe.dit.blocks.999999.foo": torch.ones(1)}) == 2
    assert "the last of them 999999, and none of number 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        ("two ranks", "cannot be kept beside the weights. Got: ranks [1, 2]"),
        ("part of the layers", "Got: none for blocks.0.ffn.0"),
        ("half", "no blocks.1.ffn.0.lora_B.default.weight"),
    ],
)
def test_adapters_that_cannot_be_kept_are_merged_where_that_has_a_meaning(checkpoint, tmp_path, capsys, spoil, told):
    state = load_file(checkpoint / "c.safetensors")
    for block in (1,) if spoil == "part of the layers" else (0, 1):
        rank = 1 + block if spoil == "two ranks" else 2
        state[f"pipe.dit.blocks.{block}.ffn.0.lora_A.default.weight"] = torch.ones(rank, 48)
        state[f"pipe.dit.blocks.{block}.ffn.0.lora_B.default.weight"] = torch.ones(96, rank)
    if spoil == "half":
        del state["pipe.dit.blocks.1.ffn.0.lora_B.default.weight"]
    assert convert(checkpoint, tmp_path, state, "--adapters", "keep") == 2
    refused = " ".join(capsys.readouterr().err.split())
    assert told in refused
    assert convert(checkpoint, tmp_path, state, "--adapters", "merge") == (2 if spoil == "half" else 0)
    if spoil == "part of the layers":
        assert "1 adapter: merge" in " ".join(capsys.readouterr().out.split())
    if spoil != "half":
        assert "--adapters merge" in refused
        before = read_weights(checkpoint / "m")["dit.blocks.1.ffn.0.weight"]
        assert torch.allclose(read_weights(tmp_path / "a")["dit.blocks.1.ffn.0.weight"], before + 2)


def test_what_is_absent_is_drawn_from_the_seed_that_was_given_and_each_part_apart(checkpoint, tmp_path):
    lacks = ("pipe.mllm.ref_", "pipe.mllm.video_queries", "pipe.mllm.image_queries")
    state = {n: t for n, t in load_file(checkpoint / "c.safetensors").items() if not n.startswith(lacks)}
    counts = [word for mode in ("image", "video", "reference") for word in ("--set", f"query.{mode}=4")]
    drawn = {}
    for seed in (0, 0, 5):
        assert convert(checkpoint, tmp_path, state, "--seed", str(seed), *counts) == 0
        found = read_weights(tmp_path / "a")
        with forked_rng(seed, "latent"):
            wanted = LatentConnector().build(32, 48).state_dict()["connector.0.weight"]
        assert torch.equal(found["latent.connector.0.weight"], wanted)
        drawn.setdefault(seed, []).append(found["query.queries.reference"])
    assert torch.equal(*drawn[0])
    assert not torch.equal(drawn[0][0], drawn[5][0])


def test_a_base_model_that_stays_outside_is_read_once_and_told_by_its_fingerprint(checkpoint, tmp_path, monkeypatch):
    state = load_file(checkpoint / "c.safetensors")
    base = {n.removeprefix("pipe.dit."): t for n, t in state.items() if n.startswith("pipe.dit.") and "text_" not in n}
    state = {name: tensor for name, tensor in state.items() if not name.startswith("pipe.dit.")}
    for block in (0, 1):
        state[f"pipe.dit.blocks.{block}.ffn.0.lora_A.default.weight"] = torch.ones(2, 48)
        state[f"pipe.dit.blocks.{block}.ffn.0.lora_B.default.weight"] = torch.ones(96, 2)
    reads = []

    def read(path, subfolder):
        reads.append(path)
        return base

    monkeypatch.setattr(kiwi.checkpoints.assemble, "read_wan_transformer", read)
    assert convert(checkpoint, tmp_path, state, "--base", "someone/wan", "--adapters", "keep") == 0
    assert reads == ["someone/wan"]
    record = read_folder_config(tmp_path / "a")
    assert (record.config.dit.base.path, record.bases["dit"]) == ("someone/wan", fingerprint(base))
