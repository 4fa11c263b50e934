"""The sandbox as a data source: items are rendered instead of read, and otherwise behave like those of a manifest."""

from pathlib import Path

import numpy as np
import pytest

from kiwi.__main__ import main
from kiwi.data.datamodule import EditData
from kiwi.data.feature_cache import EncoderFingerprints, FeatureCache
from kiwi.data.sandbox import EditItem, QuestionItem, RenderedClip, SandboxEdits, SandboxQuestions
from kiwi.data.sources import Manifest
from kiwi.encoded import TaskKind
from kiwi.errors import KiwiError
from kiwi.sandbox.options import WorldOptions
from kiwi.sandbox.pairs import CATEGORIES, make_pair

VAE = Path(__file__).parents[3] / "experiments/sandbox/vae.yaml"


def data(*sources, **options):
    module = EditData(train=list(sources), **({"multiple": 8, "batch_size": 2, "num_workers": 0} | options))
    module.setup()
    return module


def test_a_sample_equals_the_rendered_item_exactly():
    world = SandboxEdits(items=14, seed=3, max_frames=5, size=32, width=40, level="middle", split="new_things")
    dataset = data(world).datasets["train"]
    for index in range(14):
        pair = make_pair(3, index, frames=5, height=32, width=40, level="middle", split="new_things")
        sample = dataset.decode(index)
        assert (sample.source_FHWC == pair.source).all()
        assert (sample.target_FHWC == pair.target).all()
        assert (sample.mask_FHW == pair.mask).all()
        assert sample.instruction == pair.instruction
        assert sample.id == f"{pair.id}/5f"
        assert sample.task == (TaskKind.video if pair.reference is None else TaskKind.reference)
        assert len(sample.reference_images) == (pair.reference is not None)
        if pair.reference is not None:
            assert (sample.reference_images[0] == pair.reference).all()


def test_a_data_source_and_the_commands_render_the_same_items_from_the_same_settings():
    settings = {"items": 2, "seed": 3, "size": 32, "width": 40, "level": "easy", "split": "test"}
    item = SandboxEdits(**settings, max_frames=5).list_records(Path())[1]
    pair = WorldOptions(**settings, frames=5).pair(1)
    assert item.id == pair.id
    assert (item.target.decode() == pair.target).all()


def test_only_the_items_of_a_batch_are_rendered(monkeypatch):
    rendered = []
    monkeypatch.setattr(
        "kiwi.data.sandbox.make_pair", lambda **item: rendered.append(item["index"]) or make_pair(**item)
    )
    module = data(SandboxEdits(items=300, seed=91))
    assert rendered == [0]  # to check the settings
    batch = next(iter(module.train_dataloader()))
    assert len(rendered) == 1 + 2  # once for source, target, instruction and reference
    assert len(batch.ids) == 2


def test_categories_and_weights_are_mixed_like_those_of_manifests():
    module = data(
        SandboxEdits(items=70, weight=3),
        SandboxEdits(items=70, max_frames=1, categories=["local_add"], weight=1),
        batch_size=1,
    )
    assert {category for _, category in module.strata} == set(CATEGORIES)
    assert sum(
        share for (number, _), share in zip(module.strata, module.sampling_probabilities, strict=True) if number
    ) == pytest.approx(0.25)
    batches = [batch for _, batch in zip(range(40), module.train_dataloader(), strict=False)]
    assert sum(batch.task == TaskKind.image for batch in batches) == 10


def test_the_sandbox_can_be_mixed_with_a_manifest_and_is_not_held_out(edit_folder):
    module = data(
        Manifest(path="video.csv", max_frames=5),
        SandboxEdits(items=10, size=40, width=56),
        root=str(edit_folder),
        holdout=2,
    )
    assert len(module.datasets["train"]) == 4 + 10
    assert len(module.datasets["validation"]) == 2


def test_rendered_clips_are_cached_by_their_content(tmp_path):
    cache = FeatureCache.create(tmp_path / "cache", EncoderFingerprints("vae", "tower"), "float32")
    jobs = data(SandboxEdits(items=14)).datasets["train"].list_encoding_jobs(cache)
    assert len(jobs) == 14 + 14 + 4  # sources, targets, references
    same, other = (
        data(SandboxEdits(items=14, seed=seed)).datasets["train"].list_encoding_jobs(cache) for seed in (0, 1)
    )
    assert same.keys() == jobs.keys()
    assert not other.keys() & jobs.keys()
    item = data(SandboxEdits(items=1)).datasets["train"].records[0]
    assert RenderedClip(item, "source").hash_content() != RenderedClip(item, "target").hash_content()


def test_resuming_requires_the_same_sandbox_data():
    orders = {
        data(world).state_dict()["order"] for world in (SandboxEdits(items=20), SandboxEdits(items=20, level="easy"))
    }
    assert len(orders) == 2
    assert data(SandboxEdits(items=20)).state_dict()["order"] in orders


def test_hashes_of_rendered_clips_are_those_of_existing_caches():
    edit = EditItem(3, 2, 5, 32, 40, "easy", "test", ("local_add", "local_remove"))
    question = QuestionItem(0, 1, 1, 32, 32, "full", "train", ("count",))
    assert [clip.hash_content() for clip in (edit.source, question.source)] == [
        "287f5baa80dbd74df770fd71bea5413098cb8725eeb99a1670f33ba0ef22ea78",
        "57077eab263dbf5acd6a838329c2105e9b6287035cacf28cd98ffd29ae25d5ea",
    ]


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ({"items": 0}, "items"),
        ({"items": 1, "max_frames": 0}, "max_frames"),
        ({"items": 1, "level": "hell"}, "hell"),
        ({"items": 1, "split": "dev"}, "dev"),
        ({"items": 1, "categories": ["teleport"]}, "teleport"),
        ({"items": 1, "size": 4}, "4"),
    ],
)
def test_settings_that_cannot_be_rendered_are_rejected_before_training(options, value):
    with pytest.raises(KiwiError, match=value):
        data(SandboxEdits(**options))


def test_a_source_without_items_is_rejected_in_one_paragraph(tmp_path, capsys):
    options = ["--data.train", "[{type: SandboxEdits, items: 0}]", "--trainer.default_root_dir", str(tmp_path / "run")]
    assert main(["fit", "--config", str(VAE), *options]) == 2
    assert (
        capsys.readouterr().err
        == "error: SandboxEdits.items must be at least 1. Got: 0. Expected: 1 to 1,000,000,000.\n"
    )
    assert not (tmp_path / "run").exists()


def test_words_are_scrambled_with_the_given_probability():
    clear, scrambled = (
        [
            record.instruction
            for record in SandboxQuestions(items=8, tasks=["count"], scramble_words=chance).list_records(Path())
        ]
        for chance in (0.0, 1.0)
    )
    assert not set(" ".join(clear).split()) & set(" ".join(scrambled).split())


def test_lengths_of_rendered_clips_are_snapped():
    module = data(SandboxEdits(items=1, max_frames=7, size=36))
    sample = module.datasets["train"].decode(0)
    assert sample.size[0] == 5
    assert sample.source_FHWC.shape[:3] == sample.size == sample.mask_FHW.shape
    assert sample.source_FHWC.dtype == np.uint8
