"""Reading a study checks it completely and raises an error that names what is wrong."""

from dataclasses import dataclass

import pytest
import yaml

from kiwi.ablation.runs import list_runs
from kiwi.ablation.study import read_study
from kiwi.errors import InputError
from kiwi.options import Options
from kiwi.spec import Spec, from_dict, to_dict

DEFAULTS = {"a": 1, "b": 2, "seed_everything": 0, "model": {"init": "owner/pretrained"}}


def resolve(options):
    """Replace `kiwi.training.fit.resolve` by a function with the options a and b."""
    resolved = dict(DEFAULTS)
    for name, value in options.overrides.items():
        if name not in resolved:
            raise InputError(f"there is no option {name}", code="unknown-field")
        resolved[name] = value
    return resolved


def study(tmp_path, **content):
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text("{}")
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump({"stages": {"one": "one.yaml", "two": "two.yaml"}, **content}))
    return read_study(file, resolve)


def labels(study):
    return [arm.label for arm in study.arms]


def training(run):
    """Options of the run's `fit` steps."""
    return [step.options for step in run.steps if step.command == "fit"]


def overrides(run):
    return [options["overrides"] for options in training(run)]


def test_arms_are_the_base_then_the_listed_arms_then_the_grid(tmp_path):
    listed = [{"a": 5}, {"one.b": 7}, {"skip": ["one"]}]
    found = study(tmp_path, arms=listed, grid={"a": [2, 3], "b": [2, 4]}, seeds=[3])
    assert labels(found) == ["base", "a=5", "one: b=7", "without one", "a=2", "a=2; b=4", "a=3", "a=3; b=4"]
    assert found.seeds == [3]


def test_a_combination_of_the_grid_that_is_the_base_is_not_run_twice(tmp_path):
    assert labels(study(tmp_path, grid={"a": [1, 2], "b": [2, 3]})) == ["base", "b=3", "a=2", "a=2; b=3"]


def test_stages_follow_each_other_and_the_next_stage_starts_where_a_skipped_one_would_have(tmp_path):
    found = study(tmp_path, arms=[{"skip": ["one"]}, {"one.b": 7, "a": 4}], seeds=[0, 1], options={"b": 9})
    runs = list_runs(found, tmp_path / "out")
    assert [(run.arm.label, run.seed) for run in runs] == [
        ("base", 0), ("without one", 0), ("a=4; one: b=7", 0), ("base", 1), ("without one", 1), ("a=4; one: b=7", 1)
    ]  # fmt: skip
    first, second = overrides(runs[0])
    assert "model.init" not in first
    assert second["model.init"] == f"{runs[0].folder}/one/model"
    assert first["b"] == 9
    assert [options["checkpoint"] for options in training(runs[0])] == ["last", "last"]
    (alone,) = overrides(runs[1])
    assert alone["model.init"] == "owner/pretrained"
    assert [values["b"] for values in overrides(runs[2])] == [7, 9]
    assert [values["a"] for values in overrides(runs[2])] == [4, 4]
    assert {values["seed_everything"] for values in overrides(runs[3])} == {1}
    assert len({run.folder for run in runs}) == len({run.fingerprint for run in runs}) == 6


def test_after_a_skipped_stage_without_initial_model_the_next_stage_has_none_either(tmp_path, monkeypatch):
    monkeypatch.setitem(DEFAULTS, "model", {"init": None})
    run = list_runs(study(tmp_path, arms=[{"skip": ["one"]}]), tmp_path)[1]
    assert [values["model.init"] for values in overrides(run)] == [None]
    monkeypatch.setitem(DEFAULTS, "model", {"init": "other"})
    assert list_runs(study(tmp_path, arms=[{"skip": ["one"]}]), tmp_path)[1].fingerprint != run.fingerprint


def test_numbers_that_are_nearly_equal_are_distinct_arms(tmp_path):
    found = study(tmp_path, grid={"a": [0.0123456, 0.01234561, 0.01234562]})
    assert labels(found) == ["base", "a=0.0123456", "a=0.01234561", "a=0.01234562"]


def test_a_fingerprint_depends_on_the_configuration_and_not_on_the_folder(tmp_path):
    found = study(tmp_path, arms=[{"a": 2}])
    here, there = list_runs(found, tmp_path / "here"), list_runs(found, tmp_path / "there")
    assert [run.fingerprint for run in here] == [run.fingerprint for run in there]
    measured = study(tmp_path, arms=[{"a": 2}], measure={"sandbox": {"items": 7}})
    assert list_runs(measured, tmp_path)[0].fingerprint != here[0].fingerprint
    (tmp_path / "one.yaml").write_text("{c: 1}")
    assert list_runs(found, tmp_path)[0].fingerprint != here[0].fingerprint


def test_measurements_are_commands_with_typed_options(tmp_path):
    bench = {"openve": {"data": "sandbox", "items": 10, "metrics": ["basic"]}}
    sandbox = {"items": 7, "categories": ["local_add", "local_remove"], "level": "easy"}
    run = list_runs(study(tmp_path, measure={"sandbox": sandbox, "bench": bench}), tmp_path)[0]
    _, _, measure, judge, validate = run.steps
    assert (measure.command, judge.command, validate.command) == ("sandbox measure", "bench", "")
    sandbox_options, bench_options = (from_dict(Options, step.options) for step in (measure, judge))
    assert sandbox_options.categories == ("local_add", "local_remove")
    assert sandbox_options.model == bench_options.model == f"{run.folder}/two/model"
    assert (sandbox_options.out, bench_options.out) == (run.folder / "sandbox", run.folder / "bench-openve")
    assert (sandbox_options.controls, bench_options.suite, bench_options.gallery) == (False, "openve", False)
    assert validate.out == run.folder / "two"
    assert to_dict(run.steps[2])["measurement"]["type"] == "SandboxMeasurement"


@dataclass(frozen=True, kw_only=True)
class UserSpec(Spec):
    """A spec that is defined outside kiwi."""


def test_steps_import_the_modules_that_define_the_specs_of_their_arm(tmp_path, monkeypatch):
    arms = [{"two.a": [{"class_path": f"{__name__}.UserSpec"}]}, {"a": {"type": "UserSpec"}}, {"a": {"type": "Frozen"}}]
    base, listed, short, shipped = list_runs(study(tmp_path, arms=arms, measure={"sandbox": {}}), tmp_path)
    assert {step.modules for step in [*listed.steps, *short.steps]} == {(__name__,)}
    assert {step.modules for step in [*base.steps, *shipped.steps]} == {()}
    monkeypatch.setattr(UserSpec, "__module__", "__main__")
    with pytest.raises(InputError, match="move the spec into a module of its own") as caught:
        list_runs(study(tmp_path, arms=arms), tmp_path)
    assert caught.value.code == "missing-module"


def test_metrics_have_a_direction_and_the_primary_one_comes_first(tmp_path):
    measure = {"sandbox": {}, "validation": ["val/loss", "val/loss_blind"], "primary": "val/loss"}
    first, *others = study(tmp_path, measure=measure).metrics
    assert (first.name, first.better) == ("val/loss", "lower")
    assert {metric.better for metric in others if metric.name.startswith("sandbox ")} == {"higher"}
    assert (others[-1].name, others[-1].better) == ("val/loss_blind", "neither")


@pytest.mark.parametrize(
    ("content", "code", "value"),
    [
        ({"arm": []}, "unknown-field", "did you mean arms"),
        ({"arms": [{"c": 1}]}, "unknown-field", "arm 1 of .*, stage one: there is no option c.*stages: one, two"),
        ({"arms": [{"one.c": 1}]}, "unknown-field", "arm 1 of .*, stage one: there is no option c.*stages: one, two"),
        ({"options": {"c": 1}}, "unknown-field", "the base of .*, stage one: there is no option c"),
        ({"arms": [{"two": {"b": 1}}]}, "invalid-option", r"arm 1 of .*'two'.*stages: one, two"),
        ({"arms": [{"two.": 1}]}, "invalid-option", "arm 1 of .*stages: one, two"),
        ({"arms": [{"a..b": 1}]}, "invalid-option", "arm 1 of .*stages: one, two"),
        ({"arms": [{"--a": 1}]}, "invalid-option", "arm 1 of .*stages: one, two"),
        ({"arms": [{"a=1": 1}]}, "invalid-option", "arm 1 of .*stages: one, two"),
        ({"options": {"": 1}}, "invalid-option", "the base of .*stages: one, two"),
        ({"arms": [{"a": 1}]}, "duplicate-arm", "arm 1 of .* the base"),
        ({"arms": [{"a": 2}, {"a": 2}]}, "duplicate-arm", "arm 2 of .* arm 1"),
        ({"arms": [{"skip": ["three"]}]}, "invalid-skip", "three"),
        ({"arms": [{"skip": ["one", "two"]}]}, "invalid-skip", "one"),
        ({"arms": [{"skip": "one"}]}, "invalid-skip", "one"),
        ({"arms": [{"skip": [["one"]]}]}, "invalid-skip", "one"),
        ({"arms": [{"skip": ["one", "one"]}]}, "invalid-skip", "one"),
        ({"arms": {"a": 2}}, "wrong-type", "'a': 2"),
        ({"arms": [{}]}, "wrong-type", "{}"),
        ({"arms": [{1: 2}]}, "wrong-type", r"arms\.1"),
        ({"arms": [{"two.model.init": "x"}]}, "reserved-option", "model.init"),
        ({"options": {"seed_everything": 7}}, "reserved-option", "seed_everything"),
        ({"arms": [{"ckpt_path": "x"}]}, "reserved-option", "ckpt_path"),
        ({"arms": [{"one.trainer.default_root_dir": "x"}]}, "reserved-option", "default_root_dir"),
        ({"measure": {"sandbox": {"model": "x"}}}, "reserved-option", "model"),
        ({"measure": {"bench": {"openve": {"out": "x"}}}}, "reserved-option", "out"),
        ({"measure": {"bench": {"openve": {"videos": "x"}}}}, "reserved-option", "videos"),
        ({"stages": {"sandbox": "one.yaml"}}, "invalid-stage-name", "sandbox"),
        ({"stages": {"../x": "one.yaml"}}, "invalid-stage-name", "../x"),
        ({"stages": {"model": "one.yaml"}}, "invalid-stage-name", "model"),
        ({"stages": {"result.json": "one.yaml"}}, "invalid-stage-name", "result.json"),
        ({"stages": {}}, "missing-field", "study.yaml"),
        ({"seeds": [2**32]}, "invalid-seeds", str(2**32)),
        ({"seeds": []}, "invalid-seeds", "study.yaml"),
        ({"seeds": [True]}, "invalid-seeds", "True"),
        ({"seeds": [-1]}, "invalid-seeds", "-1"),
        ({"seeds": [0, 0]}, "invalid-seeds", "study.yaml"),
        ({"grid": {"a": 2}}, "empty-grid", "for a"),
        ({"grid": {"a": []}}, "empty-grid", "for a"),
        ({"measure": {"bench": ["openve"]}}, "wrong-type", "openve"),
        ({"measure": {"sandbx": {}}}, "unknown-field", "did you mean sandbox"),
        ({"measure": {"validation": "val/loss"}}, "wrong-type", "val/loss"),
        ({"measure": {"primary": "sandbox inside"}}, "unknown-metric", "Expected: val/loss"),
    ],
)
def test_an_invalid_study_raises_an_error_that_names_the_value(tmp_path, content, code, value):
    with pytest.raises(InputError, match=value) as caught:
        study(tmp_path, **content)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("measure", "value"),
    [
        ({"sandbox": {"item": 3}}, "item"),
        ({"sandbox": {"level": "hard"}}, "hard"),
        ({"sandbox": {"items": 0}}, "items"),
        ({"sandbox": {"items": "3"}}, "items"),
        ({"sandbox": {"frames": 4}}, "such as 5 or 9. Got: 4"),
        ({"sandbox": {"categories": ["snow"]}}, "snow"),
        ({"sandbox": {"model=other": 1}}, "model=other"),
        ({"sandbox": {"level": "easy --model other"}}, "easy --model other"),
        ({"bench": {"opnve": {}}}, "opnve"),
        ({"bench": {"openve": {"repeats": 0}}}, "repeats"),
        ({"bench": {"openve": {"part": "1/2"}}}, "part"),
    ],
)
def test_options_of_measurements_are_checked_when_the_study_is_read(tmp_path, measure, value):
    with pytest.raises(InputError, match=value):
        study(tmp_path, measure=measure)


@pytest.mark.parametrize("stages", [["Edit", "edit"], ["con"], ["NUL"], ["aux"], ["COM1"], ["Sandbox"], ["MODEL"]])
def test_stages_whose_folders_would_coincide_or_are_reserved_are_rejected(tmp_path, stages):
    (tmp_path / "one.yaml").write_text("{}")
    with pytest.raises(InputError, check=lambda error: error.code == "invalid-stage-name"):
        study(tmp_path, stages=dict.fromkeys(stages, "one.yaml"))


def test_arms_that_differ_only_in_case_are_rejected(tmp_path):
    with pytest.raises(InputError, check=lambda error: error.code == "duplicate-arm"):
        study(tmp_path, arms=[{"a": "Left"}, {"a": "left"}])
    assert len(study(tmp_path, arms=[{"a": "Left"}, {"a": "right"}]).arms) == 3
