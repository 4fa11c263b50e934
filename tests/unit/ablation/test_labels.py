"""Labels say how an arm differs from the base, the same for the same difference and no other's."""

import pytest

from kiwi.ablation.labels import LONGEST, changes, folder_name, label
from kiwi.models import connectors, scaling  # noqa: F401 (their specs have to be known)


def configuration(**more):
    source = {"class_path": "kiwi.models.injection.AddSource", "init_args": {"scale": {"class_path": "SigmaScale"}}}
    query = {"class_path": "kiwi.models.connectors.QueryConnector", "init_args": {"image": 256, "readout": "queries"}}
    config = {"dit": {"dim": 48}, "source": source, "query": query} | more
    model = {
        "class_path": "kiwi.training.modules.editor.LitKiwi",
        "init_args": {"config": config, "optim": {"lr": 0.001}},
    }
    return {"model": model, "trainer": {"max_steps": 10}}


def test_equal_configurations_are_the_base():
    assert changes(configuration(), configuration()) == {}
    assert label({"edit": {}}) == "base"


def test_another_choice_is_told_by_its_name_and_what_is_not_its_default():
    scaled = {"class_path": "AddSource", "init_args": {"scale": {"class_path": "x.LearnableScale", "init_args": {}}}}
    other = configuration(source=scaled)
    assert label({"edit": changes(configuration(), other)}) == "source.scale=LearnableScale"
    scaled["init_args"]["scale"]["init_args"]["bins"] = 50
    told = label({"edit": changes(configuration(), other)})
    assert told == "source.scale=LearnableScale; source.scale.bins=50"
    off = configuration(query={"class_path": "kiwi.models.connectors.NoConnector"}, source={"class_path": "NoSource"})
    assert label({"edit": changes(configuration(), off)}) == "source=NoSource; query=NoConnector"


def test_values_are_told_where_they_stand():
    other = configuration(dit={"dim": 64})
    other["model"]["init_args"]["optim"]["lr"] = 1e-4
    other["trainer"]["max_steps"] = [1, 2]
    assert changes(configuration(), other) == {
        "model.config.dit.dim": 64, "model.optim.lr": 1e-4, "trainer.max_steps": [1, 2]
    }  # fmt: skip
    assert label({"edit": changes(configuration(), other)}) == "dit.dim=64; optim.lr=0.0001; trainer.max_steps=[1, 2]"


def test_what_differs_in_one_stage_alone_is_told_with_its_name():
    told = {"one": {"model.a": 1, "model.b": 2}, "two": {"model.a": 1, "model.b": 3}}
    assert label(told) == "a=1; one: b=2; two: b=3"
    assert label({"two": {}}, ["one"]) == "without one"


def test_a_list_of_choices_is_told_whole():
    before, after = {"callbacks": []}, {"callbacks": [{"class_path": "a.B", "init_args": {"c": 1}}]}
    assert label({"edit": changes(before, after)}) == "callbacks=[B(c=1)]"


def test_long_values_are_cut_and_still_told_apart():
    texts = {label({"edit": {"data.train": [{"path": "x" * 80 + end}]}}) for end in "ab"}
    assert len(texts) == 2
    assert all(len(text) < 70 and text.startswith("data.train=[{path=xxx") for text in texts)


@pytest.mark.parametrize("text", ["base", "a=1; b=[2, 3]", "../../x", "a/b", "ü=1", "x" * 300, ".", "a b", "a_b"])
def test_folder_names_are_safe_and_tell_labels_apart(text):
    name = folder_name(text)
    assert 0 < len(name) <= LONGEST
    assert "/" not in name
    assert not name.startswith(".")
    assert name != folder_name(text + ";")
    assert name == folder_name(text)
