"""`kiwi convert`: models edit the same after a round trip through the published formats; what is never overwritten."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from kiwi.__main__ import main
from kiwi.checkpoints import ConvertOptions, convert
from kiwi.checkpoints.folder import from_pretrained, save_pretrained
from kiwi.errors import InputError
from kiwi.models.connectors import NoConnector, QueryConnector
from kiwi.models.injection import AppendReference, ChannelConcatSource, PrependReference
from kiwi.models.kiwi import KiwiEdit
from kiwi.models.sampling import EditingDefaults, Sampling
from kiwi.models.tuning import Lora
from kiwi.weights.adapters import is_adapter
from kiwi.weights.files import read_weights
from kiwi.weights.names import dit_to_diffusers, select_prefix
from kiwi.weights.strict import shapes_of
from tests.unit.checkpoints.conftest import edit, import_command, missing_parts, save_random_model


@pytest.mark.parametrize("reference", [AppendReference(), PrependReference()])
def test_a_model_gives_the_same_edit_after_a_round_trip_through_each_published_format(
    config, tmp_path, reference, capsys
):
    model = save_random_model(config.replace(reference=reference), tmp_path / "m")
    expected = edit(model)
    sigma_min = {"a": 0.0, "b": 0.003 / 1.002}  # as in the publisher's sampler for each format
    assert main(["convert", "kiwi-upstream", f"{tmp_path}/m", f"{tmp_path}/step-1.safetensors"]) == 0
    back = import_command(tmp_path / "step-1.safetensors", tmp_path / "a", tmp_path / "m")
    assert main([*back, "--set", f"reference={type(reference).__name__}"]) == 0
    assert main(["convert", "kiwi-diffusers", f"{tmp_path}/m", f"{tmp_path}/d"]) == 0
    assert main(["convert", "kiwi-diffusers", f"{tmp_path}/d", f"{tmp_path}/b"]) == 0
    assert expected.std() > 0.01
    for folder in ("a", "b"):
        loaded, editing = from_pretrained(tmp_path / folder)
        assert loaded.config.reference == reference
        assert editing.sampling == Sampling(sigma_min=sigma_min[folder])
        assert (edit(loaded.eval()) - expected).abs().max() <= 1e-5, folder
        assert shapes_of(read_weights(tmp_path / folder)) == shapes_of(read_weights(tmp_path / "m"))


@pytest.mark.parametrize("adapters", ["merge", "keep"])
def test_adapters_are_merged_or_kept_and_edit_the_same(config, tmp_path, adapters):
    tuned = config.replace(
        mllm=config.mllm.replace(tuning=Lora(rank=2)),
        dit=config.dit.replace(tuning=Lora(rank=3, targets=("ffn.0", "q"))),
    )
    model = save_random_model(tuned, tmp_path / "m")
    expected = edit(model)
    assert main(["convert", "kiwi-upstream", f"{tmp_path}/m", f"{tmp_path}/c.safetensors"]) == 0
    names = load_file(tmp_path / "c.safetensors").keys()
    assert "pipe.mllm.model.model.language_model.layers.0.self_attn.q_proj.lora_A.default.weight" in names
    assert "pipe.dit.blocks.0.self_attn.q.weight" in names
    back = import_command(tmp_path / "c.safetensors", tmp_path / "a", tmp_path / "m")
    assert main([*back, "--adapters", adapters]) == 0
    loaded, _ = from_pretrained(tmp_path / "a")
    assert (edit(loaded.eval()) - expected).abs().max() <= 2e-5
    assert any(map(is_adapter, read_weights(tmp_path / "a"))) == (adapters == "keep")
    assert loaded.config.dit.tuning == (tuned.dit.tuning if adapters == "keep" else config.dit.tuning)
    assert main(["convert", "kiwi-diffusers", f"{tmp_path}/m", f"{tmp_path}/d"]) == 0
    assert main(["convert", "kiwi-diffusers", f"{tmp_path}/d", f"{tmp_path}/b"]) == 0
    assert (edit(from_pretrained(tmp_path / "b")[0].eval()) - expected).abs().max() <= 2e-5


@pytest.mark.parametrize(
    "change",
    [
        {"source": ChannelConcatSource()},
        {"latent": NoConnector()},
        {"query": QueryConnector(image=3, video=4, reference=5)},
    ],
)
def test_options_that_the_published_code_does_not_support_are_rejected(config, tmp_path, capsys, change):
    save_pretrained(KiwiEdit(config.replace(**change)), tmp_path / "m", EditingDefaults())
    for name, target in (("kiwi-upstream", "c.safetensors"), ("kiwi-diffusers", "d")):
        assert main(["convert", name, f"{tmp_path}/m", f"{tmp_path}/{target}"]) == 2
        message = capsys.readouterr().err
        assert "published code" in message
        assert next(iter(change)) in message
        assert not (tmp_path / target).exists()


@pytest.mark.parametrize("names", ["original", "diffusers"])
def test_wan_base_weights_become_a_trainable_model_folder(checkpoint, tmp_path, capsys, names):
    dit = select_prefix(load_file(checkpoint / "c.safetensors"), "pipe.dit.")
    if names == "diffusers":
        dit = {dit_to_diffusers(name): tensor for name, tensor in dit.items()}
    (tmp_path / "transformer").mkdir()
    save_file(dit, tmp_path / "transformer" / "diffusion_pytorch_model.safetensors")
    assert main(["convert", "wan", f"{tmp_path}:transformer", f"{tmp_path}/a", *missing_parts(checkpoint / "m")]) == 0
    model, _ = from_pretrained(tmp_path / "a")
    assert (model.config.query.readout, model.config.reference) == ("queries", AppendReference())
    expected = read_weights(checkpoint / "m")
    assert torch.equal(model.dit.blocks[1].cross_attn.o.weight, expected["dit.blocks.1.cross_attn.o.weight"])
    assert model.source.patch_embedding.weight.abs().max() == 0
    assert len(model.query.queries["reference"]) == 768
    assert main(["convert", "wan", f"{tmp_path}/a", f"{tmp_path}/w"]) == 2
    assert "cannot be written as Wan" in capsys.readouterr().err


def test_an_existing_target_is_replaced_only_with_force(checkpoint, tmp_path, capsys):
    command = ["convert", "kiwi-diffusers", f"{checkpoint}/m", f"{tmp_path}/d"]
    assert main(command) == 0
    (tmp_path / "d/model_index.json").touch()
    inode = (tmp_path / "d/vae/config.json").stat().st_ino
    assert main(command) == 2
    assert (tmp_path / "d/vae/config.json").stat().st_ino == inode
    assert main([*command, "--force"]) == 0
    assert (tmp_path / "d/vae/config.json").stat().st_ino != inode
    assert [item.name for item in tmp_path.iterdir()] == ["d"]


def contents(folder):
    return {path.relative_to(folder) for path in folder.rglob("*")}


@pytest.mark.parametrize("target", ["proj", "proj/m", "proj/m/vae/x", "home", "wan", "..", "."])
def test_force_replaces_neither_inputs_nor_folders_of_other_kinds(checkpoint, tmp_path, monkeypatch, capsys, target):
    shutil.copytree(checkpoint / "m", tmp_path / "proj/m")
    for name in ("home/photo.jpg", "wan/vae/weights", "here/x"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    (tmp_path / "wan/model_index.json").write_text('{"_class_name": "WanPipeline"}')
    monkeypatch.chdir(tmp_path / "here")
    before = contents(tmp_path)
    path = target if target in (".", "..") else f"{tmp_path}/{target}"
    assert main(["convert", "kiwi-diffusers", f"{tmp_path}/proj/m", path, "--force"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert len(message.strip().splitlines()) == 1
    assert contents(tmp_path) == before


@pytest.mark.parametrize("target", ["m", "d"])
def test_force_does_not_replace_a_model_folder_with_a_users_files_in_it(checkpoint, tmp_path, capsys, target):
    """Both for a model folder and for a published folder with the publisher's code copied into it."""
    command = ["convert", "kiwi-diffusers", f"{checkpoint}/m", f"{tmp_path}/d"]
    if target == "m":
        command = import_command(checkpoint / "c.safetensors", tmp_path / "m", checkpoint / "m")
    assert main(command) == 0
    assert main([*command, "--force"]) == 0
    for index in range(7):
        (tmp_path / target / f"note{index}.py").touch()
    before = contents(tmp_path)
    assert main([*command, "--force"]) == 2
    assert "Got: note0.py, note1.py, note2.py, note3.py, note4.py and 2 more." in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_a_folder_whose_vae_is_read_is_not_replaced(checkpoint, tmp_path, capsys):
    shutil.copytree(checkpoint / "m", tmp_path / "m")
    assert main([*import_command(checkpoint / "c.safetensors", tmp_path / "m", tmp_path / "m"), "--force"]) == 2
    assert "the input" in capsys.readouterr().err


def test_a_model_folder_whose_parts_another_model_reads_is_not_replaced(checkpoint, tmp_path, capsys):
    """Exporting a model folder reads the VAE and the MLLM that it references."""
    shutil.copytree(checkpoint / "m", tmp_path / "m")
    back = import_command(checkpoint / "c.safetensors", tmp_path / "named", tmp_path / "m")
    assert main([*back, "--by-name"]) == 0
    assert main(["convert", "kiwi-diffusers", f"{tmp_path}/named", f"{tmp_path}/m", "--force"]) == 2
    assert "the input" in capsys.readouterr().err
    assert read_weights(tmp_path / "m")


def test_a_model_folder_made_with_relative_paths_loads_from_any_working_folder(checkpoint, tmp_path, monkeypatch):
    shutil.copytree(checkpoint / "m", tmp_path / "own/m")
    monkeypatch.chdir(tmp_path / "own")
    back = ["convert", "kiwi-upstream", f"{checkpoint}/c.safetensors", "../named", "--by-name"]
    assert main([*back, "--vae", "m:vae", "--mllm", "m/mllm", "--set", "dit.num_heads=2"]) == 0
    monkeypatch.chdir(tmp_path)
    config = from_pretrained("named")[0].config
    assert (config.vae.path, config.mllm.path) == (str(tmp_path / "own/m"), str(tmp_path / "own/m/mllm"))


@pytest.mark.parametrize("name", ["kiwi-upstream", "kiwi-diffusers"])
@pytest.mark.parametrize("target", ["x" * 300 + ".safetensors", "/proc/x.safetensors", "no/x.safetensors", "", "/"])
def test_an_impossible_target_is_rejected_in_one_paragraph(checkpoint, name, target, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", name, f"{checkpoint}/m", target, "--force"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "src", "options", "unused"),
    [
        ("kiwi-diffusers", "d", ["--vae", "x", "--mllm", "y", "--base", "z"], "--base, --mllm, --vae"),
        ("kiwi-diffusers", "d", ["--adapters", "keep", "--by-name"], "--adapters, --by-name"),
        ("wan", "c.safetensors", ["--base", "x", "--adapters", "keep"], "--adapters, --base"),
        ("kiwi-upstream", "m", ["--set", "a=b", "--vae", "x", "--seed", "3"], "--seed, --set, --vae"),
        ("kiwi-diffusers", "m", ["--adapters", "keep", "--by-name"], "--adapters, --by-name"),
    ],
)
def test_options_without_effect_are_rejected_and_named(checkpoint, tmp_path, capsys, name, src, options, unused):
    assert main(["convert", name, f"{checkpoint}/{src}", f"{tmp_path}/a", *options]) == 2
    assert f"{name} does not use {unused}." in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [float("nan"), 1e300])
def test_nan_and_infinity_are_neither_read_nor_written(checkpoint, tmp_path, capsys, value):
    state = load_file(checkpoint / "c.safetensors")
    name = "pipe.dit.head.head.bias"
    state[name] = torch.full_like(state[name], value, dtype=torch.float64)
    save_file(state, tmp_path / "c.safetensors")
    assert main(import_command(tmp_path / "c.safetensors", tmp_path / "a", checkpoint / "m")) == 2
    assert "NaN or infinite" in capsys.readouterr().err
    shutil.copytree(checkpoint / "m", tmp_path / "m")
    weights = load_file(tmp_path / "m/model.safetensors")
    weights["dit.head.head.bias"] *= float("nan")
    save_file(weights, tmp_path / "m/model.safetensors")
    for format, target in (("kiwi-upstream", "x.safetensors"), ("kiwi-diffusers", "x")):
        assert main(["convert", format, f"{tmp_path}/m", f"{tmp_path}/{target}"]) == 2
        assert "NaN or infinite" in capsys.readouterr().err


@pytest.mark.parametrize("published", ["kiwi-upstream", "kiwi-diffusers"])
def test_an_unrecorded_number_of_heads_is_assumed_and_reported_or_must_be_set(config, tmp_path, capsys, published):
    for width, code in ((128, 0), (48, 2)):
        dit = config.dit.replace(dim=width, num_heads=1 if width == 128 else 2)
        save_random_model(config.replace(dit=dit), tmp_path / f"{width}")
        source, parts = tmp_path / f"{width}.safetensors", missing_parts(tmp_path / f"{width}")[:4]
        assert main(["convert", published, f"{tmp_path}/{width}", str(source)]) == 0
        if published == "kiwi-diffusers":
            file, parts = source / "transformer/config.json", []
            content = json.loads(file.read_text())
            del content["num_attention_heads"]
            file.write_text(json.dumps(content))
        else:
            save_file(load_file(source), source)  # like the publisher's, without the options that kiwi records
        capsys.readouterr()
        assert main(["convert", published, str(source), f"{tmp_path}/a{width}", *parts]) == code
        captured = capsys.readouterr()
        expected = "--set dit.num_heads=N" if code else "assumed 1, 128 channels per head"
        assert expected in " ".join((captured.err if code else captured.out).split())


@pytest.mark.parametrize("name", ["kiwi-upstream", "kiwi-diffusers", "wan"])
def test_weights_are_written_in_the_given_dtype_in_both_directions(checkpoint, tmp_path, name):
    """This includes weights that the source lacks; VAE and MLLM keep their dtype."""
    source, parts = checkpoint / "c.safetensors", missing_parts(checkpoint / "m")
    if name == "kiwi-diffusers":
        source, parts = tmp_path / "d", []
        assert main(["convert", name, f"{checkpoint}/m", str(source), "--dtype", "bfloat16"]) == 0
        assert {tensor.dtype for tensor in read_weights(source / "transformer").values()} == {torch.bfloat16}
    elif name == "wan":
        dit = select_prefix(load_file(source), "pipe.dit.")
        source = tmp_path / "wan.safetensors"
        save_file(dit, source)
    before = read_weights(checkpoint / "m")
    for dtype in ("bfloat16", "float32"):
        target = tmp_path / dtype
        assert main(["convert", name, str(source), str(target), "--dtype", dtype, *parts]) == 0
        state = read_weights(target)
        assert {str(tensor.dtype) for tensor in state.values()} == {f"torch.{dtype}"}
        assert torch.equal(state["dit.head.head.bias"].bfloat16(), before["dit.head.head.bias"].bfloat16())
        assert {tensor.dtype for tensor in read_weights(target / "mllm").values()} == {torch.float32}
        assert from_pretrained(target)[0].dit.head.head.weight.dtype == getattr(torch, dtype)


def test_conversion_from_python_returns_what_was_done_with_each_part(checkpoint, tmp_path):
    steps = dict(convert(ConvertOptions(format="kiwi-upstream", src=f"{checkpoint}/m", dst=tmp_path / "c.safetensors")))
    assert "4 tensors of zeros" in steps["text_embedding"]
    assert steps.keys() >= {"vae", "mllm", "options"}
    with pytest.raises(InputError, check=lambda error: error.code == "invalid-assignment"):
        ConvertOptions(format="wan", src="a", dst=tmp_path / "b", set=("num_heads",))


def test_options_are_parsed_without_torch():
    code = "import sys; from kiwi.__main__ import main; main(['convert', *sys.argv[1:]]); print(*sys.modules)"
    command = [sys.executable, "-c", code, "wan", "a", "b", "--set", "x"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "--set takes PATH=VALUE" in process.stderr
    assert "torch" not in process.stdout.split()
