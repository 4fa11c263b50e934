import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from kiwi.errors import CheckpointError, SpecError
from kiwi.models.connectors import LatentConnector
from kiwi.models.kiwi import KiwiEdit
from kiwi.models.mllm.encoder import QwenVL
from kiwi.models.mllm.new_qwen import SPECIAL_TOKENS, NewQwen
from kiwi.models.mllm.vision_input import VisionLimits
from kiwi.models.tuning import Full, Lora
from kiwi.weights.adapters import is_adapter

LIMITS = NewQwen().limits


def prompt(encoder, queries=3):
    rng = np.random.default_rng(0)
    frames, image = rng.integers(0, 256, (4, 32, 48, 3), np.uint8), rng.integers(0, 256, (64, 64, 3), np.uint8)
    return encoder.prompter([frames], ["Use it."], [(image,)], "reference", queries)


def states(encoder, layers=(-1,)):
    torch.manual_seed(1)
    with torch.no_grad():
        return encoder.eval()(prompt(encoder), torch.randn(3, encoder.hidden_size), layers)


@pytest.fixture(params=["2.5", "3"])
def saved(request, tmp_path):
    torch.manual_seed(0)
    encoder = NewQwen(generation=request.param, hidden_size=32).build()
    encoder.save(tmp_path / "qwen")
    return encoder, tmp_path / "qwen"


def load(folder, **changes):
    return QwenVL(path=str(folder), dtype="float32", limits=LIMITS, **changes).build()


def test_a_saved_model_of_either_generation_loads_and_gives_the_same_states(saved):
    encoder, folder = saved
    loaded = load(folder)
    assert torch.equal(states(loaded)[-1], states(encoder)[-1])
    assert loaded.config.model_type == encoder.config.model_type
    assert loaded.fingerprint
    assert not encoder.fingerprint


def test_weights_under_the_hubs_names_load_and_the_language_head_is_ignored(saved):
    encoder, folder = saved
    state = load_file(folder / "model.safetensors")
    to_hub = {
        "qwen2_5_vl": lambda name: name.replace("language_model.", "model.", 1),
        "qwen3_vl": lambda name: f"model.{name}",
    }[encoder.config.model_type]
    renamed = {to_hub(name): tensor for name, tensor in state.items()}
    assert not renamed.keys() & {name for name in state if name.startswith("language_model.")}
    renamed["lm_head.weight"] = torch.zeros(len(encoder.prompter.tokenizer), 32)
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(states(load(folder))[-1], states(encoder)[-1])


@pytest.mark.parametrize("spoil", ["missing", "unexpected", "misshapen"])
def test_missing_unexpected_and_misshapen_tensors_are_rejected_and_named(saved, spoil):
    _, folder = saved
    state = load_file(folder / "model.safetensors")
    name = "language_model.layers.1.mlp.up_proj.weight"
    match spoil:
        case "missing":
            del state[name]
        case "unexpected":
            state["language_model.layers.7.mlp.up_proj.weight"] = torch.zeros(1)
        case _:
            state[name] = torch.zeros(3, 3)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="layers.7" if spoil == "unexpected" else "up_proj"):
        load(folder)


def test_damaged_folders_and_other_architectures_are_rejected(saved, tmp_path):
    _, folder = saved
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-100])
    with pytest.raises(CheckpointError, check=lambda error: error.code == "unreadable-weights"):
        load(folder)
    weights.write_bytes(content)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "qwen2"}))
    with pytest.raises(
        CheckpointError, match=r"qwen2\..*qwen3_vl", check=lambda error: error.code == "unsupported-mllm"
    ):
        load(folder)
    with pytest.raises(CheckpointError, check=lambda error: error.code == "missing-model"):
        load(tmp_path / "nothing")


def test_the_vision_tower_is_frozen_and_the_language_model_tuned_as_specified(saved):
    _, folder = saved
    for tuning, expected in (
        (Lora(rank=2), is_adapter),
        (Full(), lambda name: name.startswith("model.language_model.")),
    ):
        encoder = load(folder, tuning=tuning)
        trainable = {name for name, p in encoder.named_parameters() if p.requires_grad}
        assert trainable == {name for name in encoder.state_dict() if expected(name)}
    assert not any(p.requires_grad for p in load(folder).parameters())


def test_adapters_change_neither_the_saved_base_weights_nor_their_fingerprint(saved, tmp_path):
    encoder, folder = saved
    adapted = load(folder, tuning=Lora(rank=2))
    for name, parameter in adapted.named_parameters():
        if is_adapter(name):
            torch.nn.init.normal_(parameter)
    assert (states(adapted)[-1] - states(encoder)[-1]).abs().max() > 1e-3
    adapted.save(tmp_path / "again")
    again = load(tmp_path / "again")
    assert torch.equal(states(again)[-1], states(encoder)[-1])
    assert again.fingerprint == adapted.fingerprint


def test_layer_0_is_the_embeddings_and_layer_minus_1_the_final_norms_output(saved):
    encoder, _ = saved
    hidden = states(encoder, (0, 1, -1, -2))
    assert torch.equal(hidden[1], hidden[-2])
    assert torch.equal(states(encoder)[-1], hidden[-1])
    torch.manual_seed(1)
    query = torch.randn(3, 32)
    assert torch.equal(hidden[0][prompt(encoder).queries_BS], query)
    rms = hidden[-1].pow(2).mean(-1)
    assert torch.allclose(rms, torch.ones_like(rms), atol=0.1)  # the norm's weight is 1 in a randomly initialised model
    assert states(encoder, ()) == {}
    with pytest.raises(SpecError, match=r"\[3, -4\].*-3 to 2"):
        encoder.check_layers((0, 3, -4, 2))


def test_images_and_videos_are_normalised_with_the_processors_statistics(saved):
    _, folder = saved
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    mean, std = [0.1, 0.2, 0.3], [0.5, 2.0, 4.0]
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | {"image_mean": mean, "image_std": std}))
    prompter = load(folder).prompter
    white = np.full((4, 64, 64, 3), 255, np.uint8)
    prompt = prompter([white], ["x"], [(white[0],)], "reference", 1)
    expected = (1 - torch.tensor(mean)) / torch.tensor(std)
    for pixels in (prompt.pixel_values, prompt.pixel_values_videos):
        assert torch.allclose(pixels.unflatten(1, (3, -1)).mean((0, 2)), expected, atol=1e-5)


def test_quantised_weights_and_sizes_beyond_the_weights_are_rejected_before_the_model_is_built(saved):
    _, folder = saved
    state, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    name = next(name for name in state if name.endswith("mlp.up_proj.weight"))
    save_file(state | {name: state[name].to(torch.float8_e4m3fn)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, check=lambda error: error.code == "unsupported-dtype"):
        load(folder)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    text_config = config["text_config"] | {"num_hidden_layers": 10**9}
    (folder / "config.json").write_text(json.dumps(config | {"text_config": text_config}))
    with pytest.raises(CheckpointError, check=lambda error: error.code == "mismatched-config"):
        load(folder)


def test_a_tokenizer_of_one_word_or_of_another_model_is_rejected(saved):
    encoder, folder = saved
    tokens = [*SPECIAL_TOKENS, "snow"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"] = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "snow"}
    content["added_tokens"] = [
        {**content["added_tokens"][0], "id": vocabulary[token], "content": token} for token in SPECIAL_TOKENS
    ]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, check=lambda error: error.code == "mismatched-tokenizer"):
        load(folder)
    encoder.prompter.tokenizer.add_tokens([f"word{index}" for index in range(50)])
    encoder.prompter.tokenizer.save_pretrained(folder)
    with pytest.raises(CheckpointError, check=lambda error: error.code == "mismatched-tokenizer"):
        load(folder)


@pytest.mark.parametrize("text", ["{}", "[]", "x", '{"model": {"type": "BPE"}}'])
def test_a_damaged_tokenizer_is_rejected(saved, text):
    _, folder = saved
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, check=lambda error: error.code in ("unreadable-model", "missing-tokens")):
        load(folder)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"heads": 3}, "hidden_size must be divisible"),
        ({"heads": 64}, "hidden_size must be divisible"),
        ({"heads": 4, "kv_heads": 3}, "heads by kv_heads"),
        ({"vision_hidden_size": 32, "vision_heads": 3}, "vision_hidden_size must be divisible"),
        ({"vision_hidden_size": 32, "vision_heads": 16}, "vision_hidden_size must be divisible"),
        ({"vision_window": 27}, "vision_window"),
        ({"vocab_size": 263}, "264 or more"),
        *(({name: 0}, f"{name} must be at least 1") for name in ("hidden_size", "layers", "heads", "vision_layers")),
    ],
)
def test_a_random_model_of_inconsistent_sizes_is_rejected(sizes, message):
    with pytest.raises(SpecError, match=message):
        NewQwen(**sizes).build()


def test_with_small_patches_small_videos_keep_their_size(tmp_path):
    limits = VisionLimits(max_frames=5, min_pixels_per_frame=1024, max_pixels_per_frame=9216, max_reference_tokens=16)
    encoder = NewQwen(vision_patch=4, vision_window=16, limits=limits).build()
    frames = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    vision_input = encoder.preprocessor.prepare_source(frames)
    assert (vision_input.frames == frames).all()
    assert encoder.preprocessor.num_tokens(vision_input.size) == 3 * 4 * 4
    assert encoder.encode_image(vision_input).features_LNM.shape == (1, 48, 64)
    encoder.save(tmp_path / "mllm")
    loaded = QwenVL(path=str(tmp_path / "mllm"), dtype="float32", limits=limits).build()
    assert (loaded.encode_image(vision_input).features_LNM == encoder.encode_image(vision_input).features_LNM).all()
    with pytest.raises(SpecError, match="8 pixels"):
        NewQwen(vision_patch=4, vision_window=7)


def test_a_connector_to_a_missing_layer_is_rejected(tiny_config):
    with pytest.raises(SpecError, check=lambda error: error.code == "unknown-layer"):
        KiwiEdit(tiny_config.replace(latent=LatentConnector(layers=(-1, 5))))


def test_the_full_size_adapters_have_the_published_names_and_shapes():
    with torch.device("meta"):
        encoder = NewQwen.qwen25_3b().replace(tuning=Lora(rank=64)).build()
    shapes = {name: tuple(t.shape) for name, t in encoder.state_dict().items() if is_adapter(name)}
    into, out = 2048, {"q_proj": 2048, "k_proj": 256, "v_proj": 256, "o_proj": 2048}
    expected = {}
    for n in range(36):
        for layer, rows in out.items():
            stem = f"model.language_model.layers.{n}.self_attn.{layer}"
            expected[f"{stem}.lora_A.default.weight"] = (64, into)
            expected[f"{stem}.lora_B.default.weight"] = (rows, 64)
    assert len(expected) == 288
    assert shapes == expected


@pytest.mark.parametrize(("spec", "billions"), [(NewQwen.qwen25_3b(), 3.755), (NewQwen.qwen25_7b(), 7.747)])
def test_the_published_sizes_have_the_published_number_of_parameters(spec, billions):
    """Published are 3.75 B, and 8.29 B with a separate language head (152064 x 3584), which kiwi does not build."""
    with torch.device("meta"):
        encoder = spec.build()
    assert sum(p.numel() for p in encoder.parameters()) / 1e9 == pytest.approx(billions, abs=1e-3)
