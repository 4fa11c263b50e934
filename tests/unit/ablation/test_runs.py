"""Runs can be killed, fail and be tried again; what is done is not done twice, nor are other results taken for it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kiwi.ablation.launchers import Cluster, Local
from kiwi.ablation.results import read_result
from kiwi.ablation.runs import (
    FAILED,
    LOG,
    RESULT,
    TETHER,
    Run,
    claim_run,
    execute,
    require_same,
    start_anew,
    stop_all,
    why_failed,
)
from kiwi.ablation.study import Arm
from kiwi.errors import InputError

ARM = Arm(label="base", options={}, resolved={})


def run(folder, *commands, fingerprint="f", seed=0):
    return Run(arm=ARM, seed=seed, folder=folder, commands=commands or (["--version"],), fingerprint=fingerprint)


def test_a_run_ends_with_its_result(tmp_path):
    one = run(tmp_path / "a" / "seed-0")
    assert one.state == "waiting"
    claim_run(one)
    assert one.state == "begun"
    execute(one.folder)
    assert one.state == "done"
    assert (one.folder / LOG).read_text().startswith("$ python -m kiwi --version\nkiwi ")
    result = read_result(one.folder / RESULT)
    assert (result.label, result.seed, result.items) == ("base", 0, {})
    require_same(one)


def test_a_failing_command_ends_a_run_and_says_why(tmp_path):
    one = run(tmp_path / "a", ["nonsense"], ["--version"])
    claim_run(one)
    execute(one.folder)
    assert one.state == "failed"
    assert "there is no command 'nonsense'" in why_failed(one.folder)
    assert "--version" not in (one.folder / LOG).read_text()
    better = run(tmp_path / "a", ["--version"])
    claim_run(better)
    execute(better.folder)
    assert better.state == "done"
    assert not (one.folder / FAILED).exists()


def test_a_killed_command_is_a_failure_too(tmp_path):
    one = run(tmp_path / "a")
    claim_run(one)
    execute(one.folder, do=lambda command, log, surroundings: (-9, "one two"))
    assert why_failed(one.folder).startswith("--version ended with -9: one two")


def test_threads_and_device_reach_the_command(tmp_path):
    one, told = run(tmp_path / "a"), {}

    def do(command, log, surroundings):
        told.update(surroundings)
        return 0, ""

    claim_run(one)
    execute(one.folder, threads=3, device="1", do=do)
    assert (told["OMP_NUM_THREADS"], told["CUDA_VISIBLE_DEVICES"]) == ("3", "1")


def test_a_changed_study_takes_no_other_results(tmp_path):
    one = run(tmp_path / "a")
    claim_run(one)
    execute(one.folder)
    other = run(tmp_path / "a", fingerprint="g")
    with pytest.raises(InputError, match="another configuration"):
        require_same(other)
    (one.folder / RESULT).unlink()
    with pytest.raises(InputError, match="other settings"):
        claim_run(other)


def test_another_arms_result_is_not_taken(tmp_path):
    one = run(tmp_path / "a")
    claim_run(one)
    execute(one.folder)
    with pytest.raises(InputError, match="seed 0"):
        require_same(run(tmp_path / "a", seed=1))


@pytest.mark.parametrize("code", [-15, 143])
def test_a_run_that_was_told_to_end_has_not_failed(tmp_path, code):
    one = run(tmp_path / "a")
    claim_run(one)
    execute(one.folder, do=lambda command, log, surroundings: (code, "stopped by SIGTERM"))
    assert one.state == "begun"


def test_a_run_that_was_stopped_has_not_failed(tmp_path):
    one = run(tmp_path / "a")
    claim_run(one)

    def stopped(command, log, surroundings):
        stop_all()
        return -9, ""

    execute(one.folder, do=stopped)
    assert one.state == "begun"
    start_anew()
    execute(one.folder, do=lambda command, log, surroundings: (0, ""))
    assert one.state == "done"


@pytest.mark.skipif(sys.platform != "linux", reason="by prctl of Linux")
def test_a_command_whose_study_is_gone_does_not_begin():
    command = [sys.executable, "-m", "kiwi.ablation.child_process", "--version"]
    for tether, code in ((str(os.getpid()), 0), ("1", 1)):
        done = subprocess.run(command, env={**os.environ, TETHER: tether}, capture_output=True, text=True, timeout=60)
        assert (done.returncode, bool(done.stdout)) == (code, code == 0)


def test_a_result_alone_is_enough_to_go_on_elsewhere(tmp_path):
    one = run(tmp_path / "a")
    claim_run(one)
    execute(one.folder)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / RESULT).write_bytes((one.folder / RESULT).read_bytes())
    there = run(tmp_path / "b")
    assert there.state == "done"
    require_same(there)


SOUND = {
    "label": "base", "seed": 0, "fingerprint": "f", "items": {"x": {"a": 1.0}}, "categories": {"a": "k"},
    "clusters": {}, "numbers": {}, "curves": {}, "by_sigma": {}, "cost": {}, "seconds": 1.0,
}  # fmt: skip


def test_a_sound_result_is_read(tmp_path):
    (tmp_path / RESULT).write_text(json.dumps(SOUND))
    assert read_result(tmp_path / RESULT).items == {"x": {"a": 1.0}}


SPOILT = [{"items": []}, {"items": {"x": {}}}, {"items": {"x": {"a": "1"}}}, {"items": {"x": {"a": float("nan")}}},
          {"numbers": None}, {"numbers": {"x": float("inf")}}, {"categories": {}}]  # fmt: skip


@pytest.mark.parametrize("text", ["[]", "{", '{"label": 3}', "\0", *(json.dumps(SOUND | one) for one in SPOILT)])
def test_a_spoilt_result_is_told(tmp_path, text):
    (tmp_path / RESULT).write_text(text)
    with pytest.raises(InputError, match="remove it"):
        read_result(tmp_path / RESULT)


def folders(tmp_path, count, command=("--version",)):
    for index in range(count):
        one = run(tmp_path / str(index), list(command))
        claim_run(one)
        yield one.folder


def test_jobs_share_out_runs_and_devices(tmp_path, monkeypatch):
    seen = {}

    def note(folder, threads, device):
        seen[folder] = device

    monkeypatch.setattr("kiwi.ablation.launchers.execute", note)
    places = list(folders(tmp_path, 5))
    told = list(Local(jobs=2, devices=["4", "7"]).launch(places))
    assert sorted(told) == sorted([(place, what) for place in places for what in ("running", "ended")])
    assert set(seen) == set(places)
    assert set(seen.values()) <= {"4", "7"}


def test_a_bug_in_a_run_is_not_swallowed(tmp_path, monkeypatch):
    def broken(folder, threads, device):
        raise RuntimeError("a bug")

    monkeypatch.setattr("kiwi.ablation.launchers.execute", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        list(Local().launch(list(folders(tmp_path, 1))))


@pytest.mark.parametrize("numbers", [{"jobs": 0}, {"threads": 0}])
def test_no_jobs_and_no_threads_run_nothing(numbers):
    with pytest.raises(InputError):
        Local(**numbers)


def test_a_clusters_job_is_a_run(tmp_path, monkeypatch):
    """submitit's jobs as processes of this machine: the same code but for who starts them."""
    monkeypatch.setattr("kiwi.ablation.launchers.POLL", 0.2)
    places = list(folders(tmp_path / "runs", 1))
    told = list(Cluster(tmp_path / "slurm", kind="local").launch(places))
    assert told == [(places[0], "running"), (places[0], "ended")]
    assert (places[0] / RESULT).exists()


def test_a_cluster_that_is_not_there_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="the cluster's jobs cannot be set up"):
        Cluster(tmp_path / "slurm", options={"slurm_nonsense": 1})


def test_commands_are_kept_as_they_were_given(tmp_path):
    one = run(Path(tmp_path) / "a", ["fit", "--config", "x y.yaml"])
    claim_run(one)
    assert json.loads((one.folder / "commands.json").read_text()) == [["fit", "--config", "x y.yaml"]]
