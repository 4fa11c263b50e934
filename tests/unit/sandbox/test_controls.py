"""Controls: words and references of other items, and what a model of the sandbox can know."""

import numpy as np
import pytest

from kiwi.sandbox.controls import swap_within_category, with_instruction_of, with_reference_of
from kiwi.sandbox.domain import DOMAIN, MAX_INSTRUCTION_WORDS, unknown_words
from kiwi.sandbox.edits import SubjectReference
from kiwi.sandbox.oracle import judge_edit
from kiwi.sandbox.pairs import CATEGORIES, make_pair


def pairs(count=42, **more):
    drawn = {"frames": 3, "height": 32, "width": 32, "split": "test"} | more
    return [make_pair(3, index, **drawn) for index in range(count)]


def test_other_words_are_of_the_category_and_ask_for_something_else():
    items = pairs()
    found = swap_within_category(items, with_instruction_of)
    assert {item.category for item in found.values()} == set(CATEGORIES) - {"background_reference"}
    for item in items:
        if item.id in found:
            new = found[item.id]
            donors = [one for one in items if one.instruction == new.instruction]
            assert all(one.category == item.category for one in donors)
            assert new.instruction != item.instruction
            assert np.array_equal(new.target, item.target)
            if item.category == "global_style":
                assert all(one.edit.style != item.edit.style for one in donors)


def test_another_reference_comes_with_its_exact_target():
    items = pairs(categories=["subject_reference", "background_reference"])
    found = swap_within_category(items, with_reference_of)
    assert len(found) > 0.9 * len(items)
    for item in items:
        if item.id in found:
            new = found[item.id]
            assert new.instruction == item.instruction
            assert np.array_equal(new.source, item.source)
            assert not np.array_equal(new.reference, item.reference)
            assert np.array_equal(new.target[~new.mask], item.source[~new.mask])
            assert judge_edit(new, new.target).overall == 5.0
            assert judge_edit(new, item.target).overall <= 3.0
            if isinstance(new.edit, SubjectReference):
                assert new.edit.index == item.edit.index
                looks = new.edit.looks
                assert (looks.colour, looks.shape) not in {(s.looks.colour, s.looks.shape) for s in item.scene.sprites}


def test_an_item_with_its_own_edit_is_itself():
    for item in pairs(7):
        again = item.with_edit(item.edit)
        assert np.array_equal(again.target, item.target)
        assert np.array_equal(again.mask, item.mask)
        assert np.array_equal(again.new_mask, item.new_mask)
        assert again.caption == item.caption


def test_an_edit_that_hardly_shows_makes_no_item():
    item = next(one for one in pairs(40, categories=["subject_reference"]) if len(one.scene.sprites) > 1)
    same = item.scene.sprites[item.edit.index].looks
    assert item.with_edit(SubjectReference(index=item.edit.index, looks=same)) is None


def test_the_last_item_takes_from_the_first_ones():
    items = pairs(14)
    found = swap_within_category(items, with_instruction_of)
    for item in items:
        if item.id in found:  # two of each category: the other one, before or behind
            (other,) = (one for one in items if one.category == item.category and one is not item)
            assert found[item.id].instruction == other.instruction
    assert any(item.id in found for item in items[:7])
    assert any(item.id in found for item in items[7:])


def test_who_is_alone_in_its_category_has_no_control():
    assert swap_within_category(pairs(7), with_instruction_of) == {}
    assert swap_within_category(pairs(5), with_reference_of) == {}


@pytest.mark.parametrize("split", ["train", "new_both"])
def test_every_instruction_of_the_world_is_of_known_words(split):
    for item in pairs(140, frames=1, split=split):
        assert unknown_words(item.instruction) == []
        assert len(item.instruction.split()) <= MAX_INSTRUCTION_WORDS


def test_words_of_elsewhere_are_named_once_each_and_in_order():
    assert unknown_words("Make the red CAR snow, and snow on 2 cars!") == ["car", "snow", "cars"]
    assert unknown_words("") == []
    assert unknown_words("Entferne den Ring") == ["entferne", "den"]


def test_what_is_known_names_all_shapes_and_colours():
    assert all(name in DOMAIN for name in ("circle", "cross", "red", "pink", "clouds", "sepia"))
