"""Questions: each has an answer that is visible, countable or readable from the question itself."""

from collections import Counter
from itertools import product

import pytest

from kiwi.errors import InputError
from kiwi.sandbox import grammar
from kiwi.sandbox.drawing import SHAPES
from kiwi.sandbox.palette import SPRITE_COLOURS
from kiwi.sandbox.questions import (
    COUNT_ANSWERS,
    TASKS,
    WORDINGS,
    content_overlap,
    content_words,
    make_question,
    name_direction,
    name_place,
)
from kiwi.sandbox.sampling import HELD_OUT_WORDINGS, SPLITS, is_held_out_object
from kiwi.sandbox.world import Appearance, Sprite

SIZE = {"frames": 5, "height": 32, "width": 32}


@pytest.fixture(scope="module")
def questions():
    """Thirty questions of each task."""
    return [make_question(0, index, **SIZE) for index in range(240)]


@pytest.fixture(scope="module")
def of(questions):
    """The questions of one task."""
    return lambda task: [question for question in questions if question.task == task]


def test_tasks_take_turns_and_a_question_is_a_function_of_seed_and_index(questions):
    assert set(Counter(question.task for question in questions).values()) == {30}
    again = make_question(0, 17, **SIZE)
    assert (again.text, again.answer, again.id) == (questions[17].text, questions[17].answer, questions[17].id)
    assert (again.video == questions[17].video).all()
    assert len({question.id for question in questions}) == 240
    assert make_question(1, 17, **SIZE).id not in {question.id for question in questions}


def test_answers_are_sentences_and_differ(of):
    for task in TASKS:
        answers = {question.answer for question in of(task)}
        assert len(answers) >= (3 if task in ("count", "move") else 5), task
        for answer in answers:
            assert answer[0].isupper()
            assert answer.endswith(".")
            assert not answer.endswith("..")


def test_every_answer_fits_its_task(of):
    assert {question.answer.lower().rstrip(".") for question in of("locate")} <= set(grammar.PLACES)
    assert {question.answer.lower().rstrip(".") for question in of("count")} <= set(COUNT_ANSWERS[1:])
    assert all(question.text.endswith(question.answer) for question in of("repeat"))
    for question in of("identify"):
        assert any(place in question.text for place in grammar.PLACES)
        assert question.answer.startswith(("A ", "An "))
    for task in TASKS:
        assert all((question.image is not None) == (task == "picture") for question in of(task))


def test_the_question_does_not_contain_the_answer(of):
    for task in ("locate", "identify", "move"):
        assert not any(question.answer.lower().rstrip(".") in question.text.lower() for question in of(task)), task


def test_only_unambiguous_places_and_directions_are_asked_for():
    assert name_place((-0.5, -0.5)) == "in the top left"
    assert name_place((-0.25, -0.5)) is None
    appearance = Appearance(shape="ring", colour="red")

    def direction(*velocity, frames=3, start=(0.0, 0.0), aspect=(1, 1)):
        return name_direction(Sprite(appearance=appearance, size=0.4, start=start, velocity=velocity), frames, aspect)

    assert direction(0.04, 0.01) == "to the right"
    assert direction(0.0, -0.05) == "up"
    assert direction(0.03, 0.03) is None
    assert direction(0.005, 0.0) is None
    assert direction(0.04, 0.0, frames=1) is None
    assert direction(0.04, 0.0, start=(0.5, 0.0)) is None  # it bounces off the border
    assert direction(0.03, 0.03, aspect=(3, 1)) == "to the right"


@pytest.mark.parametrize("split", SPLITS)
def test_wordings_and_objects_are_those_of_the_split(split):
    for index in range(64):
        question = make_question(2, index, **SIZE, split=split)
        wordings = WORDINGS[question.task]
        starts = [wording.split("{")[0] for wording in wordings]
        used = {start for start in starts if question.text.startswith(start)}
        allowed = starts[-HELD_OUT_WORDINGS:] if split in ("new_words", "new_both") else starts[:-HELD_OUT_WORDINGS]
        assert used & set(allowed), question.text
    if split not in ("new_things", "new_both"):
        answers = [make_question(2, index, **SIZE, split=split, tasks=["describe"]).answer for index in range(100)]
        held_out = [kind for kind in product(SPRITE_COLOURS, SHAPES) if is_held_out_object(*kind)]
        assert not any(" ".join(kind) in answer for kind in held_out for answer in answers)


def test_only_words_of_the_wording_are_scrambled(questions):
    counts = Counter()
    for question in questions:
        index = int(question.id.rsplit("-", 1)[1])
        scrambled, all_scrambled = (
            make_question(0, index, scramble_words=probability, **SIZE) for probability in (0.3, 1.0)
        )
        assert question.answer == scrambled.answer == all_scrambled.answer
        assert question.id == scrambled.id
        words = question.text.split()
        in_wordings = {word for wording in WORDINGS[question.task] for word in wording.split() if "{" not in word}
        changed = {word for word, other in zip(words, all_scrambled.text.split(), strict=True) if word != other}
        assert changed
        assert changed <= in_wordings
        assert question.task != "repeat" or all_scrambled.text.endswith(question.answer)
        counts["words"] += len(changed)
        counts["scrambled"] += sum(word != other for word, other in zip(words, scrambled.text.split(), strict=True))
    assert 0.25 < counts["scrambled"] / counts["words"] < 0.36
    with pytest.raises(InputError, check=lambda error: error.code == "out-of-range"):
        make_question(0, 0, scramble_words=1.5, **SIZE)


@pytest.mark.parametrize("tasks", [["locate", "sing"], [], ["count", "count"]])
def test_invalid_tasks_are_rejected_with_a_list_of_the_valid_ones(tasks):
    with pytest.raises(InputError, match="describe", check=lambda error: error.code == "unknown-task"):
        make_question(0, 0, **SIZE, tasks=tasks)


@pytest.mark.parametrize(
    ("answer", "reference", "overlap"),
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
def test_the_overlap_counts_content_words(answer, reference, overlap):
    assert content_overlap(answer, reference) == pytest.approx(overlap)


def test_every_answer_has_content_words_and_overlaps_with_itself(questions):
    for question in questions:
        assert content_words(question.answer), question.answer
        assert content_overlap(question.answer, question.answer) == 1
