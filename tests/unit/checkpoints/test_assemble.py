"""The tensors of a training checkpoint are all used or rejected; parts that a stage did not have are initialised."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import kiwi.checkpoints.assemble
from kiwi.__main__ import main
from kiwi.checkpoints.folder import from_pretrained
from kiwi.checkpoints.folder_config import read_folder_config
from kiwi.keyed import forked_rng
from kiwi.models.connectors import LatentConnector
from kiwi.models.injection import NoReference
from kiwi.models.scaling import LearnableScale
from kiwi.weights.files import read_weights
from kiwi.weights.names import select_prefix
from kiwi.weights.strict import fingerprint
from tests.unit.checkpoints.conftest import edit, import_command, import_state

STAGES = {
    1: ("mllm.image_queries", "mllm.connetor"),
    2: ("mllm.image_queries", "mllm.connetor", "mllm.video_queries", "dit.", "vae_condition"),
}


@pytest.mark.parametrize("stage", STAGES)
def test_parts_that_an_earlier_stage_did_not_have_are_initialised_and_reported(
    checkpoint, config, tmp_path, capsys, stage
):
    state = load_file(checkpoint / "c.safetensors")
    stage_state = {n: t for n, t in state.items() if n.removeprefix("pipe.").startswith(STAGES[stage])}
    save_file(stage_state, tmp_path / "s.safetensors")
    dit = select_prefix(state, "pipe.dit.")
    save_file(dit, tmp_path / "base.safetensors")
    base, counts = ["--base", f"{tmp_path}/base.safetensors"], ["--set", "query.reference=5", "--set", "query.video=4"]
    back = import_command(tmp_path / "s.safetensors", tmp_path / "a", checkpoint / "m")
    needs, useless = (base, []) if stage == 1 else ([], base)
    assert main([*back, *useless]) == 2
    assert ("requires the base model" if stage == 1 else "remove --base") in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
    assert main([*back, *needs, *counts]) == 0
    output = " ".join(capsys.readouterr().out.split())
    imported, original = read_weights(tmp_path / "a"), read_weights(checkpoint / "m")
    assert torch.equal(imported["dit.blocks.0.ffn.0.weight"], original["dit.blocks.0.ffn.0.weight"])
    assert torch.equal(imported["query.queries.image"], original["query.queries.image"])
    assert 0.01 < imported["query.queries.reference"].std() < 0.03
    assert imported["latent.connector.2.weight"].abs().max() == 0
    assert (imported["source.patch_embedding.weight"].abs().max() == 0) == (stage == 1)
    assert read_folder_config(tmp_path / "a").config.reference == NoReference()
    for part in ("query.queries.reference", "latent.connector"):
        assert f"{part} │ not in the checkpoint: initialised" in output


@pytest.mark.parametrize("damage", ["missing", "unexpected", "mismatched", "half a group"])
def test_a_mismatched_checkpoint_is_rejected_and_named_and_nothing_is_written(checkpoint, tmp_path, capsys, damage):
    state = load_file(checkpoint / "c.safetensors")
    name = "pipe.mllm.connetor.2.bias" if damage == "half a group" else "pipe.dit.blocks.1.ffn.2.bias"
    if damage == "unexpected":
        name = "pipe.dit.blocks.1.ffn.2.gain"
        state[name] = torch.ones(1)
    elif damage == "mismatched":
        state[name] = torch.ones(7)
    else:
        del state[name]
    save_file(state, tmp_path / "c.safetensors")
    assert main(import_command(tmp_path / "c.safetensors", tmp_path / "a", checkpoint / "m")) == 2
    message = capsys.readouterr().err
    kiwi_name = {"pipe.mllm.connetor.2.bias": "query.connector.2.bias"}.get(name, name.removeprefix("pipe."))
    assert kiwi_name in message
    assert {"mismatched": "with the wrong shape", "unexpected": "unexpected"}.get(damage, "missing") in message
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
def test_each_part_gets_one_dtype_and_the_model_edits(checkpoint, tmp_path, capsys, mix):
    state = {name: tensor.to(MIXES[mix](name)) for name, tensor in load_file(checkpoint / "c.safetensors").items()}
    assert import_state(checkpoint, tmp_path, state) == 0
    output = " ".join(capsys.readouterr().out.split())
    dtypes = {}
    for name, tensor in read_weights(tmp_path / "a").items():
        dtypes.setdefault(name.split(".")[0], set()).add(tensor.dtype)
    assert all(len(part_dtypes) == 1 for part_dtypes in dtypes.values())
    expected = {"half": torch.float16, "parts": torch.bfloat16}.get(mix, torch.float32)
    assert dtypes["dit"] == {expected}
    assert (" to float32" in output) == (mix in ("norms", "one", "halves", "double"))
    edited = edit(from_pretrained(tmp_path / "a")[0].eval())
    assert (edited - edit(from_pretrained(checkpoint / "m")[0].eval())).abs().mean() < 0.05


@pytest.mark.parametrize(
    "damage", [torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn, float("nan"), float("inf")], ids=str
)
@pytest.mark.parametrize("name", ["pipe.dit.blocks.1.ffn.2.bias", "pipe.mllm.connetor.2.bias"])
def test_tensors_that_are_not_finite_floats_are_rejected_and_named(checkpoint, tmp_path, capsys, name, damage):
    state = load_file(checkpoint / "c.safetensors")
    if isinstance(damage, float):
        state[name][1] = damage
    else:
        state[name] = state[name].to(damage)
    assert import_state(checkpoint, tmp_path, state) == 2
    message = capsys.readouterr().err
    assert name in message or name.removeprefix("pipe.").replace("mllm.connetor", "query.connector") in message
    assert ("NaN or infinite" if isinstance(damage, float) else str(damage).removeprefix("torch.")) in message


@pytest.mark.parametrize(
    ("change", "message"),
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
        ("dit.eps=1e-6", "such as 1.0e-6"),
        ("mllm.limits.max_reference_tokens=0", "max_reference_tokens must be at least 1"),
        ("reference=NoReference", "unexpected"),
        ("query.image=7", "query.queries.image"),
    ],
)
def test_options_that_contradict_a_checkpoint_or_are_invalid_are_rejected(
    checkpoint, tmp_path, capsys, change, message
):
    assert import_state(checkpoint, tmp_path, load_file(checkpoint / "c.safetensors"), "--set", change) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "a").exists()


def test_an_option_of_a_part_that_a_checkpoint_lacks_is_accepted(checkpoint, tmp_path, capsys):
    state = {n: t for n, t in load_file(checkpoint / "c.safetensors").items() if not n.startswith("pipe.vae_cond")}
    assert import_state(checkpoint, tmp_path, state, "--set", "source.scale=LearnableScale") == 0
    assert read_folder_config(tmp_path / "a").config.source.scale == LearnableScale()
    dit = {name: tensor for name, tensor in state.items() if name.startswith("pipe.dit.")}
    assert import_state(checkpoint, tmp_path, dit, "--set", "query.layers=[99]") == 2
    assert "the MLLM has no layers [99]" in capsys.readouterr().err


def test_a_gap_in_the_block_numbers_is_rejected_before_any_block_is_built(checkpoint, tmp_path, capsys):
    state = load_file(checkpoint / "c.safetensors")
    assert import_state(checkpoint, tmp_path, state | {"pipe.dit.blocks.999999.foo": torch.ones(1)}) == 2
    assert "highest index 999999, missing index 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("two ranks", "Got: ranks [1, 2]"),
        ("half", "no blocks.1.ffn.0.lora_B.default.weight"),
    ],
)
def test_adapters_that_cannot_be_kept_can_be_merged_unless_half_is_missing(
    checkpoint, tmp_path, capsys, damage, message
):
    state = load_file(checkpoint / "c.safetensors")
    for block in (0, 1):
        rank = 1 + block if damage == "two ranks" else 2
        state[f"pipe.dit.blocks.{block}.ffn.0.lora_A.default.weight"] = torch.ones(rank, 48)
        state[f"pipe.dit.blocks.{block}.ffn.0.lora_B.default.weight"] = torch.ones(96, rank)
    if damage == "half":
        del state["pipe.dit.blocks.1.ffn.0.lora_B.default.weight"]
    assert import_state(checkpoint, tmp_path, state, "--adapters", "keep") == 2
    error = " ".join(capsys.readouterr().err.split())
    assert message in error
    assert import_state(checkpoint, tmp_path, state, "--adapters", "merge") == (2 if damage == "half" else 0)
    if damage != "half":
        assert "--adapters merge" in error
        before = read_weights(checkpoint / "m")["dit.blocks.1.ffn.0.weight"]
        assert torch.allclose(read_weights(tmp_path / "a")["dit.blocks.1.ffn.0.weight"], before + 2)


def test_initial_values_of_absent_parts_depend_on_the_seed_and_the_part_alone(checkpoint, tmp_path):
    absent = ("pipe.mllm.ref_", "pipe.mllm.video_queries", "pipe.mllm.image_queries")
    state = {n: t for n, t in load_file(checkpoint / "c.safetensors").items() if not n.startswith(absent)}
    counts = [word for kind in ("image", "video", "reference") for word in ("--set", f"query.{kind}=4")]
    queries = {}
    for seed in (0, 0, 5):
        assert import_state(checkpoint, tmp_path, state, "--seed", str(seed), *counts) == 0
        state_of_seed = read_weights(tmp_path / "a")
        with forked_rng(seed, "latent"):
            connector = LatentConnector().build(32, 48).state_dict()["connector.0.weight"]
        assert torch.equal(state_of_seed["latent.connector.0.weight"], connector)
        queries.setdefault(seed, []).append(state_of_seed["query.queries.reference"])
    assert torch.equal(*queries[0])
    assert not torch.equal(queries[0][0], queries[5][0])


def test_a_base_model_that_is_only_referenced_is_read_once_and_recorded_by_its_fingerprint(
    checkpoint, tmp_path, monkeypatch
):
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
    assert import_state(checkpoint, tmp_path, state, "--base", "someone/wan", "--adapters", "keep") == 0
    assert reads == ["someone/wan"]
    record = read_folder_config(tmp_path / "a")
    assert (record.config.dit.base.path, record.base_fingerprints["dit"]) == ("someone/wan", fingerprint(base))
