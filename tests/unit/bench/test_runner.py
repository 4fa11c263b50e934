"""The runner asks questions that are not in the ledger, within the rate limit, and records every answer."""

import json
import time
from dataclasses import replace

import pytest

from kiwi.bench.judges import JudgeError
from kiwi.bench.ledger import read_ledger
from kiwi.bench.runner import RateLimit
from kiwi.bench.suites import read_items
from kiwi.errors import InputError, MediaError
from kiwi.media.run_dir import exclusive_lock
from tests.unit.bench.conftest import FAST, ScriptedJudge, copy_sources, make_runner, make_task


@pytest.fixture
def items(world, suite):
    return read_items(suite, world).items


@pytest.fixture
def tasks(items, tmp_path):
    folder = copy_sources(items, tmp_path / "videos")
    return [make_task(item, folder / item.edited_name) for item in items]


def test_each_question_is_asked_once_and_not_again_in_the_next_run(suite, rubrics, tasks, tmp_path):
    judge = ScriptedJudge()
    judgements, failures = make_runner(suite, rubrics, judge, tmp_path).run(tasks)
    assert [judgement.key.item for judgement in judgements] == [task.id for task in tasks]
    assert failures == {}
    assert {tuple(judgement.scores.values()) for judgement in judgements} == {(4, 3, 5)}
    unused_judge = ScriptedJudge()
    assert make_runner(suite, rubrics, unused_judge, tmp_path).run(tasks)[0] == judgements
    assert unused_judge.questions == []


@pytest.mark.parametrize("changed", ["video", "rubric", "judge", "version", "instruction", "temperature", "frames"])
def test_a_question_with_any_change_is_asked_again(suite, rubrics, tasks, tmp_path, changed):
    make_runner(suite, rubrics, ScriptedJudge(), tmp_path).run(tasks[:2])
    judge, first = ScriptedJudge(), tasks[0]
    if changed == "video":
        first.edited.write_bytes(tasks[1].edited.read_bytes())
    elif changed == "rubric":
        category = first.item.category
        rubrics = {**rubrics, category: replace(rubrics[category], text="another")}
    elif changed == "instruction":
        first = replace(first, instruction="Do something else.")
    elif changed == "temperature":
        judge.temperature = 0.5
    else:
        setattr(judge, "name" if changed == "judge" else changed, "another")
    make_runner(suite, rubrics, judge, tmp_path).run([first])
    assert len(judge.questions) == 1


def test_failures_are_recorded_and_asked_again_in_the_next_run(suite, rubrics, tasks, tmp_path):
    judge = ScriptedJudge(lambda question, times_asked: "I cannot rate this.")
    judgements, _ = make_runner(suite, rubrics, judge, tmp_path).run(tasks[:3])
    assert [judgement.scores for judgement in judgements] == [None] * 3
    assert all(
        "no score of" in judgement.reason and judgement.reply == "I cannot rate this." for judgement in judgements
    )
    judgements, _ = make_runner(suite, rubrics, ScriptedJudge(), tmp_path).run(tasks[:3])
    assert all(judgement.scores for judgement in judgements)
    assert len(read_ledger(tmp_path / "judgements.jsonl")) == 6


def test_only_retryable_errors_are_retried(suite, rubrics, tasks, tmp_path):
    busy = ScriptedJudge(
        lambda question, times_asked: (4, 4, 4) if times_asked == 2 else JudgeError("busy", retryable=True)
    )
    judgements, _ = make_runner(suite, rubrics, busy, tmp_path).run(tasks[:1])
    assert judgements[0].scores
    assert len(busy.questions) == 3
    refusing = ScriptedJudge(lambda question, times_asked: JudgeError("it shows a person", retryable=False))
    judgements, _ = make_runner(suite, rubrics, refusing, tmp_path).run(tasks[1:2])
    assert (judgements[0].scores, judgements[0].reply, judgements[0].reason) == (None, None, "it shows a person")
    assert len(refusing.questions) == 1
    always_busy = ScriptedJudge(lambda question, times_asked: JudgeError("busy", retryable=True))
    judgements, _ = make_runner(suite, rubrics, always_busy, tmp_path).run(tasks[2:3])
    assert judgements[0].reason == "busy"
    assert len(always_busy.questions) == FAST.tries


def test_the_wait_that_a_judge_asks_for_is_respected(suite, rubrics, tasks, tmp_path):
    judge = ScriptedJudge(
        lambda question, times_asked: (
            (4, 4, 4) if times_asked else JudgeError("slow down", retryable=True, retry_after=0.4)
        )
    )
    start = time.monotonic()
    make_runner(suite, rubrics, judge, tmp_path).run(tasks[:1])
    assert time.monotonic() - start >= 0.4


def test_questions_run_concurrently_up_to_the_limit(suite, rubrics, tasks, tmp_path):
    judge = ScriptedJudge(seconds=0.05)
    make_runner(suite, rubrics, judge, tmp_path, RateLimit(concurrency=3)).run(tasks)
    assert judge.max_in_flight == 3


def test_the_rate_limit_is_respected(suite, rubrics, tasks, tmp_path):
    start = time.monotonic()
    make_runner(suite, rubrics, ScriptedJudge(), tmp_path, RateLimit(concurrency=8, per_minute=600)).run(tasks[:6])
    assert time.monotonic() - start >= 0.5


def test_missing_videos_are_generated_while_others_are_judged(suite, rubrics, items, tmp_path):
    (folder := tmp_path / "videos").mkdir()
    done = []

    def generate(item, path):
        if len(done) == 3:
            raise MediaError("the source is broken", code="damaged-video")
        time.sleep(0.05)
        done.append((item.id, len(judge.questions)))
        path.write_bytes(item.source.read_bytes())

    judge = ScriptedJudge()
    tasks = [make_task(item, folder / item.edited_name) for item in items[:4]]
    judgements, failures = make_runner(suite, rubrics, judge, tmp_path).run(tasks, generate)
    assert [judgement.key.item for judgement in judgements] == [item.id for item in items[:3]]
    assert failures == {items[3].id: "the video could not be edited: the source is broken."}
    assert done[2][1] >= 1  # judging did not wait for the last video
    judgements, failures = make_runner(suite, rubrics, judge, tmp_path).run(tasks)
    assert failures == {items[3].id: f"{items[3].edited_name} does not exist"}


def test_repeats_are_separate_questions(suite, rubrics, tasks, tmp_path):
    judge = ScriptedJudge(lambda question, times_asked: (question.key.repeat + 1,) * 3)
    judgements, _ = make_runner(suite, rubrics, judge, tmp_path).run([replace(tasks[0], repeats=range(3))])
    assert [judgement.scores["Instruction Compliance"] for judgement in judgements] == [1, 2, 3]


def test_the_question_of_a_truncated_line_is_asked_again_and_the_others_are_kept(suite, rubrics, tasks, tmp_path):
    make_runner(suite, rubrics, ScriptedJudge(), tmp_path).run(tasks[:3])
    file = tmp_path / "judgements.jsonl"
    file.write_bytes(file.read_bytes()[:-40])
    judge = ScriptedJudge()
    judgements, _ = make_runner(suite, rubrics, judge, tmp_path).run(tasks[:3])
    assert len(judge.questions) == 1
    assert all(judgement.scores for judgement in judgements)
    assert len(read_ledger(file)) == 3


@pytest.mark.parametrize(
    "change",
    [{"scores": {"a": 9}}, {"scores": {"a": True}}, {"scores": [4]}, {"asked": None}, {"more": 1}, {"reply": 3}],
)
def test_lines_that_are_not_judgements_are_skipped(suite, rubrics, tasks, tmp_path, change):
    make_runner(suite, rubrics, ScriptedJudge(), tmp_path).run(tasks[:2])
    file = tmp_path / "judgements.jsonl"
    first, second = file.read_text().splitlines()
    changed = {name: value for name, value in json.loads(first).items() if name != "checksum"} | change
    file.write_text("\n".join([json.dumps(changed), "{", "3", second, ""]))
    assert [judgement.key.item for judgement in read_ledger(file)] == [json.loads(second)["asked"]["item"]]


def test_only_one_run_at_a_time_may_use_a_folder(tmp_path):
    with (
        exclusive_lock(tmp_path),
        pytest.raises(InputError, check=lambda error: error.code == "locked-folder"),
        exclusive_lock(tmp_path),
    ):
        pass
    with exclusive_lock(tmp_path):
        pass
