"""File formats of a Wan VAE: the same weights give the same latents from each, and incomplete files are rejected."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file, save_file

from kiwi.errors import CheckpointError
from kiwi.models.vae.formats import LATENT_STATISTICS_FILE, to_original_state
from kiwi.models.vae.wan import NewVae, WanVae, make_published_config
from kiwi.weights.files import read_weights

GOLDEN = Path(__file__).parents[3] / "golden"
SPECS = {
    "wan21": NewVae(z_dim=16, base_dim=4, decoder_base_dim=8, num_res_blocks=2),
    "wan22": NewVae(z_dim=48, base_dim=4, decoder_base_dim=8, dim_mult=(1, 2, 2), residual=True),
}
WEIGHTS = "diffusion_pytorch_model.safetensors"


def statistics(form):
    entry = next(
        f
        for f in json.loads(LATENT_STATISTICS_FILE.read_text())["forms"]
        if f["name"].lower() == f"wan{form[3]}.{form[4]}"
    )
    return torch.tensor(entry["latents_mean"]), torch.tensor(entry["latents_std"])


@pytest.fixture(scope="module", params=SPECS)
def form(request):
    return request.param


@pytest.fixture(scope="module")
def vae(form):
    """A VAE whose weights all affect the result, normalised like the published one of its architecture."""
    torch.manual_seed(3)
    vae = SPECS[form].build()
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    vae.set_normalisation(*statistics(form))
    return vae


def write(vae, layout, folder):
    """Write a VAE in one of the formats, and return the path for `WanVae`."""
    state = {name: tensor.detach().clone() for name, tensor in to_original_state(vae.vae).items()}
    if layout == "diffusers folder":
        vae.save(folder)
        return folder
    if layout == "published folder":
        save_file(state, folder / WEIGHTS)
        (folder / "config.json").write_text(json.dumps(make_published_config(vae)))
        return folder
    if layout == "raw safetensors":
        save_file(state, folder / "vae.safetensors")
        return folder / "vae.safetensors"
    prefixed = {f"model.{name}": tensor for name, tensor in state.items()}
    content = {"raw pth": state, "prefixed pth": prefixed, "wrapped pth": {"model_state": prefixed}}[layout]
    torch.save(content, folder / "vae.pth")
    return folder / "vae.pth"


LAYOUTS = ["diffusers folder", "published folder", "raw safetensors", "raw pth", "prefixed pth", "wrapped pth"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_weights_encode_and_decode_the_same_from_every_format(vae, tmp_path, layout):
    loaded = WanVae(path=str(write(vae, layout, tmp_path))).build()
    video = torch.rand(1, 3, 5, 16, 16) * 2 - 1
    with torch.no_grad():
        latents = vae.encode(video)
        assert latents.std() > 0.01
        assert torch.equal(loaded.encode(video), latents)
        assert torch.equal(loaded.decode(latents), vae.decode(latents))
    assert (loaded.spatial_factor, loaded.channels) == (vae.spatial_factor, vae.channels)


def test_a_subfolder_may_be_a_folder_or_a_file(vae, tmp_path):
    (tmp_path / "vae").mkdir()
    write(vae, "diffusers folder", tmp_path / "vae")
    write(vae, "raw pth", tmp_path)
    built = [WanVae(path=str(tmp_path), subfolder=name).build() for name in ("vae", "vae.pth")]
    assert built[0].fingerprint == built[1].fingerprint


def test_the_fingerprint_depends_on_the_weights_not_on_the_format(vae, tmp_path):
    assert vae.fingerprint == ""
    first = WanVae(path=str(write(vae, "diffusers folder", tmp_path))).build().fingerprint
    second = WanVae(path=str(write(vae, "raw pth", tmp_path))).build().fingerprint
    assert len(first) == 64
    assert first == second
    state = to_original_state(vae.vae)
    state = {**state, "decoder.head.2.bias": state["decoder.head.2.bias"] + 1}
    torch.save(state, tmp_path / "vae.pth")
    assert WanVae(path=str(tmp_path / "vae.pth")).build().fingerprint != first


@pytest.mark.parametrize("spoil", ["missing", "unexpected", "misshapen"])
@pytest.mark.parametrize("layout", ["diffusers folder", "published folder", "raw pth"])
def test_a_tensor_that_does_not_fit_is_rejected_by_its_name_in_the_file(vae, tmp_path, layout, spoil):
    path = write(vae, layout, tmp_path)
    file = path / WEIGHTS if path.is_dir() else path
    state = {name: tensor.clone() for name, tensor in read_weights(file).items()}
    name = "decoder.mid_block.resnets.1.conv2.bias" if layout.startswith("diff") else "decoder.middle.2.residual.6.bias"
    if spoil == "unexpected":
        state[name := name.replace("bias", "gain")] = torch.ones(1)
    elif spoil == "misshapen":
        state[name] = torch.ones(7)
    else:
        del state[name]
    (save_file if file.suffix == ".safetensors" else torch.save)(state, file)
    count = {"missing": "1 missing", "unexpected": "1 unexpected", "misshapen": "1 with the wrong shape"}[spoil]
    with pytest.raises(CheckpointError) as caught:
        WanVae(path=str(path)).build()
    assert f"{count} ({name}" in str(caught.value)
    assert str(path) in str(caught.value)


class Bomb:
    """An object that runs code when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("write_file", [torch.save, lambda content, file: file.write_bytes(pickle.dumps(content))])
def test_a_pickle_with_code_is_rejected_and_not_run(tmp_path, write_file):
    write_file({"conv1.weight": Bomb(tmp_path / "ran")}, tmp_path / "vae.pth")
    with pytest.raises(CheckpointError, match=r"vae\.pth cannot be read"):
        WanVae(path=str(tmp_path / "vae.pth")).build()
    assert not (tmp_path / "ran").exists()


def test_a_size_without_published_statistics_needs_a_config_with_statistics(tmp_path):
    vae = NewVae(z_dim=4, base_dim=4).build()
    vae.set_normalisation(torch.arange(4.0), torch.arange(4.0) + 1)
    state = {name: tensor.detach().clone() for name, tensor in to_original_state(vae.vae).items()}
    save_file(state, tmp_path / WEIGHTS)
    with pytest.raises(
        CheckpointError, match=r"4 latent channels in the Wan2\.1 architecture.*16 channels \(Wan2\.1\)"
    ) as caught:
        WanVae(path=str(tmp_path / WEIGHTS)).build()
    assert "latents_mean and latents_std" in str(caught.value)
    (tmp_path / "config.json").write_text(json.dumps(make_published_config(vae)))
    loaded = WanVae(path=str(tmp_path)).build()
    assert loaded.vae.config.latents_mean == [0.0, 1.0, 2.0, 3.0]
    for spoiled in ({"latents_mean": [0.0]}, {"latents_std": [1.0] * 5}):
        (tmp_path / "config.json").write_text(json.dumps(make_published_config(vae) | spoiled))
        with pytest.raises(CheckpointError, check=lambda error: error.code == "invalid-latent-statistics"):
            WanVae(path=str(tmp_path)).build()


def test_statistics_in_config_json_override_the_published_ones(vae, tmp_path):
    path = write(vae, "published folder", tmp_path)
    moved = [value + 0.5 for value in vae.vae.config.latents_mean]
    (path / "config.json").write_text(json.dumps(make_published_config(vae) | {"latents_mean": moved}))
    video, std = torch.rand(1, 3, 1, 16, 16), torch.tensor(vae.vae.config.latents_std)
    with torch.no_grad():
        difference = vae.encode(video) - WanVae(path=str(path)).build().encode(video)
    assert torch.allclose(difference, (0.5 / std)[:, None, None, None].expand_as(difference), atol=1e-5)


@pytest.mark.parametrize("form", SPECS)
def test_the_published_statistics_are_those_of_the_golden_vectors(form):
    golden = load_file(GOLDEN / f"vae_{form}.safetensors")
    mean, std = statistics(form)
    assert torch.equal(mean, golden["in/latents_mean"])
    assert torch.equal(std, golden["in/latents_std"])
    if form == "wan21":  # the defaults of diffusers are those of Wan2.1
        with torch.device("meta"):
            config = AutoencoderKLWan(base_dim=4).config
        assert torch.equal(torch.tensor([config.latents_mean, config.latents_std]), torch.stack((mean, std)))


def test_weights_are_float32_and_not_mapped_from_the_file(vae, tmp_path):
    state = {name: tensor.detach().bfloat16() for name, tensor in to_original_state(vae.vae).items()}
    save_file(state, tmp_path / "vae.safetensors")
    assert {p.dtype for p in WanVae(path=str(tmp_path / "vae.safetensors")).build().parameters()} == {torch.float32}
    path = write(vae, "diffusers folder", tmp_path)
    loaded = WanVae(path=str(path)).build()
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    (path / WEIGHTS).write_bytes(bytes((path / WEIGHTS).stat().st_size))  # a mapped tensor would become zero
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), vae.parameters(), strict=True))


def test_a_file_without_a_vae_is_rejected_and_its_tensors_are_named(tmp_path):
    save_file({"blocks.0.ffn.0.weight": torch.ones(1)}, tmp_path / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"Got: blocks\.0\.ffn\.0\.weight"):
        WanVae(path=str(tmp_path)).build()
    (tmp_path / "config.json").write_text('{"_class_name": "WanTransformer3DModel"}')
    with pytest.raises(CheckpointError, check=lambda error: error.code == "not-a-wan-vae"):
        WanVae(path=str(tmp_path)).build()
    for text in ("{", "[1]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"config\.json (cannot be read|is not a JSON object)"):
            WanVae(path=str(tmp_path)).build()


@pytest.mark.parametrize(
    "spoiled",
    [
        {"dim_mult": "1, 2"}, {"dim_mult": []}, {"temperal_downsample": [True]}, {"patch_size": 7}, {"z_dim": None},
        {"latents_mean": None}, {"latents_mean": ["x"] * 48}, {"latents_std": [0.0] * 48}, {"latents_std": "x" * 48},
    ],
)  # fmt: skip
def test_an_invalid_config_is_rejected(vae, tmp_path, spoiled):
    path = write(vae, "diffusers folder", tmp_path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | spoiled))
    with pytest.raises(
        CheckpointError, check=lambda error: error.code in ("not-a-wan-vae", "invalid-latent-statistics")
    ):
        WanVae(path=str(path)).build()


def test_diffusers_loads_a_saved_vae(vae, tmp_path):
    vae.save(tmp_path)
    loaded, info = AutoencoderKLWan.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(loaded.decoder.conv_out.weight, vae.vae.decoder.conv_out.weight)


def test_the_published_config_has_the_published_fields():
    with torch.device("meta"):
        config = make_published_config(NewVae.wan22().build())
    assert config.keys() == {
        "_class_name", "z_dim", "dim", "dim_mult", "num_res_blocks", "attn_scales", "temperal_downsample", "dropout",
        "latents_mean", "latents_std", "vae_pth",
    }  # fmt: skip
    assert (config["z_dim"], config["dim"], config["dim_mult"]) == (48, 160, [1, 2, 4, 4])
    assert config["temperal_downsample"] == [False, True, True]
