"""Metrics beside the judge: known answers for known edits, models from folders."""

import numpy as np
import pytest
import torch
import torchvision
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, Dinov2Config, Dinov2Model, PreTrainedTokenizerFast

from kiwi.bench.case import Case
from kiwi.bench.metrics import Measures, load_encoder, load_measures, measure, measure_all
from kiwi.errors import CheckpointError, InputError
from kiwi.media.image import write_image
from kiwi.media.video import write_video


@pytest.fixture
def case(tmp_path):
    frames = np.full((5, 32, 32, 3), 100, np.uint8)
    write_video(tmp_path / "source.mp4", frames, 8, crf=0)
    write_video(tmp_path / "lighter.mp4", frames + 20, 8, crf=0)
    blinking = frames.copy()
    blinking[1::2] += 20
    write_video(tmp_path / "blinking.mp4", blinking, 8, crf=0)
    write_image(tmp_path / "reference.png", frames[0])
    return Case(
        id="source", category="local_add", instruction="Add a cat.", source=tmp_path / "source.mp4",
        reference=tmp_path / "reference.png",
    )  # fmt: skip


def test_known_edits_have_known_numbers(case, tmp_path):
    assert measure(case, case.source, Measures()) == pytest.approx({"psnr": 60, "ssim": 1, "flicker": 0})
    lighter, blinking = (measure(case, tmp_path / f"{name}.mp4", Measures()) for name in ("lighter", "blinking"))
    assert lighter["psnr"] == pytest.approx(20 * np.log10(255 / 20), abs=0.7)
    assert lighter["flicker"] < 0.5
    assert blinking["flicker"] == pytest.approx(20, abs=1)


def test_a_table_tells_of_how_many_items(case, tmp_path):
    missing = Case(id="x", category="local_change", instruction="-", source=case.source)
    table = measure_all([case, missing], {"source": tmp_path / "lighter.mp4", "x": tmp_path / "none.mp4"}, Measures())
    assert list(table.header) == ["metric", "items", "local_add", "local_change", "mean"]
    assert [row[1] for row in table.rows] == [1, 1, 1]
    assert {row[3] for row in table.rows} == {"-"}
    assert "torchmetrics" in table.note


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**small, "image_size": 32, "patch_size": 16}
    text = {**small, "vocab_size": 8, "max_position_embeddings": 8, "eos_token_id": 1}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder / "clip")
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    words = Tokenizer(WordLevel({"<unk>": 0, "<end>": 1, "cat": 2, "Add": 3, "a": 4}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", model_max_length=8).save_pretrained(
        folder / "clip"
    )
    Dinov2Model(Dinov2Config(**{**vision, "mlp_ratio": 1})).save_pretrained(folder / "dino")
    for name in ("clip", "dino"):
        processor.save_pretrained(folder / name)
    return folder


def test_models_from_folders_see_frames_references_and_words(models, case, tmp_path):
    measures = load_measures(["basic", *(f"{kind}={models / kind}" for kind in ("clip", "dino"))], "cpu")
    same, blinking = (measure(case, tmp_path / f"{name}.mp4", measures) for name in ("source", "blinking"))
    for name in ("CLIP (clip)", "DINO (dino)"):
        assert same[f"{name} frames"] == pytest.approx(1, abs=1e-4)
        assert same[f"{name} reference"] == pytest.approx(1, abs=1e-3)
        assert blinking[f"{name} frames"] < same[f"{name} frames"]
    assert -1 <= same["CLIP (clip) words"] <= 1
    assert "DINO (dino) words" not in same


def test_lpips_stands_beside_them(case, tmp_path, monkeypatch):
    alexnet = torchvision.models.alexnet  # weights that nobody trained: the real ones cannot be had everywhere
    monkeypatch.setattr(torchvision.models, "alexnet", lambda pretrained=False: alexnet())
    measures = load_measures(["lpips"], "cpu")
    assert measure(case, case.source, measures)["lpips"] == pytest.approx(0, abs=1e-6)
    assert measure(case, tmp_path / "lighter.mp4", measures)["lpips"] > 0
    table = measure_all([case], {"source": tmp_path / "lighter.mp4"}, measures)
    assert "LPIPS 0.1 to the source by alex" in table.note


def test_frames_that_are_too_small(tmp_path):
    write_video(tmp_path / "small.mp4", np.zeros((2, 16, 16, 3), np.uint8), 8)
    small = Case(id="small", category="local_add", instruction="-", source=tmp_path / "small.mp4")
    with pytest.raises(InputError, match="Got: 16x16"):
        measure(small, small.source, Measures())


def test_models_that_cannot_be_used(models, tmp_path):
    with pytest.raises(InputError, match="vmaf"):
        load_encoder("vmaf", "x", "cpu")
    with pytest.raises(InputError, match="no network 'resnet'"):
        load_measures(["lpips=resnet"], "cpu")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_encoder("dino", str(tmp_path), "cpu")
    with pytest.raises(CheckpointError, match="dino cannot be loaded as clip"):
        load_encoder("clip", str(models / "dino"), "cpu")
