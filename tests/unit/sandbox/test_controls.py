"""Controls with the instructions and references of other items; the domain of models trained in the sandbox."""

import numpy as np
import pytest

from kiwi.sandbox.edits import SubjectReference
from kiwi.sandbox.grammar import DOMAIN_DESCRIPTION, MAX_INSTRUCTION_WORDS, unknown_words
from kiwi.sandbox.oracle import score_edit
from kiwi.sandbox.pairs import CATEGORIES, make_controls, make_pair, swap_instruction, swap_reference


def pairs(count=42, **arguments):
    defaults = {"frames": 3, "height": 32, "width": 32, "split": "test"}
    return [make_pair(3, index, **defaults | arguments) for index in range(count)]


def test_swapped_instructions_are_of_the_same_category_and_describe_another_edit():
    items = pairs()
    swapped = make_controls(items, swap_instruction)
    assert {item.category for item in swapped.values()} == set(CATEGORIES) - {"background_reference"}
    for item in items:
        if item.id in swapped:
            control = swapped[item.id]
            donors = [donor for donor in items if donor.instruction == control.instruction]
            assert all(donor.category == item.category for donor in donors)
            assert control.instruction != item.instruction
            assert np.array_equal(control.target, item.target)
            if item.category == "global_style":
                assert all(donor.edit.style != item.edit.style for donor in donors)


def test_a_swapped_reference_comes_with_its_exact_target():
    items = pairs(categories=["subject_reference", "background_reference"])
    swapped = make_controls(items, swap_reference)
    assert len(swapped) > 0.9 * len(items)
    for item in items:
        if item.id in swapped:
            control = swapped[item.id]
            assert control.instruction == item.instruction
            assert np.array_equal(control.source, item.source)
            assert not np.array_equal(control.reference, item.reference)
            assert np.array_equal(control.target[~control.mask], item.source[~control.mask])
            assert score_edit(control, control.target).overall == 5.0
            assert score_edit(control, item.target).overall <= 3.0
            if isinstance(control.edit, SubjectReference):
                assert control.edit.index == item.edit.index
                appearance = control.edit.appearance
                assert appearance.kind not in {s.appearance.kind for s in item.scene.sprites}


def test_an_item_with_its_own_edit_is_unchanged():
    for item in pairs(7):
        again = item.with_edit(item.edit)
        assert np.array_equal(again.target, item.target)
        assert np.array_equal(again.mask, item.mask)
        assert np.array_equal(again.new_mask, item.new_mask)
        assert again.caption == item.caption


def test_an_invisible_edit_makes_no_item():
    item = next(pair for pair in pairs(40, categories=["subject_reference"]) if len(pair.scene.sprites) > 1)
    same = item.scene.sprites[item.edit.index].appearance
    assert item.with_edit(SubjectReference(index=item.edit.index, appearance=same)) is None


def test_the_last_items_are_swapped_with_the_first_ones():
    items = pairs(14)
    swapped = make_controls(items, swap_instruction)
    for item in items:
        if item.id in swapped:  # each category has two items: the other one is the donor
            (other,) = (pair for pair in items if pair.category == item.category and pair is not item)
            assert swapped[item.id].instruction == other.instruction
    assert any(item.id in swapped for item in items[:7])
    assert any(item.id in swapped for item in items[7:])


def test_the_only_item_of_a_category_has_no_control():
    assert make_controls(pairs(7), swap_instruction) == {}
    assert make_controls(pairs(5), swap_reference) == {}


@pytest.mark.parametrize("split", ["train", "new_both"])
def test_every_instruction_of_the_sandbox_has_known_words_only(split):
    for item in pairs(140, frames=1, split=split):
        assert unknown_words(item.instruction) == []
        assert len(item.instruction.split()) <= MAX_INSTRUCTION_WORDS


def test_unknown_words_are_listed_once_each_and_in_order():
    assert unknown_words("Make the red CAR snow, and snow on 2 cars!") == ["car", "snow", "cars"]
    assert unknown_words("") == []
    assert unknown_words("Entferne den Ring") == ["entferne", "den"]


def test_the_domain_names_all_shapes_and_colours():
    assert all(name in DOMAIN_DESCRIPTION for name in ("circle", "cross", "red", "pink", "clouds", "sepia"))
