"""The runner asks what is not in the ledger, as fast as it may, and keeps every answer."""

import json
import time

import pytest

from kiwi.bench.judges import JudgeError
from kiwi.bench.ledger import Ledger, read_ledger
from kiwi.bench.rate_limit import RateLimit
from kiwi.bench.runner import JudgingTask, Runner
from kiwi.bench.suites import read_items
from kiwi.errors import InputError, MediaError
from kiwi.media.run_dir import exclusive_lock
from tests.unit.bench.conftest import ScriptedJudge, copy_sources

FAST = RateLimit(concurrency=4, first_wait=0.01)


@pytest.fixture
def cases(world, suite):
    return read_items(suite, world).items


@pytest.fixture
def tasks(cases, tmp_path):
    folder = copy_sources(cases, tmp_path / "videos")
    return [task(case, folder) for case in cases]


def task(case, folder, repeats=(0,)):
    return JudgingTask(
        id=case.id, item=case, instruction=case.instruction, edited=folder / case.edited_name, repeats=repeats
    )


def runner(suite, rubrics, judge, tmp_path, rate_limit=FAST):
    return Runner(suite, rubrics, judge, Ledger(tmp_path / "judgements.jsonl"), rate_limit)


def test_each_question_is_asked_once_and_not_again_in_the_next_run(suite, rubrics, tasks, tmp_path):
    judge = ScriptedJudge()
    judged, why = runner(suite, rubrics, judge, tmp_path).run(tasks)
    assert [one.key.item for one in judged] == [one.id for one in tasks]
    assert why == {}
    assert {tuple(one.scores.values()) for one in judged} == {(4, 3, 5)}
    again = ScriptedJudge()
    assert runner(suite, rubrics, again, tmp_path).run(tasks)[0] == judged
    assert again.questions == []


@pytest.mark.parametrize("what", ["video", "rubric", "judge", "version", "words", "temperature", "frames"])
def test_any_change_makes_a_new_question(suite, rubrics, tasks, tmp_path, what):
    from dataclasses import replace

    runner(suite, rubrics, ScriptedJudge(), tmp_path).run(tasks[:2])
    judge, first = ScriptedJudge(), tasks[0]
    if what == "video":
        first.edited.write_bytes(tasks[1].edited.read_bytes())
    elif what == "rubric":
        category = first.item.category
        rubrics = {**rubrics, category: replace(rubrics[category], text="another")}
    elif what == "words":
        first = replace(first, instruction="Do something else.")
    else:
        setattr(judge, {"judge": "name"}.get(what, what), 0.5 if what == "temperature" else "another")
    runner(suite, rubrics, judge, tmp_path).run([first])
    assert len(judge.questions) == 1


def test_failures_are_recorded_and_asked_again_in_the_next_run(suite, rubrics, tasks, tmp_path):
    judge = ScriptedJudge(lambda question, before: "I cannot rate this." if "easy" in question.key.item else (1, 1, 1))
    judged, _ = runner(suite, rubrics, judge, tmp_path).run(tasks[:3])
    assert [one.scores for one in judged] == [None] * 3
    assert all("no score of" in one.reason and one.reply == "I cannot rate this." for one in judged)
    again, _ = runner(suite, rubrics, ScriptedJudge(), tmp_path).run(tasks[:3])
    assert all(one.scores for one in again)
    assert len(read_ledger(tmp_path / "judgements.jsonl")) == 6


def test_only_retryable_errors_are_retried(suite, rubrics, tasks, tmp_path):
    busy = ScriptedJudge(lambda question, before: (4, 4, 4) if before == 2 else JudgeError("busy", retryable=True))
    judged, _ = runner(suite, rubrics, busy, tmp_path).run(tasks[:1])
    assert judged[0].scores
    assert len(busy.questions) == 3
    refusing = ScriptedJudge(lambda question, before: JudgeError("it shows a person", retryable=False))
    judged, _ = runner(suite, rubrics, refusing, tmp_path).run(tasks[1:2])
    assert (judged[0].scores, judged[0].reply, judged[0].reason) == (None, None, "it shows a person")
    assert len(refusing.questions) == 1
    never = ScriptedJudge(lambda question, before: JudgeError("busy", retryable=True))
    judged, _ = runner(suite, rubrics, never, tmp_path).run(tasks[2:3])
    assert judged[0].reason == "busy"
    assert len(never.questions) == FAST.tries


def test_the_wait_that_a_judge_asks_for_is_respected(suite, rubrics, tasks, tmp_path):
    judge = ScriptedJudge(
        lambda question, before: (4, 4, 4) if before else JudgeError("slow down", retryable=True, retry_after=0.4)
    )
    began = time.monotonic()
    runner(suite, rubrics, judge, tmp_path).run(tasks[:1])
    assert time.monotonic() - began >= 0.4


def test_questions_run_concurrently_up_to_the_limit(suite, rubrics, cases, tmp_path):
    folder = copy_sources(cases, tmp_path / "videos")
    judge = ScriptedJudge(seconds=0.05)
    runner(suite, rubrics, judge, tmp_path, RateLimit(concurrency=3)).run([task(case, folder) for case in cases])
    assert judge.most == 3


def test_the_rate_limit_is_respected(suite, rubrics, tasks, tmp_path):
    began = time.monotonic()
    runner(suite, rubrics, ScriptedJudge(), tmp_path, RateLimit(concurrency=8, per_minute=600)).run(tasks[:6])
    assert time.monotonic() - began >= 0.5


def test_missing_videos_are_generated_while_others_are_judged(suite, rubrics, cases, tmp_path):
    (folder := tmp_path / "videos").mkdir()
    done = []

    def generate(case, path):
        if len(done) == 3:
            raise MediaError("the source is broken")
        time.sleep(0.05)
        done.append((case.id, len(judge.questions)))
        path.write_bytes(case.source.read_bytes())

    judge = ScriptedJudge()
    tasks = [task(case, folder) for case in cases[:4]]
    judged, why = runner(suite, rubrics, judge, tmp_path).run(tasks, generate)
    assert [one.key.item for one in judged] == [case.id for case in cases[:3]]
    assert why == {cases[3].id: "it could not be edited: the source is broken."}
    assert done[2][1] >= 1  # judging did not wait for the last video
    judged, why = runner(suite, rubrics, judge, tmp_path).run(tasks)
    assert why == {cases[3].id: f"{cases[3].edited_name} does not exist"}


def test_repeats_are_separate_questions(suite, rubrics, cases, tmp_path):
    folder = copy_sources(cases, tmp_path / "videos")
    judge = ScriptedJudge(lambda question, before: (question.key.repeat + 1,) * 3)
    judged, _ = runner(suite, rubrics, judge, tmp_path).run([task(cases[0], folder, range(3))])
    assert [one.scores["Instruction Compliance"] for one in judged] == [1, 2, 3]


def test_a_truncated_line_is_asked_again_and_the_others_are_kept(suite, rubrics, tasks, tmp_path):
    runner(suite, rubrics, ScriptedJudge(), tmp_path).run(tasks[:3])
    file = tmp_path / "judgements.jsonl"
    file.write_bytes(file.read_bytes()[:-40])
    judge = ScriptedJudge()
    judged, _ = runner(suite, rubrics, judge, tmp_path).run(tasks[:3])
    assert len(judge.questions) == 1
    assert all(one.scores for one in judged)
    assert len(read_ledger(file)) == 3


@pytest.mark.parametrize(
    "change",
    [{"scores": {"a": 9}}, {"scores": {"a": True}}, {"scores": [4]}, {"asked": None}, {"more": 1}, {"reply": 3}],
)
def test_lines_that_are_not_judgements_are_skipped(suite, rubrics, tasks, tmp_path, change):
    runner(suite, rubrics, ScriptedJudge(), tmp_path).run(tasks[:2])
    file = tmp_path / "judgements.jsonl"
    one, other = file.read_text().splitlines()
    file.write_text("\n".join([json.dumps(json.loads(one) | change), "{", "3", other, ""]))
    assert [judgement.key.item for judgement in read_ledger(file)] == [json.loads(other)["asked"]["item"]]


def test_only_one_run_at_a_time_may_use_a_folder(tmp_path):
    with (
        exclusive_lock(tmp_path),
        pytest.raises(InputError, check=lambda error: error.code == "locked-folder"),
        exclusive_lock(tmp_path),
    ):
        pass
    with exclusive_lock(tmp_path):
        pass
