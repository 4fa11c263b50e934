"""Runs that failed or were killed can be rerun; finished runs are not repeated; results of other runs are rejected."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from kiwi.ablation import child_process
from kiwi.ablation.launchers import ClusterLauncher, LocalLauncher
from kiwi.ablation.results import collect_results, read_result
from kiwi.ablation.runs import FAILURE_FILE, RESULT_FILE, Run, check_result, describe_failure, execute_run, prepare_run
from kiwi.ablation.steps import (
    COMMANDS_FILE,
    LOG_FILE,
    PARENT_VARIABLE,
    Step,
    read_steps,
    reset_stop_flag,
    stop_all,
    write_steps,
)
from kiwi.ablation.study import Arm
from kiwi.errors import InputError
from kiwi.media.journal import with_checksum
from kiwi.training.run_log import ValidationMeasurement

ARM = Arm(label="base", options={}, resolved={})


def make_run(folder, *commands, fingerprint="f", seed=0):
    steps = [Step(command=command, options={}, out=folder / "out") for command in commands]
    return Run(arm=ARM, seed=seed, folder=folder, steps=steps, fingerprint=fingerprint)


def execute(run, run_step, **options):
    """Prepare and execute a run with a function in place of `run_step`, which would start child processes."""
    prepare_run(run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kiwi.ablation.runs.run_step", run_step)
        execute_run(run.folder, **options)


def finish(run):
    execute(run, lambda folder, step_index, env: (0, ""))
    return run


def test_a_run_ends_with_its_result(tmp_path):
    run = make_run(tmp_path / "a" / "seed-0", "fit")
    assert run.state == "waiting"
    prepare_run(run)
    assert run.state == "started"
    finish(run)
    assert run.state == "done"
    result = read_result(run.folder / RESULT_FILE)
    assert (result.label, result.seed, result.items) == ("base", 0, {})
    check_result(run)


def test_a_failing_command_ends_a_run_with_its_error_message(tmp_path):
    run = make_run(tmp_path / "a", "nonsense", "other")
    prepare_run(run)
    execute_run(run.folder)
    assert run.state == "failed"
    assert describe_failure(run.folder).startswith(
        "nonsense out ended with exit code 2: a step cannot run the command 'nonsense'."
    )
    log = (run.folder / LOG_FILE).read_text()
    assert log.startswith("$ nonsense {}\nerror: ")
    assert "$ other" not in log
    assert finish(make_run(tmp_path / "a", "fit")).state == "done"
    assert not (run.folder / FAILURE_FILE).exists()


def test_a_step_first_imports_the_modules_that_define_the_specs_of_its_arm(tmp_path, monkeypatch, capsys):
    (tmp_path / "kiwi_user_spec.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    for module in ("kiwi_user_spec", "kiwi_absent_spec"):
        write_steps(tmp_path, [Step(command="nonsense", options={}, out=tmp_path, modules=(module,))])
        assert child_process.main(str(tmp_path), "0") == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "cannot run the command 'nonsense'" in first
    assert sys.modules.pop("kiwi_user_spec").__file__ == str(tmp_path / "kiwi_user_spec.py")
    assert "the module kiwi_absent_spec, which defines a spec of this arm, cannot be imported" in second
    assert "Fix: add its folder to PYTHONPATH" in second


def test_a_failed_measurement_is_reported_by_its_name(tmp_path):
    step = Step(command="validation", options={}, out=tmp_path / "validation", measurement=ValidationMeasurement())
    run = replace(make_run(tmp_path / "a"), steps=[step])
    execute(run, lambda folder, step_index, env: (1, "reason"))
    assert describe_failure(run.folder).startswith("measurement validation ended with exit code 1: reason")


def test_a_killed_command_is_a_failure_too(tmp_path):
    run = make_run(tmp_path / "a", "fit")
    execute(run, lambda folder, step_index, env: (-9, "one two"))
    assert describe_failure(run.folder).startswith("fit out ended with exit code -9: one two")


def test_threads_and_device_reach_the_command(tmp_path):
    run, environment = make_run(tmp_path / "a", "fit"), {}

    def record(folder, step_index, env):
        environment.update(env)
        return 0, ""

    execute(run, record, threads=3, device="1")
    assert (environment["OMP_NUM_THREADS"], environment["CUDA_VISIBLE_DEVICES"]) == ("3", "1")


def test_results_of_a_changed_study_are_rejected(tmp_path):
    run = finish(make_run(tmp_path / "a"))
    other = make_run(tmp_path / "a", fingerprint="g")
    with pytest.raises(InputError, match="fingerprint f") as caught:
        check_result(other)
    assert caught.value.code == "changed-settings"
    (run.folder / RESULT_FILE).unlink()
    with pytest.raises(InputError, match="fingerprint g"):
        prepare_run(other)


def test_the_result_of_another_seed_is_rejected(tmp_path):
    finish(make_run(tmp_path / "a"))
    with pytest.raises(InputError, match="seed 0"):
        check_result(make_run(tmp_path / "a", seed=1))


@pytest.mark.parametrize("code", [-15, 143])
def test_a_run_that_was_terminated_has_not_failed(tmp_path, code):
    run = make_run(tmp_path / "a", "fit")
    execute(run, lambda folder, step_index, env: (code, "stopped by SIGTERM"))
    assert run.state == "started"


def test_a_run_that_was_stopped_has_not_failed(tmp_path):
    run = make_run(tmp_path / "a", "fit")

    def stop(folder, step_index, env):
        stop_all()
        return -9, ""

    execute(run, stop)
    assert run.state == "started"
    reset_stop_flag()
    assert finish(run).state == "done"


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is only available on Linux")
def test_a_child_process_whose_study_is_gone_does_not_start(tmp_path):
    run = make_run(tmp_path / "a", "nonsense")
    validation = Step(command="", options={}, out=tmp_path, measurement=ValidationMeasurement())
    prepare_run(replace(run, steps=[*run.steps, validation]))  # reading the steps needs the class of the measurement
    command = [sys.executable, "-m", "kiwi.ablation.child_process", str(tmp_path / "a"), "0"]
    for parent, code in ((str(os.getpid()), 2), ("1", 1)):  # 2: the step was read and rejected
        environment = {**os.environ, PARENT_VARIABLE: parent}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert (done.returncode, "command 'nonsense'" in done.stderr) == (code, code == 2)


def test_a_result_alone_is_enough_to_continue_elsewhere(tmp_path):
    run = finish(make_run(tmp_path / "a"))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / RESULT_FILE).write_bytes((run.folder / RESULT_FILE).read_bytes())
    copy = make_run(tmp_path / "b")
    assert copy.state == "done"
    check_result(copy)


def test_steps_survive_writing_and_reading(tmp_path):
    steps = [Step(command="fit", options={"config": ["x y.yaml"], "overrides": {"a.b": None}}, out=tmp_path)]
    run = Run(arm=ARM, seed=0, folder=tmp_path / "a", steps=steps, fingerprint="f")
    prepare_run(run)
    assert read_steps(run.folder) == steps


def test_a_run_of_the_previous_release_must_be_prepared_again(tmp_path):
    run = make_run(tmp_path / "a", "fit")
    prepare_run(run)
    (run.folder / COMMANDS_FILE).write_text(json.dumps([["fit", "--config", "x.yaml"]]))
    with pytest.raises(InputError, match="rerun `kiwi ablate`") as caught:
        execute_run(run.folder)
    assert caught.value.code == "unreadable-file"
    assert finish(run).state == "done"


RECORD = {
    "label": "base", "seed": 0, "fingerprint": "f", "items": {"x": {"a": 1.0}}, "categories": {"a": "k"},
    "clusters": {}, "numbers": {}, "curves": {}, "by_sigma": {}, "cost": {}, "seconds": 1.0,
}  # fmt: skip


def test_a_valid_result_is_read(tmp_path):
    (tmp_path / RESULT_FILE).write_text(json.dumps(RECORD))
    assert read_result(tmp_path / RESULT_FILE).items == {"x": {"a": 1.0}}


CHANGED = [
    {"items": {"x": {"a": 1.1}}}, {"categories": {"a": "l"}}, {"clusters": {"a": "s"}}, {"numbers": {"y": 1.0}},
    {"curves": {"loss": [[1, 2.0]]}}, {"by_sigma": {"p": {"0.5": 1.0}}}, {"cost": {"steps": 1.0}}, {"seconds": 2.0},
    {"label": "other"}, {"seed": 1}, {"fingerprint": "g"},
]  # fmt: skip


@pytest.mark.parametrize("changes", CHANGED, ids=str)
def test_a_result_that_was_edited_is_refused_by_its_checksum(tmp_path, changes):
    file, checked = tmp_path / RESULT_FILE, with_checksum(RECORD)
    file.write_text(json.dumps(checked))
    assert read_result(file).is_checked
    file.write_text(json.dumps(checked | changes))
    with pytest.raises(InputError, check=lambda error: error.code == "changed-file"):
        read_result(file)


def test_results_of_the_previous_release_have_no_checksum_and_are_read(tmp_path):
    (tmp_path / RESULT_FILE).write_text(json.dumps(RECORD))
    assert not read_result(tmp_path / RESULT_FILE).is_checked
    assert read_result(finish(make_run(tmp_path / "run")).folder / RESULT_FILE).is_checked


INVALID = [
    {"items": []}, {"items": {"x": {}}}, {"items": {"x": {"a": "1"}}},
    {"items": {"x": {"a": True}}}, {"items": {"x": {"a": 1e308}}}, {"items": {"x": 5}},
    {"numbers": None}, {"categories": {"a": 5}},
    {"clusters": None}, {"curves": {"loss": 5}}, {"curves": {"loss": [[1, "x"]]}}, {"curves": {"loss": [[1]]}},
    {"curves": {"loss": [[1, -1e308]]}}, {"by_sigma": [1]}, {"by_sigma": {"gamma_at_": {"x": 1.0}}},
    {"by_sigma": {"gamma_at_": [0.5]}}, {"cost": {"steps": "x"}}, {"seconds": "nan"},
    {"seconds": None}, {"label": 5}, {"seed": "0"}, {"seed": True}, {"other": 1},
]  # fmt: skip


@pytest.mark.parametrize("changes", INVALID, ids=str)
def test_a_result_with_values_of_wrong_types_is_refused_with_the_name_of_the_field(tmp_path, changes):
    (tmp_path / RESULT_FILE).write_text(json.dumps(RECORD | changes))
    with pytest.raises(InputError, match=RESULT_FILE) as caught:
        read_result(tmp_path / RESULT_FILE)
    assert caught.value.code == "invalid-result"
    assert next(iter(changes)) in str(caught.value.got)
    run = replace(make_run(tmp_path), fingerprint=RECORD["fingerprint"])
    with pytest.raises(InputError, match=RESULT_FILE):
        check_result(run)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400])
def test_a_result_with_a_number_that_json_cannot_hold_is_refused(tmp_path, value):
    for changes in ({"items": {"x": {"a": value}}}, {"numbers": {"x": value}}, {"seconds": value}):
        (tmp_path / RESULT_FILE).write_text(json.dumps(RECORD | changes))
        with pytest.raises(InputError, match=RESULT_FILE, check=lambda error: error.code == "invalid-result"):
            read_result(tmp_path / RESULT_FILE)


@pytest.mark.parametrize("text", ["", "[]", "{", "5", "null", '{"label": 3}', "\0", '{"seed": ' + "1" * 5000 + "}"])
def test_the_error_for_a_damaged_result_says_to_delete_it(tmp_path, text):
    (tmp_path / RESULT_FILE).write_text(text)
    for read in (lambda: read_result(tmp_path / RESULT_FILE), lambda: check_result(make_run(tmp_path))):
        with pytest.raises(InputError, match=RESULT_FILE) as caught:
            read()
        assert caught.value.code == "invalid-result"
        assert caught.value.fix.startswith("delete the file and rerun")


def prepared_folders(tmp_path, count):
    for index in range(count):
        run = make_run(tmp_path / str(index))
        prepare_run(run)
        yield run.folder


def test_runs_and_devices_are_distributed_over_the_jobs(tmp_path, monkeypatch):
    devices = {}

    def record(folder, threads, device):
        devices[folder] = device

    monkeypatch.setattr("kiwi.ablation.launchers.execute_run", record)
    folders = list(prepared_folders(tmp_path, 5))
    events = list(LocalLauncher(jobs=2, devices=["4", "7"]).launch(folders))
    assert sorted(events) == sorted([(folder, event) for folder in folders for event in ("running", "ended")])
    assert set(devices) == set(folders)
    assert set(devices.values()) <= {"4", "7"}


def test_a_bug_in_a_run_is_not_swallowed(tmp_path, monkeypatch):
    def broken(folder, threads, device):
        raise RuntimeError("a bug")

    monkeypatch.setattr("kiwi.ablation.launchers.execute_run", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        list(LocalLauncher().launch(list(prepared_folders(tmp_path, 1))))


def test_a_cluster_job_executes_a_run(tmp_path, monkeypatch):
    """submitit's jobs as processes of this machine: the same code except for who starts them."""
    monkeypatch.setattr("kiwi.ablation.launchers.POLL_SECONDS", 0.2)
    folders = list(prepared_folders(tmp_path / "runs", 1))
    events = list(ClusterLauncher(tmp_path / "slurm", cluster="local").launch(folders))
    assert events == [(folders[0], "running"), (folders[0], "ended")]
    assert (folders[0] / RESULT_FILE).exists()


def test_a_missing_cluster_raises_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, check=lambda error: error.code == "cluster-unavailable"):
        ClusterLauncher(tmp_path / "slurm", options={"slurm_nonsense": 1})


@pytest.mark.parametrize(
    "error", [FileNotFoundError("no file"), json.JSONDecodeError("cut", "{", 1), KeyError("items")]
)
def test_results_that_a_measurement_cannot_read_are_reported_with_their_folder(tmp_path, monkeypatch, error):
    def collect(measurement, folder):
        raise error

    monkeypatch.setattr(ValidationMeasurement, "collect", collect)
    step = Step(command="fit", options={}, out=tmp_path, measurement=ValidationMeasurement(names=("val/loss",)))
    with pytest.raises(InputError, check=lambda error: error.code == "invalid-result") as caught:
        collect_results([step])
    assert str(tmp_path) in str(caught.value)
    assert type(error).__name__ in str(caught.value)
