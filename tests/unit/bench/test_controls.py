"""Controls are known to be bad, and a judge is only trusted as far as they tell."""

from dataclasses import replace

import numpy as np
import pytest

from kiwi.bench.controls import (
    CONTROL_KINDS,
    anchor_tasks,
    control_tasks,
    measure_drift,
    summarize_controls,
    unscored_controls,
)
from kiwi.bench.ledger import Ledger
from kiwi.bench.runner import JudgingTask, Runner
from kiwi.bench.scoring import score_items
from kiwi.bench.suites import read_items
from kiwi.media.video import read_video
from tests.unit.bench.conftest import ScriptedJudge, copy_sources
from tests.unit.bench.test_scoring import OPENVE, case, judged


@pytest.fixture
def edited(world, suite, tmp_path):
    cases = read_items(suite, world).items
    folder = copy_sources(cases, tmp_path / "edited")
    return cases, {case.id: folder / case.edited_name for case in cases}


def kinds(tasks):
    found = {}
    for task in tasks:
        found.setdefault(task.id.partition(":")[0], []).append(task)
    return found


def test_each_kind_of_control_is_built_as_documented(edited, tmp_path):
    cases, videos = edited
    found = kinds(control_tasks(cases, videos, 5, tmp_path / "controls"))
    assert {kind: len(tasks) for kind, tasks in found.items()} == dict.fromkeys(CONTROL_KINDS, 5)
    assert len({task.item.category for task in found["copy"]}) == 5
    for task in found["copy"]:
        assert task.edited == task.item.source
    for task in found["wrong source"]:
        assert task.edited in videos.values()
        assert task.edited != videos[task.item.id]
        assert task.instruction == task.item.instruction
    for task in found["other words"]:
        assert task.edited == videos[task.item.id]
        assert task.instruction != task.item.instruction
    for task in found["degraded"]:
        own, spoilt = (read_video(path).frames_FHWC.astype(float) for path in (videos[task.item.id], task.edited))
        assert own.shape == spoilt.shape
        assert np.abs(own - spoilt).mean() > 5


def test_another_edit_of_the_same_name_is_degraded_again(edited, tmp_path):
    cases, videos = edited
    first = next(case for case in cases)
    before = kinds(control_tasks([first], videos, 1, tmp_path / "controls"))["degraded"][0].edited
    videos[first.id].write_bytes(cases[1].source.read_bytes())
    after = kinds(control_tasks([first], videos, 1, tmp_path / "controls"))["degraded"][0].edited
    assert before != after
    assert before.read_bytes() != after.read_bytes()


def test_an_edit_that_cannot_be_read_has_no_degraded_control(edited, tmp_path):
    cases, videos = edited
    videos[cases[0].id].write_bytes(b"no video")
    found = kinds(control_tasks(cases, videos, len(cases), tmp_path / "controls"))
    assert len(found["copy"]) == len(cases)
    assert len(found["degraded"]) == len(cases) - 1


@pytest.mark.parametrize(
    ("above", "items", "holds", "undecided"),
    [(2, 6, True, False), (2, 5, False, True), (2, 2, False, True), (0, 6, False, False), (-1, 3, False, False)],
)
def test_a_control_is_passed_only_if_the_difference_is_significant(above, items, holds, undecided):
    cases = [case(f"i{index}", "local_add") for index in range(items)]
    real, _ = score_items(OPENVE, cases, [judged(OPENVE, one, *([2 + above] * 3)) for one in cases])
    bad_cases = [replace(one, id=f"copy:{one.id}") for one in cases]
    bad, _ = score_items(OPENVE, bad_cases, [judged(OPENVE, one, 2, 2, 2) for one in bad_cases])
    (found,) = summarize_controls(bad, real)
    assert (found.is_passed, found.is_inconclusive) == (holds, undecided)


def test_a_kind_without_scores_has_a_reason(edited, tmp_path):
    cases, videos = edited
    tasks = list(control_tasks(cases, videos, 2, tmp_path / "controls"))
    assert unscored_controls(tasks, [], {tasks[0].id: "the judge was out"})["copy"] == "the judge was out"


def test_anchors_are_new_repeats_and_are_compared_with_the_first_answer(edited, suite, rubrics, tmp_path):
    cases, videos = edited
    ledger = Ledger(tmp_path / "judgements.jsonl")

    def ask(numbers, tasks):
        return Runner(suite, rubrics, ScriptedJudge(lambda question, before: numbers), ledger).run(tasks)[0]

    def tasks(repeats):
        return [
            JudgingTask(id=one.id, item=one, instruction=one.instruction, edited=videos[one.id], repeats=repeats)
            for one in cases
        ]

    assert anchor_tasks(cases, videos, ledger.earlier, 3) == []
    first = ask((2, 2, 2), tasks([0])) + ask((5, 5, 5), tasks([1]))
    again = anchor_tasks(cases, videos, Ledger(ledger.file).earlier, 3)
    assert [task.repeats for task in again] == [[2]] * 3
    answers = ask((3, 3, 3), again)
    drift = measure_drift(answers, first)
    assert (drift.mean.mean, drift.items) == (1, 3)
    moved = [replace(one, key=replace(one.key, media={"edited": "another"})) for one in first]
    assert measure_drift(answers, moved) is None
