"""`python -m kiwi ablate`: a study from YAML to a table; killed, resumed, and with an arm that fails."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
import yaml

from kiwi.__main__ import main
from kiwi.ablation import AblateOptions, child_process, run_study
from kiwi.ablation import runs as ablation_runs
from kiwi.ablation.analysis import summarize_arms
from kiwi.ablation.results import read_result
from kiwi.ablation.runs import list_runs
from kiwi.ablation.study import count_cost, read_study
from kiwi.data.feature_cache import FeatureCache
from kiwi.errors import InputError, KiwiError
from kiwi.evaluation.measurement import Metric
from kiwi.evaluation.sandbox_scores import collate_pairs, edit_pairs, make_pair_editor, score_item
from kiwi.models.sampling import Sampling
from kiwi.sandbox.pairs import make_pair
from kiwi.statistics.seeds import estimate_mean
from kiwi.training.modules.editor import LitKiwi
from kiwi.training.optim import AdamW
from kiwi.training.run_log import read_log

from .conftest import editor_config, write_yaml

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
SHIPPED = EXPERIMENTS / "sandbox" / "quickstart.yaml"


@pytest.fixture(scope="module", autouse=True)
def _in_this_process():
    """Steps of runs without child processes, which take seconds to start; sweeps in processes are not affected."""

    def run(folder, step_index, env):
        with redirect_stdout(StringIO()):
            return child_process.main(str(folder), str(step_index)), "reason"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablation_runs, "run_step", run)
        yield


def write_study(folder, runs, edit_folder, **content):
    config = editor_config(edit_folder, folder / "unused", runs / "vae" / "model")
    config["log"] = {"every_n_steps": 1}
    config["previews"] = {"every_n_steps": 0, "items": 1}
    write_yaml(folder / "editor.yaml", config)
    study = {"title": "Tiny", "stages": {"edit": "editor.yaml"}, "seeds": [0, 1], **content}
    return write_yaml(folder / "study.yaml", study)


@pytest.fixture(scope="module")
def study(runs, edit_folder, tmp_path_factory):
    """A study with an arm that works and one that fails, run once: its file and its results."""
    folder = tmp_path_factory.mktemp("study")
    arms = [{"model.config.source": "NoSource"}, {"data.root": str(folder / "nowhere")}]
    measure = {"sandbox": {"items": 3, "level": "easy", "steps": 2}, "primary": "sandbox inside"}
    file = write_study(folder, runs, edit_folder, arms=arms, measure=measure)
    assert main(["ablate", file, "--out", str(folder / "out")]) == 1
    return file, folder / "out"


def test_a_study_yields_tables_figures_and_a_contact_sheet(study):
    _, out = study
    text = (out / "table.md").read_text()
    assert text.startswith("**Tiny: sandbox inside**")  # the primary metric
    assert "| source=NoSource | 2 |" in text
    assert "Failed runs" in text
    assert "seed 1 | fit edit ended with exit code 2" in text
    rows = list(csv.DictReader((out / "table.csv").open()))
    assert {row["arm"] for row in rows} == {"base", "source=NoSource"}
    assert {"sandbox overall", "sandbox inside", "val/loss"} <= {row["measure"] for row in rows}
    analysis = json.loads((out / "analysis.json").read_text())
    assert analysis["measures"]["sandbox inside"][1]["comparison"]["difference"]["seeds"] == 2
    assert {path.name for path in (out / "figures").iterdir()} >= {"forest.png", "forest.pdf", "curves.png", "cost.png"}
    assert (out / "edits.png").stat().st_size > 1000
    assert json.loads((out / "environment.json").read_text())["kiwi"]
    settings = json.loads((out / "study.json").read_text())
    assert settings["arms"][1]["options"] == {"edit": {"model.config.source": "NoSource"}}


def test_runs_of_a_seed_share_data_noise_and_weights_to_the_last_bit(study):
    """Nothing of the source reaches the DiT before the first step, so that both arms start with the same loss."""
    _, out = study
    first = {
        (arm, seed): read_log(out / "arms" / arm / f"seed-{seed}" / "edit")[1]["loss"]
        for arm in ("base", "source=NoSource") for seed in (0, 1)
    }  # fmt: skip
    assert first["base", 0] == first["source=NoSource", 0]
    assert first["base", 1] == first["source=NoSource", 1]
    assert first["base", 0] != first["base", 1]


def test_a_rerun_repeats_failed_runs_and_nothing_else(study, capsys):
    file, out = study
    done = out / "arms" / "base" / "seed-0" / "result.json"
    before, failed = done.stat().st_mtime_ns, next(out.glob("arms/data.root=*/seed-0/failed.json")).stat().st_mtime_ns
    assert main(["ablate", file, "--out", str(out)]) == 1
    assert "4 of 6 runs are done" in " ".join(capsys.readouterr().err.split())
    assert done.stat().st_mtime_ns == before
    assert next(out.glob("arms/data.root=*/seed-0/failed.json")).stat().st_mtime_ns > failed


def test_a_report_runs_nothing_and_names_what_is_missing(study, tmp_path, monkeypatch, capsys):
    file, out = study
    copy = shutil.copytree(out, tmp_path / "copy")
    (copy / "edits.png").unlink()
    (copy / "environment.json").write_text("the machine of the runs")
    table = (copy / "table.md").read_text()

    def refuse(*args, **kwargs):
        raise AssertionError("a report loaded a model or started a process")

    start = subprocess.Popen.__init__
    monkeypatch.setattr(
        subprocess.Popen, "__init__",
        lambda process, command, **kwargs: start(process, command, **kwargs) if command[0] == "git" else refuse(),
    )  # fmt: skip
    for name in ("launchers.execute_run", "sweep.execute_run", "contact_sheet.from_pretrained"):
        monkeypatch.setattr(f"kiwi.ablation.{name}", refuse)
    report = run_study(AblateOptions(study=Path(file), out=copy, report=True))
    assert "edits.png does not show the current models" in " ".join(capsys.readouterr().err.split())
    assert not (copy / "edits.png").exists()
    assert [line.rpartition(": ")[2] for line in report.missing] == ["failed", "failed"]
    assert next(iter(report.summaries)) == "sandbox inside"
    assert (copy / "table.md").read_text() == table
    assert (copy / "environment.json").read_text() == "the machine of the runs"


def test_a_repeated_report_does_not_change_its_files(study, tmp_path):
    file, out = study
    copy = shutil.copytree(out, tmp_path / "copy")
    contents = []
    for _ in range(2):
        assert main(["ablate", file, "--out", str(copy), "--report"]) == 1
        contents.append({path: path.read_bytes() for path in copy.rglob("*") if path.is_file()})
        time.sleep(1)  # the resolution of dates in PDF files
    assert contents[0] == contents[1]


def test_a_report_writes_nothing_to_a_folder_without_results(study, tmp_path, capsys):
    file, _ = study
    clips = tmp_path / "clips"
    clips.mkdir()
    (clips / "a.mp4").write_bytes(b"video")
    for out in (clips, tmp_path / "new", clips / "a.mp4"):
        assert main(["ablate", file, "--out", str(out), "--report"]) == 2
        with pytest.raises(InputError) as caught:
            run_study(AblateOptions(study=Path(file), out=out, report=True))
        assert caught.value.code == ("not-a-folder" if out.is_file() else "no-results")
    assert sorted(tmp_path.rglob("*")) == [clips, clips / "a.mp4"]
    assert main(["ablate", file, "--out", str(clips / "a.mp4"), "--dry-run"]) == 2


def test_results_are_enough_to_report_elsewhere_and_with_fewer_seeds(study, tmp_path, capsys):
    file, out = study
    for result in out.glob("arms/*/seed-0/result.json"):
        place = tmp_path / "there" / result.parent.relative_to(out)
        place.mkdir(parents=True)
        shutil.copy(result, place)
    assert main(["ablate", file, "--out", str(tmp_path / "there"), "--report", "--seeds", "0"]) == 1
    assert "Tiny: sandbox inside" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "there" / "table.csv").open()))
    assert {(row["arm"], row["seeds"]) for row in rows} == {("base", "1"), ("source=NoSource", "1")}


def test_a_dry_run_runs_nothing(study, tmp_path, capsys):
    file, _ = study
    assert main(["ablate", file, "--out", str(tmp_path / "none"), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "6 runs, 0 of them done" in out
    assert "source=NoSource" in out
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("name", "arms", "seeds"),
    [("components", 12, 5), ("curriculum", 4, 3), ("queries", 7, 3), ("mixture", 4, 3)],
)
def test_the_studies_in_experiments_can_be_read(name, arms, seeds):
    study = read_study(EXPERIMENTS / "ablations" / f"{name}.yaml")
    assert len(study.arms) == len({arm.folder for arm in study.arms}) == arms
    assert len(study.seeds) == seeds


def test_the_pilots_tables_follow_from_its_results(tmp_path):
    """A result with another fingerprint would be refused: it came from other files than these."""
    pilot = EXPERIMENTS / "ablations" / "components-pilot.yaml"
    copy = shutil.copytree(EXPERIMENTS / "ablations" / "pilot", tmp_path / "pilot")
    assert main(["ablate", str(pilot), "--out", str(copy), "--report"]) == 0
    assert (copy / "table.md").read_text() == (EXPERIMENTS / "ablations" / "pilot" / "table.md").read_text()


def test_parameters_of_a_study_of_the_published_size_are_counted_without_allocating_them():
    study = read_study(EXPERIMENTS / "ablations" / "5b" / "components.yaml")
    assert len(list_runs(study, Path("out"))) == 18
    cost = count_cost(study.arms[1])  # millions of parameters, as `kiwi plan` counts them
    assert (round(cost.parameters / 1e6, 2), round(cost.denoising_step_flops / 1e9, 2)) == (9502.36, 317264.39)


def test_a_study_that_was_changed_refuses_its_old_results(study, tmp_path, capsys):
    file, out = study
    content = yaml.safe_load(Path(file).read_text())
    content["measure"]["sandbox"]["steps"] = 3
    (Path(file).parent / "changed.yaml").write_text(yaml.safe_dump(content))
    for more in ([], ["--dry-run"], ["--report"]):
        assert main(["ablate", str(Path(file).parent / "changed.yaml"), "--out", str(out), *more]) == 2
        assert "another configuration" in " ".join(capsys.readouterr().err.split())


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_the_latex_table_compiles(study, tmp_path):
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", f"-output-directory={tmp_path}"]
    done = subprocess.run([*command, str(study[1] / "table.tex")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"arms": [{"model.config.source": "NoSorce"}]}, "did you mean NoSource?"),
        ({"arms": [{"model.config.sorce": "NoSource"}]}, "sorce"),
        ({"options": {"trainer.max_step": 1}}, "there is no option --trainer.max_step"),
        ({"options": {"model.config.dit.di": 48}}, "did you mean dim?"),
        ({"measure": {"sandbox": {"item": 3}}}, "item"),
        ({"measure": {"sandbox": {"level": "hard"}}}, "hard"),
        ({"measure": {"bench": {"opnve": {}}}}, "opnve"),
        ({"measure": {"primary": "sandbox inside"}}, "Expected: val/loss"),
        ({"measure": {"bench": {"openve": {"data": "nowhere"}}}}, "nowhere"),
        ({"measure": {"sandbox": {"items": 0}}}, "items"),
        ({"measure": {"sandbox": {"frames": 4}}}, "4k + 1"),
        ({"measure": {"sandbox": {"categories": ["snow"]}}}, "snow"),
        ({"stages": {"edit": "nowhere.yaml"}}, "nowhere.yaml"),
        ({"arms": [{"data.batch_size": 0}]}, "data.batch_size is out of range"),
        ({"arms": [{"data.num_workers": -1}]}, "data.num_workers is out of range"),
        ({"arms": [{"data.train": [{"type": "SandboxEdits", "items": 0}]}]}, "SandboxEdits.items must be at least 1"),
        ({"arms": [{"trainer.accelerator": "gpuu"}]}, "did you mean gpu?"),
        ({"arms": [{"trainer.strategy": "ddpp"}]}, "did you mean ddp?"),
        ({"arms": [{"trainer.devices": 0}]}, "is not a valid input"),
        ({"arms": [{"trainer.max_steps": -7}]}, "max_steps"),
        ({"arms": [{"trainer.callbacks": ["NoSuch"]}]}, "no choice named 'NoSuch'"),
        ({"arms": [{"trainer.callbacks": [{"type": "BeforeAfter", "items": 0}]}]}, "BeforeAfter needs items"),
        ({"arms": [{"checkpoint.save_top_k": -7}]}, "save_top_k"),
        ({"arms": [{"model.init": "/nowhere/model"}]}, "there is no model folder of init=/nowhere/model"),
        ({"arms": [{"model.init": "/etc"}]}, "/etc is not a model folder"),
        ({"options": {"model.config.vae": {"type": "WanVae", "path": "/nowhere/vae"}}}, "/nowhere/vae"),
        ({"options": {"data.cache": "cache"}}, "with more than one seed"),
        (
            {"options": {"data.cache": "c"}, "seeds": [0], "arms": [{"model.config.mllm.limits.max_frames": 1}]},
            "cannot serve stage edit of base and stage edit of mllm.limits.max_frames=1",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_starts(runs, edit_folder, tmp_path, capsys, content, message):
    file = write_study(tmp_path, runs, edit_folder, **content)
    assert main(["ablate", file, "--out", str(tmp_path / "out")]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("accelerator", ["cuda", "gpu", "mps"])
def test_devices_of_another_machine_are_not_refused(runs, edit_folder, tmp_path, accelerator):
    options = {"trainer.accelerator": accelerator, "trainer.devices": 4, "trainer.strategy": "ddp"}
    file = write_study(tmp_path, runs, edit_folder, options=options)
    assert main(["ablate", file, "--out", str(tmp_path / "out"), "--dry-run"]) == 0


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_folder_of_other_files_is_not_used(runs, edit_folder, tmp_path, more):
    file, out = write_study(tmp_path, runs, edit_folder, seeds=[0]), tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").touch()
    with pytest.raises(KiwiError, check=lambda error: error.code == "occupied-folder"):
        run_study(AblateOptions(study=Path(file), out=out, dry_run=bool(more)))
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]


def test_a_category_with_one_item_is_named_before_anything_runs(runs, edit_folder, tmp_path, capsys):
    measure = {"sandbox": {"items": 9, "level": "easy"}, "bench": {"refvie": {"data": "sandbox", "items": 3}}}
    file = write_study(tmp_path, runs, edit_folder, measure=measure)
    assert main(["ablate", file, "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    text = " ".join("".join(capsys.readouterr()).split())
    assert "sandbox: The categories local_add, background_change" in text
    assert "bench-refvie: The category background_reference has only one item" in text


def test_a_cache_is_filled_before_the_runs_that_read_it(runs, edit_folder, tmp_path):
    cache = tmp_path / "new" / "cache"
    arms = [{"model.config.source": "NoSource"}]
    file = write_study(tmp_path, runs, edit_folder, seeds=[0], arms=arms, options={"data.cache": str(cache)})
    assert main(["ablate", file, "--out", str(tmp_path / "out"), "--no-estimate"]) == 0
    assert len(list((tmp_path / "out" / "caches").glob("*.yaml"))) == 1  # arms with the same data share it
    filled = FeatureCache(cache)
    assert all(filled.encoders)
    (tmp_path / "out" / "arms" / "base" / "seed-0" / "result.json").unlink()
    shards = {path: path.stat().st_mtime_ns for path in cache.glob("shards/*")}
    assert main(["ablate", file, "--out", str(tmp_path / "out"), "--no-estimate"]) == 0
    assert {path: path.stat().st_mtime_ns for path in cache.glob("shards/*")} == shards


def test_an_existing_cache_keeps_its_content_and_format(runs, edit_folder, tmp_path):
    """One of latents only, in another format: it serves seeds under which the MLLM has different weights."""
    cache = tmp_path / "cache"
    file = write_study(tmp_path, runs, edit_folder, options={"data.cache": str(cache)})
    command = ["cache", "--config", str(tmp_path / "editor.yaml"), "--out", str(cache)]
    assert main([*command, "--only", "latents", "--dtype", "float32"]) == 0
    before = (cache / "cache.json").read_bytes()
    assert main(["ablate", file, "--out", str(tmp_path / "out"), "--no-estimate"]) == 0
    assert (cache / "cache.json").read_bytes() == before


def _sweep(file, out):
    command = [sys.executable, "-m", "kiwi", "ablate", file, "--out", str(out), "--jobs", "2", "--no-estimate"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _results(out):
    """All results without durations, and without checksums, which depend on them."""
    return {
        str(file.relative_to(out)): json.loads(file.read_text()) | {"cost": None, "seconds": None, "checksum": None}
        for file in sorted(out.glob("arms/*/*/result.json"))
    }  # fmt: skip


def _child_processes(out):
    """Processes whose command line names the folder, except for the sweep itself."""
    named = (Path(path) / "cmdline" for path in Path("/proc").iterdir() if path.name.isdigit())
    texts = []
    for path in named:
        try:
            texts.append(path.read_bytes())
        except OSError:
            continue
    return [text for text in texts if str(out).encode() in text and b"child_process" in text]


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_a_killed_and_resumed_sweep_of_two_jobs_equals_an_uninterrupted_one_of_one_job(runs, edit_folder, tmp_path):
    file = write_study(tmp_path, runs, edit_folder)
    assert main(["ablate", file, "--out", str(tmp_path / "one"), "--no-estimate"]) == 0
    killed = _sweep(file, tmp_path / "two")
    try:
        deadline = time.time() + 120
        while not (started := list((tmp_path / "two").glob("arms/*/*/edit/metrics.jsonl"))) and time.time() < deadline:
            time.sleep(0.1)
        assert started
        assert _child_processes(tmp_path / "two")
    finally:
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
    deadline = time.time() + 20
    while _child_processes(tmp_path / "two") and time.time() < deadline:
        time.sleep(0.1)
    assert _child_processes(tmp_path / "two") == []
    assert _sweep(file, tmp_path / "two").wait(300) == 0
    assert _results(tmp_path / "two") == _results(tmp_path / "one")
    assert len(_results(tmp_path / "one")) == 2


def test_the_base_compared_with_itself_under_other_seeds_seldom_differs(tiny_config):
    """A/A: three trainings against three others of the same editor differ no more often than the level says."""
    pairs = [make_pair(0, index, frames=1, height=32, width=32, level="easy") for index in range(14)]
    scores = []
    for seed in range(16):
        module = LitKiwi(tiny_config, optim=AdamW(lr=1e-2, warmup_steps=0), seed=seed)
        batch = collate_pairs(make_pair(seed, index, frames=1, height=32, width=32) for index in range(4))
        trainer = L.Trainer(
            accelerator="cpu", max_steps=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, torch.utils.data.DataLoader([batch] * 2, batch_size=None))
        edits = edit_pairs(pairs, make_pair_editor(module.editor.eval(), Sampling(steps=1)))
        scores.append({pair.id: score_item(pair, edits[pair.id]).inside for pair in pairs})
    rng, significant = np.random.default_rng(0), 0
    for _ in range(200):
        seeds, items = rng.permutation(16)[:6], rng.choice(sorted(scores[0]), 10, replace=False)
        differences = [
            {item: scores[arm][item] - scores[base][item] for item in items}
            for arm, base in zip(seeds[:3], seeds[3:], strict=True)
        ]
        significant += estimate_mean(differences).p <= 0.05
    assert significant <= 16  # 200 draws with probability 0.05: 97.5% are below


def test_an_arm_without_information_about_the_edit_is_worse(tmp_path):
    """Queries read before the first layer of the MLLM depend on neither instruction nor video."""
    options = {
        "trainer.max_steps": 1, "trainer.callbacks": [], "data.batch_size": 2, "data.num_workers": 0,
        "model.optim.lr": 1e-6, "trainer.limit_val_batches": 0,
        "data.train": [{"items": 8, "level": "easy", "max_frames": 5}],
    }  # fmt: skip
    study = {
        "stages": {"edit": str(SHIPPED)}, "seeds": [0, 1], "options": options,
        "arms": [{"model.config.query.layers": [0], "model.config.latent.layers": [0]}],
        "measure": {"sandbox": {"items": 9, "level": "easy", "steps": 3, "seed": 3,
                                "categories": ["local_remove", "global_style", "background_change"]}},
    }  # fmt: skip
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    assert main(["ablate", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out")]) == 0
    results = [read_result(path) for path in sorted(tmp_path.glob("out/arms/*/*/result.json"))]
    labels = ["base", "query.layers=[0]; latent.layers=[0]"]
    _, broken = summarize_arms(Metric(name="sandbox overall"), results, labels)
    assert broken.comparison.verdict == "worse"
    assert broken.comparison.difference.interval.high < -0.5
