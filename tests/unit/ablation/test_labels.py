"""Labels state how an arm differs from the base; different arms have different labels."""

import pytest

from kiwi.ablation.labels import MAX_FOLDER_NAME, list_changed_values, make_arm_label, make_folder_name
from kiwi.models import connectors, injection, scaling  # noqa: F401 (register their specs)


def configuration(**config):
    source = {"type": "AddSource", "scale": {"type": "SigmaScale"}}
    query = {"type": "QueryConnector", "image": 256, "readout": "queries"}
    config = {"dit": {"dim": 48}, "source": source, "query": query} | config
    return {"model": {"type": "LitKiwi", "config": config, "optim": {"lr": 0.001}}, "trainer": {"max_steps": 10}}


def label_of(variant):
    return make_arm_label({"edit": list_changed_values(configuration(), variant)})


def test_equal_configurations_are_the_base():
    assert list_changed_values(configuration(), configuration()) == {}
    assert make_arm_label({"edit": {}}) == "base"


def test_a_spec_of_another_type_appears_by_name_with_its_non_default_fields():
    scaled = {"type": "AddSource", "scale": {"type": "LearnableScale"}}
    assert label_of(configuration(source=scaled)) == "source.scale=LearnableScale"
    scaled["scale"]["bins"] = 50
    assert label_of(configuration(source=scaled)) == "source.scale=LearnableScale; source.scale.bins=50"
    off = configuration(query={"type": "NoConnector"}, source={"type": "NoSource"})
    assert label_of(off) == "source=NoSource; query=NoConnector"


def test_explicit_default_values_do_not_count_as_a_difference():
    assert label_of(configuration(source={"type": "AddSource"})) == "base"


def test_changed_plain_values_appear_with_their_path():
    variant = configuration(dit={"dim": 64})
    variant["model"]["optim"]["lr"] = 1e-4
    variant["trainer"]["max_steps"] = [1, 2]
    assert list_changed_values(configuration(), variant) == {
        "model.config.dit.dim": 64, "model.optim.lr": 1e-4, "trainer.max_steps": [1, 2]
    }  # fmt: skip
    assert label_of(variant) == "dit.dim=64; optim.lr=0.0001; trainer.max_steps=[1, 2]"


def test_differences_in_one_stage_appear_with_the_name_of_the_stage():
    stages = {"one": {"model.a": 1, "model.b": 2}, "two": {"model.a": 1, "model.b": 3}}
    assert make_arm_label(stages) == "a=1; one: b=2; two: b=3"
    assert make_arm_label({"two": {}}, ["one"]) == "without one"


@pytest.mark.parametrize("callback", [{"class_path": "a.B", "init_args": {"c": 1}}, {"type": "B", "c": 1}])
def test_a_changed_list_appears_in_full(callback):
    assert (
        make_arm_label({"edit": list_changed_values({"callbacks": []}, {"callbacks": [callback]})})
        == "callbacks=[B(c=1)]"
    )


def test_changed_arguments_of_a_class_outside_kiwi_appear_with_their_path():
    before, after = ({"strategy": {"class_path": "x.Ddp", "init_args": {"bucket": size}}} for size in (25, 50))
    assert list_changed_values(before, after) == {"strategy.bucket": 50}


def test_long_values_are_cut_and_stay_distinct():
    labels = {make_arm_label({"edit": {"data.train": [{"path": "x" * 80 + end}]}}) for end in "ab"}
    assert len(labels) == 2
    assert all(len(label) < 70 and label.startswith("data.train=[{path=xxx") for label in labels)


@pytest.mark.parametrize("text", ["base", "a=1; b=[2, 3]", "../../x", "a/b", "ü=1", "x" * 300, ".", "a b", "a_b"])
def test_folder_names_are_safe_and_distinct(text):
    name = make_folder_name(text)
    assert 0 < len(name) <= MAX_FOLDER_NAME
    assert "/" not in name
    assert not name.startswith(".")
    assert name != make_folder_name(text + ";")
    assert name == make_folder_name(text)


@pytest.mark.parametrize("label", ["con", "NUL", "aux.x=1", "Com1.lr=2", "lpt9"])
def test_no_folder_has_a_name_that_windows_reserves(label):
    name = make_folder_name(label)
    assert name.startswith(f"arm_{label}_")
    assert name != make_folder_name(f"arm_{label}")
