"""Studies are understood whole, or refused with what is wrong, before anything runs."""

import pytest
import yaml

from kiwi.ablation.runs import runs_of
from kiwi.ablation.study import read_study
from kiwi.errors import InputError

DEFAULTS = {"a": 1, "b": 2, "seed_everything": 0, "model": {"init": "pretrained"}}


def resolve(options):
    """Stands for `kiwi fit`: knows a and b."""
    found = dict(DEFAULTS)
    for name, value in options.overrides.items():
        if name not in found:
            raise InputError(f"there is no option {name}")
        found[name] = value
    return found


def study(tmp_path, **said):
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text("{}")
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump({"stages": {"one": "one.yaml", "two": "two.yaml"}, **said}))
    return read_study(file, resolve)


def words(command):
    return dict(word.removeprefix("--").partition("=")[::2] for word in command if "=" in word)


def test_arms_are_the_base_then_those_listed_then_the_grid(tmp_path):
    listed = [{"a": 5}, {"one.b": 7}, {"skip": ["one"]}]
    found = study(tmp_path, arms=listed, grid={"a": [2, 3], "b": [2, 4]}, seeds=[3])
    assert [arm.label for arm in found.arms] == [
        "base", "a=5", "one: b=7", "without one", "a=2", "a=2; b=4", "a=3", "a=3; b=4"
    ]  # fmt: skip
    assert found.seeds == [3]


def test_a_combination_of_the_grid_that_is_the_base_is_not_run_twice(tmp_path):
    found = study(tmp_path, grid={"a": [1, 2], "b": [2, 3]})
    assert [arm.label for arm in found.arms] == ["base", "b=3", "a=2", "a=2; b=3"]


def test_stages_follow_each_other_and_a_skipped_one_leaves_its_start(tmp_path):
    found = study(tmp_path, arms=[{"skip": ["one"]}, {"one.b": 7, "a": 4}], seeds=[0, 1], options={"b": 9})
    runs = runs_of(found, tmp_path / "out")
    assert [(run.arm.label, run.seed) for run in runs] == [
        ("base", 0), ("without one", 0), ("a=4; one: b=7", 0), ("base", 1), ("without one", 1), ("a=4; one: b=7", 1)
    ]  # fmt: skip
    first, second = (words(command) for command in runs[0].commands)
    assert "model.init" not in first
    assert second["model.init"] == f"{runs[0].folder}/one/model"
    assert (first["b"], first["ckpt_path"]) == ("9", "last")
    (alone,) = runs[1].commands
    assert words(alone)["model.init"] == "pretrained"
    assert [words(command)["b"] for command in runs[2].commands] == ["7", "9"]
    assert [words(command)["a"] for command in runs[2].commands] == ["4", "4"]
    assert {words(command)["seed_everything"] for command in runs[3].commands} == {"1"}
    assert len({run.folder for run in runs}) == len({run.fingerprint for run in runs}) == 6


def test_a_skipped_stage_that_starts_from_nothing_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(DEFAULTS, "model", {"init": None})
    found = study(tmp_path, arms=[{"skip": ["one"]}])
    (alone,) = runs_of(found, tmp_path)[1].commands
    assert words(alone)["model.init"] == "null"
    before = runs_of(found, tmp_path)[1].fingerprint
    monkeypatch.setitem(DEFAULTS, "model", {"init": "other"})
    assert runs_of(study(tmp_path, arms=[{"skip": ["one"]}]), tmp_path)[1].fingerprint != before


def test_numbers_that_are_nearly_alike_are_arms_of_their_own(tmp_path):
    found = study(tmp_path, grid={"a": [0.0123456, 0.01234561, 0.01234562]})
    assert [arm.label for arm in found.arms] == ["base", "a=0.0123456", "a=0.01234561", "a=0.01234562"]


def test_results_are_known_again_wherever_they_lie(tmp_path):
    found = study(tmp_path, arms=[{"a": 2}])
    here, there = runs_of(found, tmp_path / "here"), runs_of(found, tmp_path / "there")
    assert [run.fingerprint for run in here] == [run.fingerprint for run in there]
    measured = study(tmp_path, arms=[{"a": 2}], measure={"sandbox": {"items": 7}})
    assert runs_of(measured, tmp_path)[0].fingerprint != here[0].fingerprint
    (tmp_path / "one.yaml").write_text("{c: 1}")
    assert runs_of(found, tmp_path)[0].fingerprint != here[0].fingerprint


def test_measurements_are_commands_of_ours(tmp_path):
    bench = {"openve": {"data": "sandbox", "items": 10, "metrics": ["basic"]}}
    sandbox = {"items": 7, "categories": ["local_add", "local_remove"], "level": "easy"}
    found = study(tmp_path, measure={"sandbox": sandbox, "bench": bench})
    run = runs_of(found, tmp_path)[0]
    *_, measure, judge = run.commands
    assert measure[:2] == ["sandbox", "measure"]
    assert measure[measure.index("--categories") + 1] == "local_add,local_remove"
    assert measure[measure.index("--model") + 1] == f"{run.folder}/two/model"
    assert judge[:2] == ["bench", "openve"]
    assert "--no-gallery" in judge


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"arm": []}, "unknown field 'arm'.*did you mean arms"),
        ({"arms": [{"c": 1}]}, "arm 1 of .*, stage one: there is no option c"),
        ({"arms": [{"one.c": 1}]}, "arm 1 of .*, stage one: there is no option c"),
        ({"options": {"c": 1}}, "the base of .*, stage one: there is no option c"),
        ({"arms": [{"a": 1}]}, "arm 1 of .* is the same as the base"),
        ({"arms": [{"a": 2}, {"a": 2}]}, "arm 2 of .* is the same as arm 1"),
        ({"arms": [{"skip": ["three"]}]}, "skips other stages"),
        ({"arms": [{"skip": ["one", "two"]}]}, "skips other stages"),
        ({"arms": [{"skip": "one"}]}, "skips other stages"),
        ({"arms": {"a": 2}}, "cannot be read"),
        ({"arms": [{}]}, "cannot be read"),
        ({"arms": [{1: 2}]}, "cannot be read"),
        ({"arms": [{"skip": [["one"]]}]}, "skips other stages"),
        ({"arms": [{"skip": ["one", "one"]}]}, "skips other stages"),
        ({"arms": [{"two.model.init": "x"}]}, "model.init is not to be set"),
        ({"options": {"seed_everything": 7}}, "seed_everything is not to be set"),
        ({"arms": [{"ckpt_path": "x"}]}, "ckpt_path is not to be set"),
        ({"arms": [{"one.trainer.default_root_dir": "x"}]}, "default_root_dir is not to be set"),
        ({"measure": {"sandbox": {"model": "x"}}}, "model in .* is not to be set"),
        ({"measure": {"bench": {"openve": {"out": "x"}}}}, "out in .* is not to be set"),
        ({"stages": {"sandbox": "one.yaml"}}, "cannot be called 'sandbox'"),
        ({"stages": {"../x": "one.yaml"}}, "cannot be called"),
        ({"stages": {"model": "one.yaml"}}, "cannot be called"),
        ({"stages": {"result.json": "one.yaml"}}, "cannot be called"),
        ({"seeds": [2**32]}, "whole numbers"),
        ({"grid": {"a": 2}}, "has no values"),
        ({"grid": {"a": []}}, "has no values"),
        ({"seeds": []}, "whole numbers"),
        ({"seeds": [0, 0]}, "twice"),
        ({"seeds": [True]}, "whole numbers"),
        ({"seeds": [-1]}, "whole numbers"),
        ({"stages": {}}, "names no stages"),
        ({"measure": {"bench": ["openve"]}}, "no mapping"),
        ({"measure": {"sandbx": {}}}, "unknown field 'sandbx'.*did you mean sandbox"),
        ({"measure": {"validation": "val/loss"}}, "names no numbers"),
    ],
)
def test_what_cannot_be_is_told(tmp_path, said, told):
    with pytest.raises(InputError, match=told):
        study(tmp_path, **said)
