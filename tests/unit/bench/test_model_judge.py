"""Vision-language models as judges, behind a loopback server with OpenAI's protocol."""

import json
import re

import pytest

from kiwi.bench.judge_selection import select_judge
from kiwi.bench.ledger import read_ledger
from kiwi.bench.model_judge import ModelJudge
from kiwi.bench.options import BenchmarkOptions
from kiwi.bench.reply import Unscored, format_answer, read_answer
from kiwi.bench.rubric import read_builtin_rubrics
from kiwi.bench.runner import RateLimit
from kiwi.bench.suites import read_items, read_suite
from kiwi.errors import KiwiError
from kiwi.vlm import FrameSampling, parse_model
from kiwi.vlm.openai_api import OpenAIModel
from tests.loopback import Reply, serve
from tests.unit.bench.conftest import make_runner, make_task

__all__ = ["serve"]

DIMENSIONS = ("Instruction Compliance", "Consistency & Detail Fidelity", "Visual Quality & Stability")
SCORES = dict(zip(DIMENSIONS, (4, 3.5, 4), strict=True))


def completion(text, finish="stop"):
    choices = [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}]
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return Reply({"object": "chat.completion", "model": "judge-2", "choices": choices, "usage": usage})


@pytest.fixture
def judge_one(serve, suite, world, tmp_path):
    """Judge one item by a model that answers as given; returns the judgement and the server."""

    def run(reply, **options):
        server = serve(lambda *_: reply)
        spec = ModelJudge(model=OpenAIModel(model="judge", url=f"{server.url}/v1"), **options)
        rubrics, item = read_builtin_rubrics(suite, spec.answer), read_items(suite, world).items[0]
        ((judgement,), _) = make_runner(suite, rubrics, spec.build(world), tmp_path).run([make_task(item, item.source)])
        return judgement, server

    return run


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("json", json.dumps({"reasons": "It is done.", "scores": SCORES})),
        ("json-scores-first", json.dumps({"scores": SCORES, "reasons": "It is done."})),
        ("json", "\n".join(f"{name}: {score}" for name, score in SCORES.items())),  # a server that ignores the schema
        ("prose", "It is done.\n" + "\n".join(f"{name}: {score}" for name, score in SCORES.items())),
    ],
)
def test_an_answer_becomes_scores_and_its_request_is_recorded(judge_one, tmp_path, answer, text):
    judgement, server = judge_one(completion(text), answer=answer)
    assert judgement.scores == SCORES
    assert (judgement.model, judgement.usage.prompt_tokens, judgement.usage.answer_tokens) == ("judge-2", 100, 10)
    assert judgement.frames.keys() == {"source", "edited"}
    assert judgement.frames["source"] == judgement.frames["edited"]  # the edit is a copy
    assert read_ledger(tmp_path / "judgements.jsonl") == [judgement]
    ((_, _, body),) = server.requests
    texts = [part["text"] for part in body["messages"][1]["content"] if part["type"] == "text"]
    assert [text for text in texts if not re.fullmatch(r"[\d.]+ s:", text)][:2] == ["Original video:", "Edited video:"]
    assert texts[-1].startswith("Editing instruction: ")
    schema = body.get("response_format", {}).get("json_schema", {}).get("schema", {})
    assert list(schema.get("properties", {})) == {
        "json": ["reasons", "scores"], "json-scores-first": ["scores", "reasons"], "prose": [],
    }[answer]  # fmt: skip
    assert ("JSON" in body["messages"][0]["content"]) is (answer != "prose")


def test_a_clip_is_sampled_once_for_all_its_questions(serve, suite, world, tmp_path, monkeypatch):
    sampled, sample = [], FrameSampling.sample
    monkeypatch.setattr(FrameSampling, "sample", lambda self, path: sampled.append(path) or sample(self, path))
    server = serve(lambda *_: completion(format_answer(SCORES)))
    spec = ModelJudge(model=OpenAIModel(model="judge", url=f"{server.url}/v1"))
    rubrics, item = read_builtin_rubrics(suite, spec.answer), read_items(suite, world).items[0]
    target = item.source.with_name(item.source.name.replace("_source", "_target"))
    runner = make_runner(suite, rubrics, spec.build(world), tmp_path, RateLimit(concurrency=1))
    runner.run([make_task(item, target, repeats=[0, 1, 2])])
    assert len(server.requests) == 3
    assert sorted(sampled) == sorted([item.source, target])


@pytest.mark.parametrize("finish", ["length", "content_filter"])
def test_an_answer_that_was_cut_off_is_recorded_without_scores(judge_one, finish):
    judgement, server = judge_one(completion(format_answer(SCORES), finish))
    assert judgement.scores is None
    assert "incomplete" in judgement.reason
    assert judgement.reply == format_answer(SCORES)
    assert judgement.usage.prompt_tokens == 100  # it was paid for
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "scores",
    [
        {**SCORES, DIMENSIONS[0]: 6},
        {**SCORES, DIMENSIONS[0]: 0.5},
        {**SCORES, DIMENSIONS[0]: True},
        {**SCORES, DIMENSIONS[0]: None},
        {**SCORES, DIMENSIONS[0]: "4, or maybe 3"},
        {**SCORES, DIMENSIONS[0]: [4]},
        {**SCORES, "Overall": 4},
        dict(list(SCORES.items())[:2]),
        {},
    ],
)
def test_a_structured_answer_that_is_not_exactly_the_scores_has_none(scores):
    assert isinstance(read_answer(json.dumps({"reasons": "", "scores": scores}), DIMENSIONS), Unscored)


def test_a_structured_answer_with_a_repeated_name_has_no_scores():
    text = format_answer(SCORES).replace("}}", f', "{DIMENSIONS[0]}": 2}}}}')
    assert isinstance(read_answer(text, DIMENSIONS), Unscored)


def test_a_judge_is_named_on_the_command_line_and_its_settings_are_set_by_path():
    suite = read_suite("openve")
    settings = ("answer=json-scores-first", "model.sampling.fps=2", "model.timeout=20")
    judge = select_judge(BenchmarkOptions(suite="openve", judge="openai:m@http://host/v1", judge_set=settings), suite)
    model = OpenAIModel(model="m", url="http://host/v1", timeout=20.0, sampling=FrameSampling(fps=2.0))
    assert judge == ModelJudge(model=model, answer="json-scores-first")


def test_the_default_judge_is_that_of_the_published_scores_which_saw_whole_videos():
    for name, model in (("openve", "gemini-2.5-pro"), ("refvie", "gemini-3-flash-preview")):
        judge = select_judge(BenchmarkOptions(suite=name), read_suite(name))
        assert (judge.model.model, judge.model.upload) == (model, True)


@pytest.mark.parametrize(
    ("judge", "setting", "code"),
    [
        ("claude:x", (), "unknown-judge"),
        ("oracle:x", (), "unknown-judge"),
        ("openai:m", ("model.key=1",), "unknown-field"),
        ("openai:m", ("answer=xml",), "unknown-choice"),
        ("oracle", ("answer=json",), "unknown-field"),
        ("openai:m", ("answer",), "invalid-assignment"),
        ("gemini:", (), "invalid-option"),
        ("openai:m", ("max_tokens=0",), "out-of-range"),
        ("openai:m", ("temperature=-1",), "out-of-range"),
        ("openai:m", ("model.timeout=0",), "out-of-range"),
        ("gemini:m", ("model.timeout=-1",), "out-of-range"),
        ("gemini:m", ("model.url=notaurl",), "invalid-url"),
    ],
)
def test_an_unknown_judge_or_setting_is_rejected(judge, setting, code):
    with pytest.raises(KiwiError, check=lambda error: error.code == code):
        select_judge(BenchmarkOptions(suite="openve", judge=judge, judge_set=setting), read_suite("openve"))


@pytest.mark.parametrize(("temperature", "repeat"), [(0.0, 0), (0.7, 2), (None, 1)])
def test_the_settings_of_an_answer_reach_the_server_and_the_key(serve, suite, world, tmp_path, temperature, repeat):
    server = serve(lambda *_: completion(format_answer(SCORES)))
    model = OpenAIModel(model="judge", url=f"{server.url}/v1")
    spec = ModelJudge(model=model, temperature=temperature, max_tokens=77)
    rubrics, item = read_builtin_rubrics(suite, spec.answer), read_items(suite, world).items[0]
    task = make_task(item, item.source, repeats=[repeat])
    ((judgement,), _) = make_runner(suite, rubrics, spec.build(world), tmp_path).run([task])
    ((_, _, body),) = server.requests
    assert (body["max_tokens"], body.get("temperature"), body["seed"]) == (77, temperature, repeat)
    assert judgement.key.temperature == temperature


def test_another_sampling_of_frames_is_another_question(serve, world):
    server = serve(lambda *_: completion(""))
    texts = set()
    for fps in (1.0, 2.0):
        spec = parse_model(f"openai:m@{server.url}/v1", FrameSampling(fps=fps))
        texts.add(ModelJudge(model=spec).build(world).frames)
    assert len(texts) == 2
