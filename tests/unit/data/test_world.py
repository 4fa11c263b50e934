"""The sandbox as a data set: items are drawn, never read, and otherwise like a manifest's."""

from pathlib import Path

import numpy as np
import pytest

from kiwi.__main__ import main
from kiwi.data.datamodule import EditData, Manifest, data_sets_of
from kiwi.data.feature_cache import Encoders, FeatureCache
from kiwi.data.world import Questions, Rendered, World
from kiwi.encoded import TaskKind
from kiwi.errors import InputError
from kiwi.sandbox.pairs import CATEGORIES, make_pair

VAE = Path(__file__).parents[3] / "experiments/sandbox/vae.yaml"


def data(*worlds, **more):
    found = EditData(train=list(worlds), **({"multiple": 8, "batch_size": 2, "num_workers": 0} | more))
    found.setup()
    return found


def test_a_sample_shows_the_item_to_the_last_bit():
    world = World(items=14, seed=3, max_frames=5, size=32, width=40, level="middle", split="new_things")
    found = data(world).sets["train"]
    for index in range(14):
        pair = make_pair(3, index, frames=5, height=32, width=40, level="middle", split="new_things")
        sample = found.decoded(index)
        assert (sample.source_FHWC == pair.source).all()
        assert (sample.target_FHWC == pair.target).all()
        assert (sample.mask_FHW == pair.mask).all()
        assert sample.instruction == pair.instruction
        assert sample.id == f"{pair.id}/5f"
        assert sample.task == (TaskKind.video if pair.reference is None else TaskKind.reference)
        assert len(sample.reference_images) == (pair.reference is not None)
        if pair.reference is not None:
            assert (sample.reference_images[0] == pair.reference).all()


def test_nothing_is_drawn_but_what_is_asked_for(monkeypatch):
    drawn = []
    monkeypatch.setattr("kiwi.data.world.make_pair", lambda **item: drawn.append(item["index"]) or make_pair(**item))
    found = data(World(items=300, seed=91))
    assert drawn == [0]  # whether items can be drawn at all
    batch = next(iter(found.train_dataloader()))
    assert len(drawn) == 1 + 2  # once for source, target, words and reference
    assert len(batch.ids) == 2


def test_categories_and_levels_are_mixed_like_those_of_manifests():
    found = data(
        World(items=70, weight=3), World(items=70, max_frames=1, categories=["local_add"], weight=1), batch_size=1
    )
    assert {category for _, category in found.cells} == set(CATEGORIES)
    assert sum(share for (number, _), share in zip(found.cells, found.shares, strict=True) if number) == pytest.approx(
        0.25
    )
    batches = [batch for _, batch in zip(range(40), found.train_dataloader(), strict=False)]
    assert sum(batch.task == TaskKind.image for batch in batches) == 10


def test_a_world_stands_beside_a_manifest_and_has_no_part_in_its_holdout(edit_folder):
    found = data(
        Manifest(path="video.csv", max_frames=5), World(items=10, size=40, width=56), root=str(edit_folder), holdout=2
    )
    assert len(found.sets["train"]) == 4 + 10
    assert len(found.sets["validation"]) == 2


def test_what_is_drawn_is_cached_by_what_it_is(tmp_path):
    cache = FeatureCache.create(tmp_path / "cache", Encoders("vae", "tower"), "float32")
    found = data(World(items=14)).sets["train"].encodable(cache)
    assert len(found) == 14 + 14 + 4  # sources, targets, references
    same, other = (data(World(items=14, seed=seed)).sets["train"].encodable(cache) for seed in (0, 1))
    assert same.keys() == found.keys()
    assert not other.keys() & found.keys()
    item = data(World(items=1)).sets["train"].records[0].item
    assert Rendered(item, "source").content() != Rendered(item, "target").content()


def test_the_same_order_needs_the_same_world():
    orders = {data(world).state_dict()["order"] for world in (World(items=20), World(items=20, level="easy"))}
    assert len(orders) == 2
    assert data(World(items=20)).state_dict()["order"] in orders


def test_a_world_is_told_from_a_manifest_in_an_experiment():
    rows = [{"path": "a.csv"}, {"items": 5, "split": "test", "categories": ["local_add"]}]
    assert data_sets_of(rows, "data.train") == [
        Manifest(path="a.csv"),
        World(items=5, split="test", categories=["local_add"]),
    ]
    for row, told in (({"seed": 1}, "no manifests or worlds"), ({"items": "many"}, "items of a data set")):
        with pytest.raises(InputError, match=told):
            data_sets_of([row], "data.train")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"items": 0}, "needs items"),
        ({"items": 1, "max_frames": 0}, "at least 1"),
        ({"items": 1, "level": "hell"}, "middle"),
        ({"items": 1, "split": "dev"}, "new_both"),
        ({"items": 1, "categories": ["teleport"]}, "categories"),
        ({"items": 1, "size": 4}, "too small"),
    ],
)
def test_a_world_that_cannot_be_drawn_is_told_before_training(options, told):
    with pytest.raises(InputError, match=told):
        data(World(**options))


def test_a_world_without_items_is_told_in_a_paragraph(tmp_path, capsys):
    options = ["--data.train", "[{items: 0}]", "--trainer.default_root_dir", str(tmp_path / "run")]
    assert main(["fit", "--config", str(VAE), *options]) == 2
    assert capsys.readouterr().err == "error: a world needs items. Got: 0.\n"
    assert not (tmp_path / "run").exists()


def test_words_are_mumbled_where_the_data_says_so():
    clear, mumbled = (
        [record.instruction for record in Questions(questions=8, tasks=["count"], mumbled=chance).records()]
        for chance in (0.0, 1.0)
    )
    assert not set(" ".join(clear).split()) & set(" ".join(mumbled).split())


def test_an_odd_length_snaps_like_a_clips():
    found = data(World(items=1, max_frames=7, size=36))
    sample = found.sets["train"].decoded(0)
    assert sample.size[0] == 5
    assert sample.source_FHWC.shape[:3] == sample.size == sample.mask_FHW.shape
    assert sample.source_FHWC.dtype == np.uint8
