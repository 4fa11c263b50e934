"""`python -m kiwi bench --judge openai:MODEL@URL` against a server on the loopback interface."""

import json
import shutil
from threading import Lock

import pytest

from kiwi.__main__ import main
from kiwi.bench.ledger import read_ledger
from kiwi.sandbox.export import SandboxExportOptions, export_sandbox
from tests.loopback import Reply, serve

__all__ = ["serve"]


class ModelServer:
    """A model that gives 1 to an unedited source and 4 to any other edit; every third request is rate-limited."""

    def __init__(self):
        self.lock, self.count, self.models = Lock(), 0, ["judge-1"]
        self.usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}

    def __call__(self, method, path, body):
        with self.lock:
            self.count += 1
            count = self.count
        if count % 3 == 0:
            return Reply({"error": {"message": "slow down"}}, 429, {"Retry-After": "0.01"})
        images = [part["image_url"]["url"] for part in body["messages"][1]["content"] if part["type"] == "image_url"]
        score = 1 if images[: len(images) // 2] == images[len(images) // 2 :] else 4
        schema = body["response_format"]["json_schema"]["schema"]["properties"]["scores"]
        text = json.dumps({"reasons": "As seen.", "scores": dict.fromkeys(schema["properties"], score)})
        choices = [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}]
        model = self.models[count % len(self.models)]
        return Reply({"object": "chat.completion", "model": model, "choices": choices, "usage": self.usage})


@pytest.fixture(scope="module")
def edits(tmp_path_factory):
    """Five items of the sandbox, and their exact targets as edits."""
    folder = tmp_path_factory.mktemp("edits")
    categories = ("local_change", "local_remove", "local_add", "background_change", "global_style")
    data, videos = folder / "data", folder / "videos"
    export_sandbox(
        SandboxExportOptions(out=data, items=5, frames=5, size=32, categories=categories, level="easy", split="test")
    )
    videos.mkdir()
    for target in (data / "videos").glob("*_target.mp4"):
        shutil.copy(target, videos / target.name.replace("_target", "_source_edited"))
    return ["--data", str(data), "--videos", str(videos)]


def test_a_model_behind_a_server_scores_edits_and_controls(serve, edits, tmp_path, capsys):
    model = ModelServer()
    server, out = serve(model), tmp_path / "run"
    command = ["bench", "openve", *edits, "--judge", f"openai:judge@{server.url}/v1", "--out", str(out), "--no-gallery"]
    assert main([*command, "--judge-set", "model.sampling.fps=2"]) == 0
    report = " ".join((out / "report.md").read_text().split())
    assert "frames: 2 fps" in report
    assert "(raw) | openai:judge@127.0.0.1" in report
    assert "judge-1 (" in report
    judgements = read_ledger(out / "judgements.jsonl")
    scores = {key: set() for key in ("copy", "edit")}
    for judgement in judgements:
        kind = "copy" if judgement.key.item.startswith("copy:") else "edit" if ":" not in judgement.key.item else None
        if kind:
            scores[kind] |= set(judgement.scores.values())
    assert scores == {"copy": {1.0}, "edit": {4.0}}
    replay = ["bench", "openve", *edits, "--judge", f"replay:{out / 'judgements.jsonl'}", "--no-gallery"]
    assert main([*replay, "--out", str(tmp_path / "replayed")]) == 0
    assert (tmp_path / "replayed" / "scores.csv").read_text() == (out / "scores.csv").read_text()
    asked = model.count
    assert main([*command, "--judge-set", "model.sampling.fps=2"]) == 0  # all answers are in the ledger
    assert model.count == asked
    model.models.append("judge-2")
    capsys.readouterr()
    assert main([*command, "--judge-set", "model.sampling.fps=1", "--repeats", "2"]) == 0  # other frames: asked again
    assert model.count > asked
    assert "different models (judge-1, judge-2)" in " ".join(capsys.readouterr().out.split())


def test_a_judge_without_a_key_is_refused_before_anything_is_written(edits, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert main(["bench", "openve", *edits, "--judge", "openai:gpt", "--out", str(tmp_path / "run")]) == 2
    assert "OPENAI_API_KEY" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_budget_ends_the_questions_and_a_larger_one_resumes_them(serve, edits, tmp_path, capsys):
    model = ModelServer()
    server, out, prices = serve(model), tmp_path / "run", tmp_path / "prices.yaml"
    prices.write_text("judge: {prompt: 10, answer: 900}\n")  # 0.01 dollars for each answer
    command = ["bench", "openve", *edits, "--judge", f"openai:judge@{server.url}/v1", "--out", str(out), "--no-gallery"]
    command += ["--controls", "0", "--prices", str(prices), "--concurrency", "1"]
    assert main([*command, "--budget", "0.025"]) == 1
    assert sum(judgement.scores is not None for judgement in read_ledger(out / "judgements.jsonl")) == 3
    text = " ".join("".join(capsys.readouterr()).split())
    assert "the budget of 0.025 dollars is spent (2)" in text
    assert "by the price table: 0.03 dollars" in text
    assert main([*command, "--budget", "1"]) == 0
    assert len(read_ledger(out / "judgements.jsonl")) == 5
    assert "about 0.02 dollars" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("judge", "budget", "code"),
    [("openai:judge@http://127.0.0.1:9/v1", "1", "judge"), ("oracle", "1", "--budget"), ("oracle", "-1", "--budget")],
)
def test_a_budget_that_cannot_be_kept_is_refused(edits, tmp_path, capsys, judge, budget, code):
    assert main(["bench", "openve", *edits, "--judge", judge, "--budget", budget, "--out", str(tmp_path / "run")]) == 2
    assert code in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_budget_is_not_kept_blindly(serve, edits, tmp_path, capsys):
    model = ModelServer()
    model.usage = None
    server, prices = serve(model), tmp_path / "prices.yaml"
    prices.write_text("judge: {prompt: 10, answer: 900}\n")
    command = ["bench", "openve", *edits, "--judge", f"openai:judge@{server.url}/v1", "--out", str(tmp_path / "run")]
    command += ["--controls", "0", "--prices", str(prices), "--concurrency", "1", "--budget", "5", "--no-gallery"]
    assert main(command) == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "the judge does not report its tokens, so --budget cannot be kept (4)" in text
