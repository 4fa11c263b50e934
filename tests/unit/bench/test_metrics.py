"""Automatic metrics: known values for known edits, models from folders."""

import numpy as np
import pytest
import torch
import torchvision
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, Dinov2Config, Dinov2Model, PreTrainedTokenizerFast

from kiwi.bench.metrics import Encoder, VideoMetrics
from kiwi.bench.suites import BenchmarkItem
from kiwi.errors import CheckpointError, InputError, SpecError
from kiwi.media.image import write_image
from kiwi.media.video import read_video, write_video


@pytest.fixture
def item(tmp_path):
    frames = np.full((5, 32, 32, 3), 100, np.uint8)
    write_video(tmp_path / "source.mp4", frames, 8, crf=0)
    write_video(tmp_path / "lighter.mp4", frames + 20, 8, crf=0)
    blinking = frames.copy()
    blinking[1::2] += 20
    write_video(tmp_path / "blinking.mp4", blinking, 8, crf=0)
    write_image(tmp_path / "reference.png", frames[0])
    return BenchmarkItem(
        id="source", category="local_add", instruction="Add a cat.", source=tmp_path / "source.mp4",
        reference=tmp_path / "reference.png",
    )  # fmt: skip


def test_known_edits_have_known_values(item, tmp_path):
    assert VideoMetrics().compute(item, item.source) == pytest.approx({"psnr": 60, "ssim": 1, "flicker": 0})
    lighter, blinking = (VideoMetrics().compute(item, tmp_path / f"{name}.mp4") for name in ("lighter", "blinking"))
    assert lighter["psnr"] == pytest.approx(20 * np.log10(255 / 20), abs=0.7)
    assert lighter["flicker"] < 0.5
    assert blinking["flicker"] == pytest.approx(20, abs=1)


def test_the_table_has_the_number_of_items_of_each_metric(item, tmp_path):
    missing = BenchmarkItem(id="x", category="local_change", instruction="-", source=item.source)
    table = VideoMetrics().make_table([item, missing], {"source": tmp_path / "lighter.mp4", "x": tmp_path / "none.mp4"})
    assert list(table.header) == ["metric", "items", "local_add", "local_change", "mean"]
    assert [row[1] for row in table.rows] == [1, 1, 1]
    assert {row[3] for row in table.rows} == {"-"}
    assert "torchmetrics" in table.note


def test_the_table_tells_of_edits_with_another_length_rate_or_size(item, tmp_path):
    source, edited = read_video(item.source), {"source": tmp_path / "other.mp4"}
    write_video(edited["source"], source.frames_FHWC, source.fps)
    assert "differ from their source" not in VideoMetrics().make_table([item], edited).note
    write_video(edited["source"], source.frames_FHWC, 8.05)
    assert "differ from their source" not in VideoMetrics().make_table([item], edited).note
    write_video(edited["source"], source.frames_FHWC[:-1, :, :-8], 25)
    note = VideoMetrics().make_table([item], edited).note
    assert "differ from their source in length (1), frame rate (1), size (1)" in note


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


def test_models_from_folders_compare_frames_references_and_instructions(models, item, tmp_path):
    metrics = VideoMetrics.load(["basic", *(f"{kind}={models / kind}" for kind in ("clip", "dino"))], "cpu")
    same, blinking = (metrics.compute(item, tmp_path / f"{name}.mp4") for name in ("source", "blinking"))
    for name in ("CLIP (clip)", "DINO (dino)"):
        assert same[f"{name} frames"] == pytest.approx(1, abs=1e-4)
        assert same[f"{name} reference"] == pytest.approx(1, abs=1e-3)
        assert blinking[f"{name} frames"] < same[f"{name} frames"]
    assert -1 <= same["CLIP (clip) words"] <= 1
    assert "DINO (dino) words" not in same


def test_lpips_is_zero_for_the_source_only(item, tmp_path, monkeypatch):
    alexnet = torchvision.models.alexnet  # random weights: the pretrained ones may not be available
    monkeypatch.setattr(torchvision.models, "alexnet", lambda pretrained=False: alexnet())
    metrics = VideoMetrics.load(["lpips"], "cpu")
    assert metrics.compute(item, item.source)["lpips"] == pytest.approx(0, abs=1e-6)
    assert metrics.compute(item, tmp_path / "lighter.mp4")["lpips"] > 0
    table = metrics.make_table([item], {"source": tmp_path / "lighter.mp4"})
    assert "LPIPS 0.1 to the source with alex" in table.note


def test_small_frames_are_rejected(tmp_path):
    write_video(tmp_path / "small.mp4", np.zeros((2, 16, 16, 3), np.uint8), 8)
    small = BenchmarkItem(id="small", category="local_add", instruction="-", source=tmp_path / "small.mp4")
    with pytest.raises(InputError, check=lambda error: error.code == "frames-too-small"):
        VideoMetrics().compute(small, small.source)


def test_unknown_metrics_and_unreadable_models_are_rejected(models, tmp_path):
    with pytest.raises(InputError, check=lambda error: error.code == "unknown-metric"):
        Encoder("vmaf", "x", "cpu")
    with pytest.raises(SpecError, match="resnet"):
        VideoMetrics.load(["lpips=resnet"], "cpu")
    with pytest.raises(CheckpointError, check=lambda error: error.code == "unreadable-model"):
        Encoder("dino", str(tmp_path), "cpu")
    for missing in ("no/such", "nowhere", str(tmp_path / "none")):  # the first has the form of a hub id
        with pytest.raises(CheckpointError, check=lambda error: error.code == "missing-model"):
            VideoMetrics.load([f"clip={missing}"], "cpu")
    with pytest.raises(CheckpointError, match="dino cannot be loaded as clip"):
        Encoder("clip", str(models / "dino"), "cpu")
