"""Models go to the published formats and back, through the command line, and edit alike."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from kiwi.__main__ import main
from kiwi.checkpoints.diffusers_folder import import_diffusers
from kiwi.checkpoints.folder import from_pretrained, read_record, save_pretrained
from kiwi.checkpoints.published import NOTED, unsaid
from kiwi.errors import CheckpointError
from kiwi.keyed import forked_rng
from kiwi.models.base import WanBase
from kiwi.models.config import KiwiConfig
from kiwi.models.connectors import LatentConnector, NoConnector, QueryConnector
from kiwi.models.injection import AppendReference, ChannelConcatSource, NoReference, NoSource, PrependReference
from kiwi.models.kiwi import KiwiEdit
from kiwi.models.pictures import VisionLimits
from kiwi.models.sampling import EditingDefaults, Sampling, denoise, make_noise
from kiwi.models.scaling import LearnableScale
from kiwi.models.tuning import Lora
from kiwi.weights.adapters import is_adapter
from kiwi.weights.files import read_shapes, read_weights

LIMITS = "mllm.limits={max_frames: 4, max_pixels_per_frame: 7056, min_pixels_per_frame: 784, max_reference_tokens: 16}"


def randomise(model):
    """Every weight of the editor drawn, none left at zero, so that each has a part in the edit."""
    torch.manual_seed(7)
    for name, parameter in model.named_parameters():
        if not name.startswith("vae") and (is_adapter(name) or not name.startswith("mllm")):
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def edit(model):
    """An edited clip, before it becomes pixels."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (5, 32, 48, 3), dtype=np.uint8)
    picture = rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)
    source = torch.from_numpy(frames).permute(3, 0, 1, 2)[None] / 127.5 - 1
    with torch.no_grad():
        conditions = model.encode(
            "reference",
            [frames],
            ["Make it snow"],
            [[picture]],
            source,
            torch.linspace(-1, 1, 3 * 32 * 48).view(1, 1, 3, 32, 48),
        )
        noise = make_noise(tuple(conditions.source_BCFHW.shape), 0, ["edit"], "cpu")
        return model.vae.decode(denoise(model, conditions, noise, Sampling(steps=3)))


@pytest.fixture(scope="module")
def config(tiny_config) -> KiwiConfig:
    """Choices that the published code has."""
    return tiny_config.replace(query=QueryConnector(image=3, video=4, reference=5, readout="tail"))


def saved(config, folder):
    model = randomise(KiwiEdit(config, seed=1))
    save_pretrained(model, folder, EditingDefaults())
    return model


def beside(folder):
    """What a training checkpoint does not hold, from the model folder it was made of."""
    return ["--vae", f"{folder}:vae", "--mllm", f"{folder}/mllm", "--set", "dit.num_heads=2", "--set", LIMITS]


@pytest.mark.parametrize("reference", [AppendReference(), PrependReference()])
def test_a_model_in_both_published_formats_edits_the_same_video(config, tmp_path, reference, capsys):
    model = saved(config.replace(reference=reference), tmp_path / "m")
    wanted = edit(model)
    steps = {"a": 0.0, "b": 0.003 / 1.002}  # each as the publisher's own sampler of that format
    assert main(["convert", "kiwi-upstream", f"{tmp_path}/m", f"{tmp_path}/step-1.safetensors"]) == 0
    extra = ["--set", f"reference={type(reference).__name__}"]
    back = [
        "convert",
        "kiwi-upstream",
        f"{tmp_path}/step-1.safetensors",
        f"{tmp_path}/a",
        *beside(tmp_path / "m"),
        *extra,
    ]
    assert main(back) == 0
    assert main(["convert", "kiwi-diffusers", f"{tmp_path}/m", f"{tmp_path}/d"]) == 0
    assert main(["convert", "kiwi-diffusers", f"{tmp_path}/d", f"{tmp_path}/b"]) == 0
    assert wanted.std() > 0.01
    for folder in ("a", "b"):
        loaded, editing = from_pretrained(tmp_path / folder)
        assert loaded.config.reference == reference
        assert editing.sampling == Sampling(sigma_min=steps[folder])
        assert (edit(loaded.eval()) - wanted).abs().max() <= 1e-5, folder
        assert read_shapes(tmp_path / folder) == read_shapes(tmp_path / "m")


@pytest.mark.parametrize("adapters", ["merge", "keep"])
def test_adapters_are_merged_or_kept_and_edit_the_same(config, tmp_path, adapters):
    tuned = config.replace(
        mllm=config.mllm.replace(tuning=Lora(rank=2)),
        dit=config.dit.replace(tuning=Lora(rank=3, targets=("ffn.0", "q"))),
    )
    model = saved(tuned, tmp_path / "m")
    wanted = edit(model)
    assert main(["convert", "kiwi-upstream", f"{tmp_path}/m", f"{tmp_path}/c.safetensors"]) == 0
    names = load_file(tmp_path / "c.safetensors").keys()
    assert "pipe.mllm.model.model.language_model.layers.0.self_attn.q_proj.lora_A.default.weight" in names
    assert "pipe.dit.blocks.0.self_attn.q.weight" in names
    back = ["convert", "kiwi-upstream", f"{tmp_path}/c.safetensors", f"{tmp_path}/a", *beside(tmp_path / "m")]
    assert main([*back, "--adapters", adapters]) == 0
    loaded, _ = from_pretrained(tmp_path / "a")
    assert (edit(loaded.eval()) - wanted).abs().max() <= 2e-5
    assert any(map(is_adapter, read_shapes(tmp_path / "a"))) == (adapters == "keep")
    assert loaded.config.dit.tuning == (tuned.dit.tuning if adapters == "keep" else config.dit.tuning)
    assert main(["convert", "kiwi-diffusers", f"{tmp_path}/m", f"{tmp_path}/d"]) == 0
    assert main(["convert", "kiwi-diffusers", f"{tmp_path}/d", f"{tmp_path}/b"]) == 0
    assert (edit(from_pretrained(tmp_path / "b")[0].eval()) - wanted).abs().max() <= 2e-5


@pytest.mark.parametrize("adapters", ["merge", "keep"])
def test_a_checkpoint_of_adapters_alone_edits_the_same_on_its_base_model(
    config, checkpoint, tmp_path, adapters, capsys
):
    """The published 14B: the file holds the DiT's adapters, and those of the MLLM go to its perceptrons too."""
    dit = {n.removeprefix("dit."): t for n, t in read_weights(checkpoint / "m").items() if n.startswith("dit.")}
    base = tmp_path / "base.safetensors"
    save_file(dit, base)
    targets = ("q_proj", "v_proj", "gate_proj", "down_proj")
    tuned = config.replace(
        mllm=config.mllm.replace(tuning=Lora(rank=4, targets=targets)),
        dit=config.dit.replace(base=WanBase(path=str(base)), tuning=Lora(rank=3)),
    )
    model = KiwiEdit(tuned, seed=1)
    torch.manual_seed(9)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not name.startswith("vae"):
            torch.nn.init.normal_(parameter, std=0.1)
    save_pretrained(model.eval(), tmp_path / "m", EditingDefaults(), self_contained=False)
    wanted = edit(model)
    assert main(["convert", "kiwi-upstream", f"{tmp_path}/m", f"{tmp_path}/c.safetensors"]) == 0
    names = load_file(tmp_path / "c.safetensors").keys()
    assert all(is_adapter(name) for name in names if name.startswith("pipe.dit."))
    assert "pipe.mllm.model.model.language_model.layers.0.mlp.gate_proj.lora_B.default.weight" in names
    (tmp_path / "beside").mkdir()
    model.vae.save(tmp_path / "beside/vae")
    model.mllm.save(tmp_path / "beside/mllm")
    back = ["convert", "kiwi-upstream", f"{tmp_path}/c.safetensors", f"{tmp_path}/a", *beside(tmp_path / "beside")]
    capsys.readouterr()
    assert main(back) == 2
    assert "no weights" in capsys.readouterr().err
    assert main([*back, "--base", str(base), "--adapters", adapters]) == 0
    loaded, _ = from_pretrained(tmp_path / "a")
    assert any(map(is_adapter, read_shapes(tmp_path / "a"))) == (adapters == "keep")
    assert (edit(loaded.eval()) - wanted).abs().max() <= 2e-5


@pytest.fixture(scope="module")
def checkpoint(config, tmp_path_factory):
    """A folder with the model folder m and its training checkpoint c.safetensors."""
    folder = tmp_path_factory.mktemp("checkpoint")
    saved(config, folder / "m")
    assert main(["convert", "kiwi-upstream", f"{folder}/m", f"{folder}/c.safetensors"]) == 0
    return folder


def test_the_training_checkpoint_has_the_published_names(checkpoint):
    names = set(load_file(checkpoint / "c.safetensors"))
    assert {
        "pipe.dit.text_embedding.0.weight", "pipe.dit.blocks.1.norm3.bias", "pipe.dit.head.modulation",
        "pipe.vae_condition.patch_embedding.weight", "pipe.ref_vae_condition.patch_embedding.bias",
        "pipe.mllm.connetor.2.bias", "pipe.mllm.ref_connector.0.weight", "pipe.mllm.ref_queries.q",
    } <= names  # fmt: skip
    assert len([n for n in names if n.startswith("pipe.dit.")]) == 15 + 2 * 27
    assert all(name.startswith("pipe.") for name in names)


@pytest.mark.parametrize("prefix", ["pipe.dit.", "pipe.", "dit."])
def test_a_checkpoint_is_read_whatever_prefix_its_names_kept(checkpoint, tmp_path, prefix):
    state = load_file(checkpoint / "c.safetensors")
    if prefix == "pipe.dit.":  # the published default: the DiT's names lose everything, the others nothing
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    elif prefix == "dit.":
        state = {name.removeprefix("pipe."): tensor for name, tensor in state.items()}
    save_file(state, tmp_path / "c.safetensors")
    assert (
        main(["convert", "kiwi-upstream", f"{tmp_path}/c.safetensors", f"{tmp_path}/a", *beside(checkpoint / "m")]) == 0
    )
    found, wanted = read_weights(tmp_path / "a"), read_weights(checkpoint / "m")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


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
    assert read_record(tmp_path / "a").config.reference == NoReference()
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
    assert {"misshapen": "of another shape", "unexpected": "unexpected"}.get(spoil, "missing") in told
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.safetensors"]


def convert(checkpoint, folder, state, *more):
    """The exit code of importing these tensors as a training checkpoint."""
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "c.safetensors")
    command = ["convert", "kiwi-upstream", f"{folder}/c.safetensors", f"{folder}/a", "--force"]
    return main([*command, *beside(checkpoint / "m"), *more])


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
    assert read_record(tmp_path / "a").config.source.scale == LearnableScale()
    dit = {name: tensor for name, tensor in state.items() if name.startswith("pipe.dit.")}
    assert convert(checkpoint, tmp_path, dit, "--set", "query.layers=[99]") == 2
    assert "no such layers" in capsys.readouterr().err


def test_blocks_are_counted_without_a_gap_before_any_is_made(checkpoint, tmp_path, capsys):
    state = load_file(checkpoint / "c.safetensors")
    assert convert(checkpoint, tmp_path, state | {"pipe.dit.blocks.999999.foo": torch.ones(1)}) == 2
    assert "the last of them 999999, and none of number 2" in capsys.readouterr().err


@pytest.mark.parametrize("published", ["kiwi-upstream", "kiwi-diffusers"])
def test_heads_that_nothing_tells_are_assumed_aloud_or_asked_for(config, tmp_path, capsys, published):
    for width, code in ((128, 0), (48, 2)):
        dit = config.dit.replace(dim=width, num_heads=1 if width == 128 else 2)
        saved(config.replace(dit=dit), tmp_path / f"{width}")
        source, given = tmp_path / f"{width}.safetensors", beside(tmp_path / f"{width}")[:4]
        assert main(["convert", published, f"{tmp_path}/{width}", str(source)]) == 0
        if published == "kiwi-diffusers":
            file, given = source / "transformer/config.json", []
            found = json.loads(file.read_text())
            del found["num_attention_heads"]
            file.write_text(json.dumps(found))
        else:
            save_file(load_file(source), source)  # as the publisher's, without what our own export notes in it
        capsys.readouterr()
        assert main(["convert", published, str(source), f"{tmp_path}/a{width}", *given]) == code
        told = capsys.readouterr()
        wanted = "--set dit.num_heads=N" if code else "assumed 1, 128 channels a head"
        assert wanted in " ".join((told.err if code else told.out).split())


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        ("ref_embedder", {"ref_pad_first": "false"}, "Got: 'false'. Wanted: true or false"),
        ("transformer", {"num_attention_heads": "x"}, "dit.num_heads has the wrong type"),
        ("mllm_encoder", {"max_frames": "x"}, "mllm_encoder/config.json is wrong. Got: {'max_frames': 'x'}"),
        ("mllm_encoder", {"max_object_token": 0}, "max_reference_tokens must be at least 1"),
    ],
)
def test_settings_of_a_published_folder_are_read_strictly(checkpoint, tmp_path, capsys, file, change, told):
    assert main(["convert", "kiwi-diffusers", f"{checkpoint}/m", f"{tmp_path}/d"]) == 0
    path = tmp_path / "d" / file / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert main(["convert", "kiwi-diffusers", f"{tmp_path}/d", f"{tmp_path}/b"]) == 2
    assert told in " ".join(capsys.readouterr().err.split())


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


@pytest.mark.parametrize(
    "change",
    [
        {"source": ChannelConcatSource()},
        {"latent": NoConnector()},
        {"query": QueryConnector(image=3, video=4, reference=5)},
    ],
)
def test_choices_that_the_published_code_does_not_have_are_refused(config, tmp_path, capsys, change):
    save_pretrained(KiwiEdit(config.replace(**change)), tmp_path / "m", EditingDefaults())
    for name, target in (("kiwi-upstream", "c.safetensors"), ("kiwi-diffusers", "d")):
        assert main(["convert", name, f"{tmp_path}/m", f"{tmp_path}/{target}"]) == 2
        told = capsys.readouterr().err
        assert "cannot express this model" in told
        assert next(iter(change)) in told
        assert not (tmp_path / target).exists()


@pytest.mark.parametrize("names", ["original", "diffusers"])
def test_wan_base_weights_become_a_folder_to_train_from(checkpoint, tmp_path, capsys, names):
    from kiwi.weights.names import dit_to_diffusers

    state = load_file(checkpoint / "c.safetensors")
    dit = {n.removeprefix("pipe.dit."): t for n, t in state.items() if n.startswith("pipe.dit.")}
    if names == "diffusers":
        dit = {dit_to_diffusers(name): tensor for name, tensor in dit.items()}
    (tmp_path / "transformer").mkdir()
    save_file(dit, tmp_path / "transformer" / "diffusion_pytorch_model.safetensors")
    assert main(["convert", "wan", f"{tmp_path}:transformer", f"{tmp_path}/a", *beside(checkpoint / "m")]) == 0
    model, _ = from_pretrained(tmp_path / "a")
    assert (model.config.query.readout, model.config.reference) == ("queries", AppendReference())
    wanted = read_weights(checkpoint / "m")
    assert torch.equal(model.dit.blocks[1].cross_attn.o.weight, wanted["dit.blocks.1.cross_attn.o.weight"])
    assert model.source.patch_embedding.weight.abs().max() == 0
    assert len(model.query.queries["reference"]) == 768
    assert main(["convert", "wan", f"{tmp_path}/a", f"{tmp_path}/w"]) == 2
    assert "cannot be written as Wan" in capsys.readouterr().err


def test_an_existing_target_is_kept_unless_forced(checkpoint, tmp_path, capsys):
    command = ["convert", "kiwi-diffusers", f"{checkpoint}/m", f"{tmp_path}/d"]
    assert main(command) == 0
    (tmp_path / "d/model_index.json").touch()
    stamp = (tmp_path / "d/vae/config.json").stat().st_ino
    assert main(command) == 2
    assert (tmp_path / "d/vae/config.json").stat().st_ino == stamp
    assert main([*command, "--force"]) == 0
    assert (tmp_path / "d/vae/config.json").stat().st_ino != stamp
    assert [item.name for item in tmp_path.iterdir()] == ["d"]


def contents(folder):
    return {path.relative_to(folder) for path in folder.rglob("*")}


@pytest.mark.parametrize("target", ["proj", "proj/m", "proj/m/vae/x", "home", "wan", "..", "."])
def test_force_replaces_nothing_but_models_that_are_not_read(checkpoint, tmp_path, monkeypatch, capsys, target):
    shutil.copytree(checkpoint / "m", tmp_path / "proj/m")
    for name in ("home/photo.jpg", "wan/vae/weights", "here/x"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    (tmp_path / "wan/model_index.json").write_text('{"_class_name": "WanPipeline"}')
    monkeypatch.chdir(tmp_path / "here")
    before = contents(tmp_path)
    path = target if target in (".", "..") else f"{tmp_path}/{target}"
    assert main(["convert", "kiwi-diffusers", f"{tmp_path}/proj/m", path, "--force"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert len(told.strip().splitlines()) == 1
    assert contents(tmp_path) == before


def test_a_folder_whose_vae_is_read_is_not_replaced(checkpoint, tmp_path, capsys):
    shutil.copytree(checkpoint / "m", tmp_path / "m")
    back = ["convert", "kiwi-upstream", f"{checkpoint}/c.safetensors", f"{tmp_path}/m", *beside(tmp_path / "m")]
    assert main([*back, "--force"]) == 2
    assert "which is read" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["kiwi-upstream", "kiwi-diffusers"])
@pytest.mark.parametrize("target", ["x" * 300 + ".safetensors", "/proc/x.safetensors", "no/x.safetensors", "", "/"])
def test_a_target_that_cannot_be_is_told_in_one_paragraph(checkpoint, name, target, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", name, f"{checkpoint}/m", target, "--force"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "src", "options", "told"),
    [
        ("kiwi-diffusers", "d", ["--vae", "x", "--mllm", "y", "--base", "z"], "--base, --mllm, --vae"),
        ("kiwi-diffusers", "d", ["--adapters", "keep", "--by-name"], "--adapters, --by-name"),
        ("kiwi-diffusers", "d", ["--dtype", "bfloat16"], "--dtype"),
        ("kiwi-upstream", "c.safetensors", ["--dtype", "bfloat16"], "--dtype"),
        ("wan", "c.safetensors", ["--base", "x", "--adapters", "keep"], "--adapters, --base"),
        ("kiwi-upstream", "m", ["--set", "a=b", "--vae", "x", "--seed", "3"], "--seed, --set, --vae"),
        ("kiwi-diffusers", "m", ["--adapters", "keep", "--by-name"], "--adapters, --by-name"),
    ],
)
def test_options_that_mean_nothing_are_refused_by_name(checkpoint, tmp_path, capsys, name, src, options, told):
    assert main(["convert", name, f"{checkpoint}/{src}", f"{tmp_path}/a", *options]) == 2
    assert f"{name} does nothing with {told}." in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_choices_that_tensors_do_not_say_are_told_and_noted_in_the_file(config, tmp_path, capsys):
    config = config.replace(reference=PrependReference(), source=NoSource())
    saved(config, tmp_path / "m")
    assert main(["convert", "kiwi-upstream", f"{tmp_path}/m", f"{tmp_path}/c.safetensors"]) == 0
    told = " ".join(word for word in capsys.readouterr().out.split() if word != "│")
    limits = config.mllm.limits
    choices = {
        "dit.num_heads": 2,
        "mllm.limits.max_frames": limits.max_frames,
        "mllm.limits.max_pixels_per_frame": limits.max_pixels_per_frame,
        "mllm.limits.min_pixels_per_frame": limits.min_pixels_per_frame,
        "mllm.limits.max_reference_tokens": limits.max_reference_tokens,
        "source": "NoSource",
        "reference": "PrependReference",
    }
    assert unsaid(config) == choices
    assert all(f"--set {path}={value}" in told for path, value in choices.items())

    parts = ["--vae", f"{tmp_path}/m:vae", "--mllm", f"{tmp_path}/m/mllm"]
    back = ["convert", "kiwi-upstream", f"{tmp_path}/c.safetensors", f"{tmp_path}/a", *parts]
    assert main(back) == 0
    found = read_record(tmp_path / "a").config
    assert found.replace(vae=config.vae, mllm=config.mllm) == config
    assert found.mllm.limits == limits
    given = ["--set", "mllm.limits={max_frames: 7}", "--set", "reference=AppendReference", "--force"]
    assert main([*back, *given]) == 0
    found = read_record(tmp_path / "a").config
    assert found.reference == AppendReference()
    assert found.mllm.limits == VisionLimits(max_frames=7)


def test_a_published_size_needs_no_choice_on_the_way_back():
    published = KiwiConfig.published_5b()
    assert unsaid(published) == {}
    limited = published.mllm.replace(limits=VisionLimits(max_frames=10))
    assert unsaid(published.replace(mllm=limited)) == {"mllm.limits.max_frames": 10}


@pytest.mark.parametrize("note", ['{"vae.path": "x"}', '{"dit.num_heads": "2"}', "[]", "{", "[" * 100_000])
def test_a_note_that_says_something_else_is_refused(checkpoint, tmp_path, capsys, note):
    save_file(load_file(checkpoint / "c.safetensors"), tmp_path / "c.safetensors", {NOTED: note})
    back = ["convert", "kiwi-upstream", f"{tmp_path}/c.safetensors", f"{tmp_path}/a", *beside(checkpoint / "m")]
    assert main(back) == 2
    assert "choices noted in" in capsys.readouterr().err


def test_the_report_names_no_folder_that_is_gone(checkpoint, tmp_path, capsys):
    assert main(["convert", "kiwi-diffusers", f"{checkpoint}/m", f"{tmp_path}/d"]) == 0
    reports = []
    import_diffusers(f"{tmp_path}/d", {}, tmp_path / "a", lambda part, text: reports.append((part, text)))
    assert ("mllm", f"copied from {tmp_path}/d/mllm_encoder") in reports
    next((tmp_path / "d/mllm_encoder").glob("model*.safetensors")).write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=f"{tmp_path}/d/mllm_encoder"):
        import_diffusers(f"{tmp_path}/d", {}, tmp_path / "b", lambda part, text: None)


def test_the_diffusers_folder_has_the_published_layout(checkpoint, tmp_path):
    assert main(["convert", "kiwi-diffusers", f"{checkpoint}/m", f"{tmp_path}/d"]) == 0
    root = tmp_path / "d"
    index = json.loads((root / "model_index.json").read_text())
    assert index["transformer"] == ["diffusers", "WanTransformer3DModel"]
    assert all((root / part).is_dir() for part in index if not part.startswith("_"))
    assert read_shapes(root / "transformer")["blocks.0.attn1.to_out.0.weight"] == (48, 48)
    assert read_shapes(root / "source_embedder").keys() == {"patch_embedding.weight", "patch_embedding.bias"}
    assert json.loads((root / "ref_embedder/config.json").read_text())["ref_pad_first"] is False
    encoder = read_shapes(root / "mllm_encoder/diffusion_pytorch_model.safetensors")
    assert {"image_queries", "ref_queries", "connector.0.weight", "ref_connector.2.bias"} <= encoder.keys()
    language = read_shapes(root / "mllm_encoder/model.safetensors")
    assert {
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.norm.weight",
    } <= language.keys()
    assert any(name.startswith("visual.blocks.0.") for name in language)
    assert "decoder.head.0.gamma" in read_shapes(root / "vae")
    assert (root / "processor/qwen_config.json").is_file()
    assert (root / "processor/tokenizer.json").is_file()


def test_diffusers_own_class_loads_the_transformer(checkpoint, tmp_path):
    from diffusers import WanTransformer3DModel

    assert main(["convert", "kiwi-diffusers", f"{checkpoint}/m", f"{tmp_path}/d"]) == 0
    model, info = WanTransformer3DModel.from_pretrained(f"{tmp_path}/d/transformer", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    wanted = read_weights(checkpoint / "m")["dit.blocks.1.cross_attn.k.weight"]
    assert torch.equal(model.blocks[1].attn2.to_k.weight, wanted)


def test_a_model_that_others_are_read_from_is_not_replaced(checkpoint, tmp_path, capsys):
    """A model folder that names its VAE and MLLM reads those when it is written in another format."""
    shutil.copytree(checkpoint / "m", tmp_path / "m")
    back = ["convert", "kiwi-upstream", f"{checkpoint}/c.safetensors", f"{tmp_path}/named", *beside(tmp_path / "m")]
    assert main([*back, "--by-name"]) == 0
    assert main(["convert", "kiwi-diffusers", f"{tmp_path}/named", f"{tmp_path}/m", "--force"]) == 2
    assert "which is read" in capsys.readouterr().err
    assert read_weights(tmp_path / "m")


def test_parts_that_a_published_folder_lists_must_be_there(checkpoint, tmp_path, capsys):
    assert main(["convert", "kiwi-diffusers", f"{checkpoint}/m", f"{tmp_path}/d"]) == 0
    config = tmp_path / "d/transformer/config.json"
    said = config.read_text()
    config.write_text(json.dumps(json.loads(said) | {"num_layers": 9}))
    assert main(["convert", "kiwi-diffusers", f"{tmp_path}/d", f"{tmp_path}/b"]) == 2
    assert "another number of blocks" in capsys.readouterr().err
    config.write_text(said)
    shutil.rmtree(tmp_path / "d/source_embedder")
    assert main(["convert", "kiwi-diffusers", f"{tmp_path}/d", f"{tmp_path}/b"]) == 2
    assert "no source_embedder" in capsys.readouterr().err


@pytest.mark.parametrize("value", [float("nan"), 1e300])
def test_numbers_that_are_none_are_neither_read_nor_written(checkpoint, tmp_path, capsys, value):
    state = load_file(checkpoint / "c.safetensors")
    name = "pipe.dit.head.head.bias"
    state[name] = torch.full_like(state[name], value, dtype=torch.float64)
    save_file(state, tmp_path / "c.safetensors")
    back = ["convert", "kiwi-upstream", f"{tmp_path}/c.safetensors", f"{tmp_path}/a", *beside(checkpoint / "m")]
    assert main(back) == 2
    assert "NaN or infinite" in capsys.readouterr().err
    shutil.copytree(checkpoint / "m", tmp_path / "m")
    weights = load_file(tmp_path / "m/model.safetensors")
    save_file(
        weights | {"dit.head.head.bias": weights["dit.head.head.bias"] * float("nan")}, tmp_path / "m/model.safetensors"
    )
    for format, target in (("kiwi-upstream", "x.safetensors"), ("kiwi-diffusers", "x")):
        assert main(["convert", format, f"{tmp_path}/m", f"{tmp_path}/{target}"]) == 2
        assert "NaN or infinite" in capsys.readouterr().err


def test_a_choice_against_what_the_source_says_is_told(checkpoint, tmp_path, capsys):
    command = ["convert", "kiwi-upstream", f"{checkpoint}/c.safetensors", f"{tmp_path}/a", *beside(checkpoint / "m")]
    assert main([*command, "--set", "dit.num_heads=1"]) == 0
    assert "1, though the file says 2" in " ".join(capsys.readouterr().out.split())
