"""Every code block of docs/extending.md runs, and what it adds arrives where the page says."""

import importlib
import inspect
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
import torch

from kiwi.bench import benchmark
from kiwi.media.video import read_video, write_video
from kiwi.spec import from_dict, to_dict

from .conftest import ROOT, prose


@pytest.fixture
def modules(page_modules, tmp_path, monkeypatch):
    """Imports the page's files, from a folder in which commands find the experiments and write their own files."""
    for name in ("experiments", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return importlib.import_module


def test_the_source_injection_trains_a_step_and_starts_at_the_base_model(modules, tiny_config):
    from kiwi.models.kiwi import KiwiEdit

    spec = modules("gated_source").GatedSource()
    assert from_dict(type(tiny_config), to_dict(tiny_config.replace(source=spec))).source == spec
    source = KiwiEdit(tiny_config.replace(source=spec)).source
    tokens = torch.randn(2, 6, 48)
    assert torch.equal(source.add_condition(tokens, torch.randn(2, 6, 48), torch.ones(2)), tokens)

    run = modules("train_gated_source").run
    from safetensors.torch import load_file

    weights = load_file(run / "model" / "model.safetensors")
    (gate,) = (tensor for name, tensor in weights.items() if name.endswith("gate_D"))
    assert gate.abs().max() > 0


def test_the_signatures_of_a_longer_sequence_are_those_of_the_base_class():
    from kiwi.models.injection import Injection

    page = " ".join((ROOT / "docs/extending.md").read_text().split())
    for name in ("num_added_tokens", "remove_added_tokens"):
        signature = str(inspect.signature(getattr(Injection, name))).replace("torch.Tensor", "Tensor")
        assert f"`{name}{signature}`" in page


class _Service(BaseHTTPRequestHandler):
    """A reward model: 0.75, 0.5 and 0.25 to an edit, 0 to a copy of the source. Busy once, or rejects the key."""

    requests: ClassVar[list[dict]] = []
    has_no_key: ClassVar[bool] = False

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append(body)
        if self.has_no_key or len(self.requests) == 1:
            self.send_error(401 if self.has_no_key else 503)
            return
        rewards = (0, 0, 0) if body["videos"]["source"] == body["videos"]["edited"] else (0.75, 0.5, 0.25)
        reply = json.dumps({"rewards": dict(zip(body["dimensions"], rewards, strict=True))}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *arguments):
        """Say nothing."""


@pytest.fixture
def service(monkeypatch):
    """The reward model, on the loopback interface."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Service)
    monkeypatch.setenv("REWARD_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(_Service, "requests", [])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield _Service
    server.shutdown()
    server.server_close()


def invert(item, path):
    """Write a source with its colours inverted, in place of an edit."""
    video = read_video(item.source)
    path.parent.mkdir(exist_ok=True)
    write_video(path, 255 - video.frames_FHWC, video.fps)


def test_the_scores_of_the_judge_reach_the_table(modules, service, monkeypatch):
    monkeypatch.setattr(benchmark, "build_generator", lambda options, suite: invert)
    report = modules("judge_by_reward").report
    assert report.is_success
    assert report.result.raw.mean == pytest.approx(3.0)  # the mean of 4, 3 and 2
    assert "3.00" in (report.folder / "report.md").read_text()
    (copies,) = (control for control in report.controls if control.kind == "copy")
    assert copies.is_passed
    assert service.requests[-1]["videos"].keys() == {"source", "edited"}


def test_the_terminal_names_the_variable_of_a_missing_key(modules, service, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "build_generator", lambda options, suite: invert)
    monkeypatch.setattr(service, "has_no_key", True)
    report = modules("judge_by_reward").report
    assert not report.is_success
    reason = "Most common reasons: HTTP Error 401: Unauthorized; is REWARD_KEY set to a valid key? (10)"
    assert reason in capsys.readouterr().out


def test_the_values_of_the_measurement_reach_the_results_of_a_study(modules, tmp_path, monkeypatch):
    from kiwi.ablation import results, steps, study

    (table,) = re.findall(r"^\| member \|.+\n(?:\|.*\n)+", prose(ROOT / "docs/extending.md"), re.MULTILINE)
    members = re.findall(r"^\| `(\w+)`", table, re.MULTILINE)
    assert len(members) > 5
    assert all(hasattr(modules("sharpness").SharpnessMeasurement, name) for name in members)
    page = modules("measure_sharpness")
    assert len(page.values.items["sharpness"]) == 4
    assert all(0 < abs(value) < 20 for value in page.values.items["sharpness"].values())

    measurement = modules("sharpness").SharpnessMeasurement
    monkeypatch.setattr(study, "MEASUREMENTS", (*study.MEASUREMENTS, measurement))
    file = tmp_path / "study.yaml"
    settings = "{items: 4, level: easy, categories: [local_remove, global_style]}"
    file.write_text(
        "stages: {edit: experiments/ablations/sandbox.yaml}\n"
        f"measure: {{sharpness: {settings}, validation: [], primary: sharpness}}\n"
    )
    read = study.read_study(file)
    assert read.metrics[0].name == "sharpness"
    (sharpness,) = (one for one in read.measurements if isinstance(one, measurement))
    options = to_dict(sharpness.make_options("sandbox", tmp_path / "out"))
    assert sharpness.run(options) == 0
    step = steps.Step(command="sharpness", options=options, out=tmp_path / "out", measurement=sharpness)
    values = sharpness.collect(step.out)
    assert set(values.categories.values()) == {"local_remove", "global_style"}
    assert "sharpness" in json.dumps(results.collect_results([step]))


def test_the_data_source_yields_samples(modules, edit_folder, tmp_path):
    pairs = tmp_path / "data" / "pairs"
    pairs.mkdir(parents=True)
    for index in range(3):
        (pairs / f"{index}.txt").write_text(f"Make the square number {index} blue.\n")
        (pairs / f"{index}_before.mp4").symlink_to(edit_folder / f"{index}_source.mp4")
        (pairs / f"{index}_after.mp4").symlink_to(edit_folder / f"{index}_target.mp4")
    page = modules("read_paired_folder")
    assert page.batch.instructions[0].startswith("Make the square number")
    assert page.batch.source_BCFHW.shape[:3] == (1, 3, 5)
    assert not torch.equal(page.batch.source_BCFHW, page.batch.target_BCFHW)
    spec = page.data.train[0]
    assert from_dict(type(spec), to_dict(spec)) == spec
