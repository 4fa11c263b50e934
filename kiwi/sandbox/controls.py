"""Control items, which have the instruction or reference of another item; an editor has to edit them differently."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from kiwi.sandbox.edits import BackgroundReference, Edit, Restyle, SubjectReference
from kiwi.sandbox.pairs import EditPair

Swap = Callable[[EditPair, EditPair], EditPair | None]
"""Function from an item and a donor to the item with the donor's instruction or reference; None if impossible."""


def with_instruction_of(pair: EditPair, donor: EditPair) -> EditPair | None:
    """Return the item with the donor's instruction but its own target, which an editor should now miss.

    None if both instructions mean the same: they refer to the reference alone, or name the same style.
    """
    if isinstance(pair.edit, BackgroundReference) or donor.instruction == pair.instruction:
        return None
    if isinstance(pair.edit, Restyle) and isinstance(donor.edit, Restyle) and pair.edit.style == donor.edit.style:
        return None
    return replace(pair, instruction=donor.instruction)


def with_reference_of(pair: EditPair, donor: EditPair) -> EditPair | None:
    """Return the item with the donor's reference and the exact target that follows from it.

    None if there are no references, if both show the same, or if the scene already has an object like the donor's.
    """
    edit: Edit
    if isinstance(pair.edit, SubjectReference) and isinstance(donor.edit, SubjectReference):
        appearance = donor.edit.appearance
        existing = {sprite.appearance.kind for sprite in pair.scene.sprites}
        if appearance == pair.edit.appearance or appearance.kind in existing:
            return None
        edit = replace(pair.edit, appearance=appearance)
    elif isinstance(pair.edit, BackgroundReference) and isinstance(donor.edit, BackgroundReference):
        if donor.edit.background == pair.edit.background:
            return None
        edit = donor.edit
    else:
        return None
    return pair.with_edit(edit)


def swap_within_category(pairs: Sequence[EditPair], swap: Swap) -> dict[str, EditPair]:
    """Make the controls, by item id: each item with the next possible donor of its category, in cyclic order."""
    controls: dict[str, EditPair] = {}
    for index, pair in enumerate(pairs):
        others = (*pairs[index + 1 :], *pairs[:index])
        candidates = (swap(pair, donor) for donor in others if donor.category == pair.category)
        if (control := next(filter(None, candidates), None)) is not None:
            controls[pair.id] = control
    return controls
