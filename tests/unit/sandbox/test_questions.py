"""Questions: every one has an answer that can be seen, read or counted."""

from __future__ import annotations

from collections import Counter

import pytest

from kiwi.errors import InputError
from kiwi.sandbox import grammar
from kiwi.sandbox.questions import (
    NUMBERS,
    TASKS,
    WORDINGS,
    content_overlap,
    content_words,
    direction,
    make_question,
    unambiguous_place,
)
from kiwi.sandbox.sampling import NEW_WORDINGS, Split, is_new_thing
from kiwi.sandbox.world import Looks, Sprite

SIZE = {"frames": 5, "height": 32, "width": 32}
QUESTIONS = [make_question(0, index, **SIZE) for index in range(240)]


def of(task):
    return [question for question in QUESTIONS if question.task == task]


def test_tasks_take_turns_and_a_question_is_a_function_of_seed_and_index():
    assert set(Counter(question.task for question in QUESTIONS).values()) == {30}
    again = make_question(0, 17, **SIZE)
    assert (again.words, again.answer, again.id) == (QUESTIONS[17].words, QUESTIONS[17].answer, QUESTIONS[17].id)
    assert (again.video == QUESTIONS[17].video).all()
    assert len({question.id for question in QUESTIONS}) == 240
    assert make_question(1, 17, **SIZE).id not in {question.id for question in QUESTIONS}


def test_answers_are_sentences_and_differ():
    for task in TASKS:
        answers = {question.answer for question in of(task)}
        assert len(answers) >= (3 if task in ("count", "move") else 5), task
        for answer in answers:
            assert answer[0].isupper()
            assert answer.endswith(".")
            assert not answer.endswith("..")


def test_every_answer_is_of_its_task():
    assert {question.answer.lower().rstrip(".") for question in of("locate")} <= set(grammar.PLACES)
    assert {question.answer.lower().rstrip(".") for question in of("count")} <= set(NUMBERS[1:])
    assert all(question.words.endswith(question.answer) for question in of("repeat"))
    for question in of("identify"):
        assert any(place in question.words for place in grammar.PLACES)
        assert question.answer.startswith(("A ", "An "))
    for task in TASKS:
        assert all((question.image is not None) == (task == "picture") for question in of(task))


def test_the_question_does_not_hold_the_answer():
    for task in ("locate", "identify", "move"):
        assert not any(question.answer.lower().rstrip(".") in question.words.lower() for question in of(task)), task


def test_only_clear_places_and_directions_are_asked_for():
    assert unambiguous_place((-0.5, -0.5)) == "in the top left"
    assert unambiguous_place((-0.25, -0.5)) is None
    looks = Looks(shape="ring", colour="red")

    def told(*velocity, frames=3, start=(0.0, 0.0), aspect=(1, 1)):
        return direction(Sprite(looks=looks, size=0.4, start=start, velocity=velocity), frames, aspect)

    assert told(0.04, 0.01) == "to the right"
    assert told(0.0, -0.05) == "up"
    assert told(0.03, 0.03) is None
    assert told(0.005, 0.0) is None
    assert told(0.04, 0.0, frames=1) is None
    assert told(0.04, 0.0, start=(0.5, 0.0)) is None  # it turns at the border
    assert told(0.03, 0.03, aspect=(3, 1)) == "to the right"


@pytest.mark.parametrize("split", list(Split))
def test_words_and_things_are_of_the_split(split):
    for index in range(64):
        question = make_question(2, index, **SIZE, split=split)
        wordings = WORDINGS[question.task]
        starts = [wording.split("{")[0] for wording in wordings]
        said = [start for start in starts if question.words.startswith(start)]
        unsaid = starts[-NEW_WORDINGS:] if split.says_new_words else starts[:-NEW_WORDINGS]
        assert set(said) & set(unsaid), question.words
    if not split.holds_new_things:
        names = " ".join(
            make_question(2, index, **SIZE, split=split, tasks=["describe"]).answer for index in range(100)
        )
        assert not any(is_new_thing(*pair) and " ".join(pair) in names for pair in _pairs())


def _pairs():
    from kiwi.sandbox.drawing import SHAPES
    from kiwi.sandbox.palette import SPRITE_COLOURS

    return [(colour, shape) for colour in SPRITE_COLOURS for shape in SHAPES]


def test_mumbled_words_are_those_of_the_wording_and_nothing_else_changes():
    heard = Counter()
    for question in QUESTIONS:
        index = int(question.id.rsplit("-", 1)[1])
        mumbled, lost = (make_question(0, index, scramble_words=chance, **SIZE) for chance in (0.3, 1.0))
        assert question.answer == mumbled.answer == lost.answer
        assert question.id == mumbled.id
        words = question.words.split()
        in_wordings = {word for wording in WORDINGS[question.task] for word in wording.split() if "{" not in word}
        changed = {word for word, other in zip(words, lost.words.split(), strict=True) if word != other}
        assert changed
        assert changed <= in_wordings
        assert question.task != "repeat" or lost.words.endswith(question.answer)
        heard["words"] += len(changed)
        heard["mumbled"] += sum(word != other for word, other in zip(words, mumbled.words.split(), strict=True))
    assert 0.25 < heard["mumbled"] / heard["words"] < 0.36
    with pytest.raises(InputError, match="probability"):
        make_question(0, 0, scramble_words=1.5, **SIZE)


@pytest.mark.parametrize("tasks", [["locate", "sing"], [], ["count", "count"]])
def test_unusable_tasks_are_refused_with_the_choices(tasks):
    with pytest.raises(InputError, match="describe"):
        make_question(0, 0, **SIZE, tasks=tasks)


@pytest.mark.parametrize(
    ("said", "wanted", "share"),
    [
        ("A red circle over plain grey.", "A red circle over plain grey.", 1),
        ("A red circle over plain grey", "a red circle, over plain grey.", 1),
        ("A red ring over plain grey.", "A red circle over plain grey.", 3 / 4),
        ("A red circle over plain grey.", "A striped red circle over plain grey.", 4 / 5),
        ("Red red red red circle.", "A red circle.", 2 / 5),
        ("Circle red.", "Red circle.", 1 / 2),
        ("A the over.", "Red circle.", 0),
        ("", "One object.", 0),
        ("Two objects.", "One object.", 0),
    ],
)
def test_the_share_of_facts_counts_what_tells_something(said, wanted, share):
    assert content_overlap(said, wanted) == pytest.approx(share)


def test_every_answer_has_facts_and_is_right_of_itself():
    for question in QUESTIONS:
        assert content_words(question.answer), question.answer
        assert content_overlap(question.answer, question.answer) == 1
