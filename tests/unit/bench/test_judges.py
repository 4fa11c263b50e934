"""The oracle computes a judge's answers; a replay returns those of a ledger under the name of their judge."""

import json

import pytest

from kiwi.bench.judges import Oracle, Replay
from kiwi.bench.ledger import read_ledger
from kiwi.bench.rubric import read_builtin_rubrics
from kiwi.bench.suites import read_items, read_suite
from kiwi.errors import InputError
from kiwi.media.video import read_video, write_video
from kiwi.sandbox.export import SandboxExportOptions, export_sandbox
from tests.unit.bench.conftest import ScriptedJudge, copy_sources, make_runner, make_task


def make_target_tasks(items):
    """Tasks that judge the exact targets of sandbox items."""
    return [make_task(item, item.source.with_name(item.source.name.replace("_source", "_target"))) for item in items]


def test_the_oracle_scores_targets_high_and_copies_low(world, suite, rubrics, tmp_path):
    items, judge = read_items(suite, world).items, Oracle().build(world)
    judgements = make_runner(suite, rubrics, judge, tmp_path).run(make_target_tasks(items))[0]
    assert min(score for judgement in judgements for score in judgement.scores.values()) > 4.5
    copy_tasks = [make_task(item, item.source, id=f"copy:{item.id}") for item in items]
    judgements = make_runner(suite, rubrics, judge, tmp_path).run(copy_tasks)[0]
    assert {score for judgement in judgements for score in judgement.scores.values()} == {1}


def test_the_oracle_scores_edits_with_references(tmp_path):
    data = tmp_path / "data"
    categories = ("subject_reference", "background_reference")
    export_sandbox(
        SandboxExportOptions(out=data, items=2, frames=5, size=32, categories=categories, level="easy", split="test")
    )
    suite = read_suite("refvie")
    runner = make_runner(suite, read_builtin_rubrics(suite), Oracle().build(data), tmp_path)
    judgements = runner.run(make_target_tasks(read_items(suite, data).items))[0]
    assert [judgement.category for judgement in judgements] == ["subject", "background"]
    assert min(score for judgement in judgements for score in judgement.scores.values()) > 4.5


def test_edits_that_the_oracle_cannot_judge_have_a_reason(world, suite, rubrics, tmp_path):
    item, judge = read_items(suite, world).items[0], Oracle().build(world)
    write_video(tmp_path / "short.mp4", read_video(item.source).frames_FHWC[:3], 8)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    tasks = [
        make_task(item, tmp_path / "short.mp4"),
        make_task(item, tmp_path / "broken.mp4", id="broken"),
        make_task(item, item.source, id="words", instruction="Make it snow."),
    ]
    judgements = make_runner(suite, rubrics, judge, tmp_path).run(tasks)[0]
    assert [judgement.scores for judgement in judgements] == [None] * 3
    for judgement, reason in zip(judgements, ("3 frames", "broken.mp4", "own instruction"), strict=True):
        assert reason in judgement.reason


def test_the_oracle_rejects_other_data_and_other_versions(tmp_path, world):
    with pytest.raises(InputError, check=lambda error: error.code == "not-an-export"):
        Oracle().build(tmp_path)
    (tmp_path / "world.json").write_text(json.dumps(json.loads((world / "world.json").read_text()) | {"world": 1}))
    with pytest.raises(InputError, check=lambda error: error.code == "unsupported-version"):
        Oracle().build(tmp_path)


def test_a_replay_repeats_the_judgements_of_a_ledger(world, suite, rubrics, tmp_path):
    items = read_items(suite, world).items
    folder = copy_sources(items, tmp_path / "videos")
    tasks = [make_task(item, folder / item.edited_name) for item in items]
    judge = ScriptedJudge(
        lambda question, times_asked: "I will not." if question.key.item == items[0].id else (2, 3, 4)
    )
    judge.temperature, judge.frames = 0.2, "8"
    recorded = make_runner(suite, rubrics, judge, tmp_path).run(tasks[:-1])[0]
    (again := tmp_path / "again").mkdir()
    replay = Replay(ledger=str(tmp_path / "judgements.jsonl")).build(world)
    replayed = make_runner(suite, rubrics, replay, again).run(tasks)[0]
    assert [(judgement.key, judgement.reply, judgement.scores) for judgement in replayed[:-1]] == [
        (judgement.key, judgement.reply, judgement.scores) for judgement in recorded
    ]
    assert "no answer" in replayed[-1].reason
    assert read_ledger(again / "judgements.jsonl")[0].key.judge == "scripted"


def test_a_replay_has_no_answer_about_another_video(world, suite, rubrics, tmp_path):
    first, second = read_items(suite, world).items[:2]
    make_runner(suite, rubrics, ScriptedJudge(), tmp_path).run([make_task(first, first.source)])[0]
    (again := tmp_path / "again").mkdir()
    replay = Replay(ledger=str(tmp_path / "judgements.jsonl")).build(world)
    assert make_runner(suite, rubrics, replay, again).run([make_task(first, second.source)])[0][0].scores is None


def test_a_ledger_of_several_judges_is_not_replayed(world, suite, rubrics, tmp_path):
    item = read_items(suite, world).items[0]
    newer = ScriptedJudge()
    newer.version = "2"
    make_runner(suite, rubrics, ScriptedJudge(), tmp_path).run([make_task(item, item.source)])[0]
    make_runner(suite, rubrics, newer, tmp_path).run([make_task(item, item.source)])[0]
    with pytest.raises(InputError, check=lambda error: error.code == "several-judges"):
        Replay(ledger=str(tmp_path / "judgements.jsonl")).build(world)
