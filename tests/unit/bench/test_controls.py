"""Controls are edits that are known to be bad; a judge has to score them below the real ones."""

from dataclasses import replace

import numpy as np
import pytest

from kiwi.bench.controls import (
    CONTROL_KINDS,
    explain_unscored_controls,
    get_control_kind,
    make_anchor_tasks,
    make_control_tasks,
    measure_drift,
    summarize_controls,
)
from kiwi.bench.ledger import read_ledger
from kiwi.bench.scoring import JudgedTask, score_items
from kiwi.bench.suites import read_items
from kiwi.media.video import read_video
from tests.unit.bench.conftest import ScriptedJudge, copy_sources, make_runner, make_task
from tests.unit.bench.test_scoring import OPENVE, make_item, make_judgement


@pytest.fixture
def edited(world, suite, tmp_path):
    items = read_items(suite, world).items
    folder = copy_sources(items, tmp_path / "edited")
    return items, {item.id: folder / item.edited_name for item in items}


def group_by_kind(tasks):
    groups = {}
    for task in tasks:
        groups.setdefault(get_control_kind(task.id), []).append(task)
    return groups


def test_each_kind_of_control_is_built_as_documented(edited, tmp_path):
    items, videos = edited
    tasks = group_by_kind(make_control_tasks(items, videos, 5, tmp_path / "controls"))
    assert {kind: len(of_kind) for kind, of_kind in tasks.items()} == dict.fromkeys(CONTROL_KINDS.values(), 5)
    assert len({task.item.category for task in tasks["copy"]}) == 5
    for task in tasks["copy"]:
        assert task.edited == task.item.source
    for task in tasks["wrong source"]:
        assert task.edited in videos.values()
        assert task.edited != videos[task.item.id]
        assert task.instruction == task.item.instruction
    for task in tasks["wrong instruction"]:
        assert task.edited == videos[task.item.id]
        assert task.instruction != task.item.instruction
    for task in tasks["degraded"]:
        edit, degraded = (read_video(path).frames_FHWC.astype(float) for path in (videos[task.item.id], task.edited))
        assert edit.shape == degraded.shape
        assert np.abs(edit - degraded).mean() > 5


def test_another_edit_of_the_same_name_is_degraded_again(edited, tmp_path):
    items, videos = edited
    first = next(item for item in items)
    before = group_by_kind(make_control_tasks([first], videos, 1, tmp_path / "controls"))["degraded"][0].edited
    videos[first.id].write_bytes(items[1].source.read_bytes())
    after = group_by_kind(make_control_tasks([first], videos, 1, tmp_path / "controls"))["degraded"][0].edited
    assert before != after
    assert before.read_bytes() != after.read_bytes()


def test_an_edit_that_cannot_be_read_has_no_degraded_control(edited, tmp_path):
    items, videos = edited
    videos[items[0].id].write_bytes(b"no video")
    tasks = group_by_kind(make_control_tasks(items, videos, len(items), tmp_path / "controls"))
    assert len(tasks["copy"]) == len(items)
    assert len(tasks["degraded"]) == len(items) - 1


@pytest.mark.parametrize(
    ("above", "count", "is_passed", "is_inconclusive"),
    [(2, 6, True, False), (2, 5, False, True), (2, 2, False, True), (0, 6, False, False), (-1, 3, False, False)],
)
def test_a_control_is_passed_only_if_the_difference_is_significant(above, count, is_passed, is_inconclusive):
    items = [make_item(f"i{index}", "local_add") for index in range(count)]
    edits, _ = score_items(OPENVE, items, [make_judgement(OPENVE, item, *([2 + above] * 3)) for item in items])
    control_items = [replace(item, id=f"copy:{item.id}") for item in items]
    controls, _ = score_items(OPENVE, control_items, [make_judgement(OPENVE, item, 2, 2, 2) for item in control_items])
    (result,) = summarize_controls(controls, edits)
    assert (result.is_passed, result.is_inconclusive) == (is_passed, is_inconclusive)


def test_a_kind_without_scores_has_a_reason(edited, tmp_path):
    items, videos = edited
    tasks = list(make_control_tasks(items, videos, 2, tmp_path / "controls"))
    controls = [JudgedTask(task=task, judgements=[], score=None, reason="it timed out") for task in tasks]
    assert explain_unscored_controls(controls)["copy"] == "it timed out"


def test_anchors_are_new_repeats_and_are_compared_with_the_first_answer(edited, suite, rubrics, tmp_path):
    items, videos = edited

    def ask(scores, tasks):
        return make_runner(suite, rubrics, ScriptedJudge(lambda question, times_asked: scores), tmp_path).run(tasks)[0]

    def tasks(repeats):
        return [make_task(item, videos[item.id], repeats=repeats) for item in items]

    assert make_anchor_tasks(items, videos, [], 3) == []
    first = ask((2, 2, 2), tasks([0])) + ask((5, 5, 5), tasks([1]))
    again = make_anchor_tasks(items, videos, read_ledger(tmp_path / "judgements.jsonl"), 3)
    assert [task.repeats for task in again] == [[2]] * 3
    answers = ask((3, 3, 3), again)
    drift = measure_drift(answers, first)
    assert (drift.interval.mean, drift.items) == (1, 3)
    other_answers = [replace(answer, key=replace(answer.key, media={"edited": "another"})) for answer in first]
    assert measure_drift(answers, other_answers) is None
