"""Labels say how an arm differs from the base: the same for the same difference, and different for others."""

import pytest

from kiwi.ablation.labels import MAX_FOLDER_NAME, arm_label, changes, folder_name
from kiwi.models import connectors, injection, scaling  # noqa: F401 (register their specs)


def configuration(**config):
    source = {"type": "AddSource", "scale": {"type": "SigmaScale"}}
    query = {"type": "QueryConnector", "image": 256, "readout": "queries"}
    config = {"dit": {"dim": 48}, "source": source, "query": query} | config
    return {"model": {"type": "LitKiwi", "config": config, "optim": {"lr": 0.001}}, "trainer": {"max_steps": 10}}


def label_of(other):
    return arm_label({"edit": changes(configuration(), other)})


def test_equal_configurations_are_the_base():
    assert changes(configuration(), configuration()) == {}
    assert arm_label({"edit": {}}) == "base"


def test_another_spec_appears_by_name_with_the_fields_that_differ_from_its_defaults():
    scaled = {"type": "AddSource", "scale": {"type": "LearnableScale"}}
    assert label_of(configuration(source=scaled)) == "source.scale=LearnableScale"
    scaled["scale"]["bins"] = 50
    assert label_of(configuration(source=scaled)) == "source.scale=LearnableScale; source.scale.bins=50"
    off = configuration(query={"type": "NoConnector"}, source={"type": "NoSource"})
    assert label_of(off) == "source=NoSource; query=NoConnector"


def test_defaults_that_are_written_out_are_no_difference():
    assert label_of(configuration(source={"type": "AddSource"})) == "base"


def test_other_values_appear_by_path():
    other = configuration(dit={"dim": 64})
    other["model"]["optim"]["lr"] = 1e-4
    other["trainer"]["max_steps"] = [1, 2]
    assert changes(configuration(), other) == {
        "model.config.dit.dim": 64, "model.optim.lr": 1e-4, "trainer.max_steps": [1, 2]
    }  # fmt: skip
    assert label_of(other) == "dit.dim=64; optim.lr=0.0001; trainer.max_steps=[1, 2]"


def test_differences_of_one_stage_appear_with_its_name():
    stages = {"one": {"model.a": 1, "model.b": 2}, "two": {"model.a": 1, "model.b": 3}}
    assert arm_label(stages) == "a=1; one: b=2; two: b=3"
    assert arm_label({"two": {}}, ["one"]) == "without one"


@pytest.mark.parametrize("callback", [{"class_path": "a.B", "init_args": {"c": 1}}, {"type": "B", "c": 1}])
def test_a_list_appears_in_full(callback):
    assert arm_label({"edit": changes({"callbacks": []}, {"callbacks": [callback]})}) == "callbacks=[B(c=1)]"


def test_fields_of_a_class_of_another_package_appear_by_path():
    before, after = ({"strategy": {"class_path": "x.Ddp", "init_args": {"bucket": size}}} for size in (25, 50))
    assert changes(before, after) == {"strategy.bucket": 50}


def test_long_values_are_cut_and_stay_distinct():
    labels = {arm_label({"edit": {"data.train": [{"path": "x" * 80 + end}]}}) for end in "ab"}
    assert len(labels) == 2
    assert all(len(label) < 70 and label.startswith("data.train=[{path=xxx") for label in labels)


@pytest.mark.parametrize("text", ["base", "a=1; b=[2, 3]", "../../x", "a/b", "ü=1", "x" * 300, ".", "a b", "a_b"])
def test_folder_names_are_safe_and_distinct(text):
    name = folder_name(text)
    assert 0 < len(name) <= MAX_FOLDER_NAME
    assert "/" not in name
    assert not name.startswith(".")
    assert name != folder_name(text + ";")
    assert name == folder_name(text)
