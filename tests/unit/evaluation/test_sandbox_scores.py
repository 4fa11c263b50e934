"""Scores of an editor: known edits have known scores, and tables give the number of items and intervals."""

import numpy as np
import pytest
import torch

from kiwi.evaluation.fidelity import PSNR_CAP
from kiwi.evaluation.sandbox_scores import (
    BATCH_SIZE,
    collate_pairs,
    compute_category_mean,
    draw_edit_sheet,
    edit_pairs,
    group_batches,
    make_pair_editor,
    make_score_tables,
    reconstruct,
    score_item,
)
from kiwi.models.kiwi import KiwiEdit
from kiwi.models.sampling import Sampling
from kiwi.sandbox.pairs import CATEGORIES, make_pair


def pairs(count=14, **more):
    drawn = {"frames": 5, "height": 32, "width": 32, "split": "test"} | more
    return [make_pair(0, index, **drawn) for index in range(count)]


@pytest.fixture(scope="module")
def model(tiny_config):
    model = KiwiEdit(tiny_config).eval()
    torch.manual_seed(0)
    for (
        name,
        parameter,
    ) in model.named_parameters():  # initial zeros would hide the conditions
        if parameter.ndim > 1 and name.split(".")[0] in ("query", "latent", "source", "reference", "dit"):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def test_the_exact_target_scores_highest_and_the_unedited_source_lowest():
    for pair in pairs(7):
        exact, copy = score_item(pair, pair.target), score_item(pair, pair.source)
        assert exact.inside == PSNR_CAP
        assert exact.overall == 5.0
        assert copy.inside == copy.copy_inside == exact.copy_inside < 20
        assert copy.overall == 1.0
        if pair.mask.all():
            assert np.isnan(exact.outside)
        else:
            assert copy.outside == exact.outside == PSNR_CAP
        assert np.isnan(exact.ceiling_inside)


def test_psnr_is_over_all_pixels_inside_or_outside_the_mask():
    pair = next(pair for pair in pairs() if not pair.mask.all())
    edited = pair.target.astype(int)
    edited[pair.mask] = np.where(edited[pair.mask] > 127, edited[pair.mask] - 10, edited[pair.mask] + 10)
    edited[~pair.mask] = np.where(edited[~pair.mask] > 127, edited[~pair.mask] - 2, edited[~pair.mask] + 2)
    scores = score_item(pair, edited.astype(np.uint8), (pair.target, pair.source))
    assert scores.inside == pytest.approx(20 * np.log10(255 / 10), abs=1e-3)
    assert scores.outside == pytest.approx(20 * np.log10(255 / 2), abs=1e-3)
    # The source stands in for the target's round trip, and the target for the source's.
    assert scores.ceiling_inside == scores.copy_inside
    assert scores.ceiling_outside == PSNR_CAP


def test_an_items_edit_does_not_depend_on_its_batch(model):
    items = pairs(14)
    edit = make_pair_editor(model, Sampling(steps=2), seed=3)
    together = edit_pairs(items, edit)
    assert together.keys() == {pair.id for pair in items}
    assert all(together[pair.id].shape == pair.source.shape for pair in items)
    for pair in (items[0], items[5]):
        (alone,) = edit([pair])
        assert np.abs(alone.astype(int) - together[pair.id]).max() <= 1
        (other_noise,) = make_pair_editor(model, Sampling(steps=2), seed=4)([pair])
        assert not np.array_equal(alone, other_noise)


def test_batches_hold_all_items_by_task():
    items = pairs(70, frames=1)
    batches = group_batches(items)
    assert sorted(pair.id for batch in batches for pair in batch) == sorted(pair.id for pair in items)
    for batch in batches:
        assert len(batch) <= BATCH_SIZE
        assert len({pair.reference is None for pair in batch}) == 1
        assert collate_pairs(batch).task == ("image" if batch[0].reference is None else "reference")


def test_round_trips_encode_and_decode(model):
    clips = [pair.source for pair in pairs(2)]
    first, second = reconstruct(model.vae, clips)
    assert first.shape == clips[0].shape
    (alone,) = reconstruct(model.vae, clips[1:])
    assert np.abs(second.astype(int) - alone).max() <= 1


def test_means_are_over_categories_and_skip_missing_scores():
    items = pairs(8)  # eight items, seven categories: the first category has two
    scored = [score_item(pair, pair.target if index else pair.source) for index, pair in enumerate(items)]
    assert compute_category_mean(scored, "overall").mean == pytest.approx((6 * 5 + (1 + 5) / 2) / 7)
    assert compute_category_mean(scored, "ceiling_inside") is None
    outside = compute_category_mean(scored, "outside")
    assert outside.mean == pytest.approx(PSNR_CAP)


def test_tables_have_a_row_for_each_category_and_for_the_mean():
    scored = [score_item(pair, pair.source) for pair in pairs(14)]
    fidelity, oracle = make_score_tables(scored)
    assert [row[0] for row in fidelity.rows] == [row[0] for row in oracle.rows] == [*CATEGORIES, "mean"]
    assert [row[1] for row in oracle.rows] == [2] * 7 + [14]
    assert {str(cell) for cell in oracle.rows[-1][2:]} == {"1.00 ± 0.00"}
    by_name = {row[0]: dict(zip(fidelity.header, row, strict=True)) for row in fidelity.rows}
    assert by_name["global_style"]["out"] == ""
    assert "fewer than 5 items" in oracle.note
    assert "fewer than 5 items" not in make_score_tables([score_item(pair, pair.source) for pair in pairs(35)])[1].note
    assert by_name["local_add"]["VAE in"] == ""
    assert by_name["local_add"]["in"] == by_name["local_add"]["copy in"]


def test_a_sheet_has_a_row_for_each_item_and_a_column_for_each_editor():
    items = pairs(3)
    single = draw_edit_sheet(items, {"copy": {pair.id: pair.source for pair in items}})
    double = draw_edit_sheet(items, {name: {pair.id: pair.source for pair in items} for name in ("before", "after")})
    assert double.shape[1] > single.shape[1] > 4 * 144
    assert double.shape[0] == single.shape[0] > 3 * 144


def test_a_sheet_shows_the_middle_frame_unless_another_is_given():
    (pair,) = pairs(1)
    marked = np.zeros_like(pair.source)
    marked[2] = 255
    edits = {"edit": {pair.id: marked}}
    middle, first = draw_edit_sheet([pair], edits), draw_edit_sheet([pair], edits, frame=0)
    assert np.array_equal(middle, draw_edit_sheet([pair], edits, frame=2))
    assert middle.sum() > first.sum()


def test_items_of_other_sizes_are_not_batched_together():
    items = [pair for size in (32, 48) for pair in pairs(8, height=size)]
    assert all(len({pair.source.shape for pair in batch}) == 1 for batch in group_batches(items))


def test_edits_are_uint8_videos_of_their_sources_size(model):
    items = pairs(2, categories=["local_remove"])
    videos = make_pair_editor(model, Sampling(steps=1))(items)
    assert [video.shape for video in videos] == [(5, 32, 32, 3)] * 2
    assert videos[0].dtype == np.uint8
