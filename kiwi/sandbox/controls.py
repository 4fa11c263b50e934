"""Controls: items whose words or reference are another's, with which an editor that reads them does something else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from kiwi.sandbox.edits import BackgroundReference, Edit, Restyle, SubjectReference
from kiwi.sandbox.pairs import EditPair

Swap = Callable[[EditPair, EditPair], EditPair | None]
"""From an item and a donor to the item with something of the donor's; None if this cannot be."""


def with_instruction_of(pair: EditPair, donor: EditPair) -> EditPair | None:
    """The item, told to do what the donor is told to; its target stays, so that it should be missed.

    None where the words mean the same: those that leave everything to the reference, or name the same style.
    """
    if isinstance(pair.edit, BackgroundReference) or donor.instruction == pair.instruction:
        return None
    if isinstance(pair.edit, Restyle) and isinstance(donor.edit, Restyle) and pair.edit.style == donor.edit.style:
        return None
    return replace(pair, instruction=donor.instruction)


def with_reference_of(pair: EditPair, donor: EditPair) -> EditPair | None:
    """The item with the donor's reference and the exact target that belongs to it.

    None without references, where both show the same, and where the scene holds what the donor's shows.
    """
    edit: Edit
    if isinstance(pair.edit, SubjectReference) and isinstance(donor.edit, SubjectReference):
        held = {(sprite.looks.colour, sprite.looks.shape) for sprite in pair.scene.sprites}
        looks = donor.edit.looks
        if looks == pair.edit.looks or (looks.colour, looks.shape) in held:
            return None
        edit = replace(pair.edit, looks=looks)
    elif isinstance(pair.edit, BackgroundReference) and isinstance(donor.edit, BackgroundReference):
        if donor.edit.background == pair.edit.background:
            return None
        edit = donor.edit
    else:
        return None
    return pair.with_edit(edit)


def swap_within_category(pairs: Sequence[EditPair], swap: Swap) -> dict[str, EditPair]:
    """Each item with something of the next one of its category that has it, by id; without those for which none has."""
    found: dict[str, EditPair] = {}
    for index, pair in enumerate(pairs):
        donors = (other for other in (*pairs[index + 1 :], *pairs[:index]) if other.category == pair.category)
        made = next((new for donor in donors if (new := swap(pair, donor)) is not None), None)
        if made is not None:
            found[pair.id] = made
    return found
