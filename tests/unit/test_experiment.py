from abc import ABC, abstractmethod
from dataclasses import dataclass

import pytest

from kiwi import experiment
from kiwi.errors import InputError, KiwiError, SpecError
from kiwi.experiment import merge_configurations, read_experiment, with_current_names
from kiwi.spec import Spec, from_dict, override, renamed_from


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def test_a_file_is_merged_over_its_base(tmp_path):
    write(
        tmp_path,
        base="trainer: {max_steps: 5, devices: 1}\ndata: {train: [a, b]}\n",
        mine="base: base.yaml\ntrainer: {max_steps: 7}\ndata: {train: [c]}\n",
    )
    assert read_experiment(tmp_path / "mine.yaml") == {
        "trainer": {"max_steps": 7, "devices": 1},
        "data": {"train": ["c"]},
    }


def test_bases_are_relative_to_their_own_files_and_later_ones_take_precedence(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path, root="a: 1\nb: 1\nc: 1\n")
    write(tmp_path / "sub", first="base: ../root.yaml\nb: 2\nc: 2\n", second="c: 3\n")
    write(tmp_path, mine="base: [sub/first.yaml, sub/second.yaml]\nd: 4\n")
    assert read_experiment(tmp_path / "mine.yaml") == {"a": 1, "b": 2, "c": 3, "d": 4}


@pytest.mark.parametrize(
    ("base", "changes", "expected"),
    [
        ({"type": "Lora", "rank": 64}, {"rank": 8}, {"type": "Lora", "rank": 8}),
        ({"type": "Lora", "rank": 64}, {"type": "Lora"}, {"type": "Lora", "rank": 64}),
        ({"type": "Lora", "rank": 64}, {"type": "Full"}, {"type": "Full"}),
        ({"type": "Lora", "rank": 64}, "Full", "Full"),
        ("Full", {"type": "Lora"}, {"type": "Lora"}),
        ("Lora", {"rank": 8}, {"type": "Lora", "rank": 8}),
    ],
)
def test_a_spec_of_another_type_replaces_the_fields_of_the_previous_one(base, changes, expected):
    assert merge_configurations({"tuning": base}, {"tuning": changes}) == {"tuning": expected}


@pytest.mark.parametrize(
    ("text", "code", "value"),
    [
        ("base: mine.yaml\n", "circular-base", "mine.yaml"),
        ("base: other.yaml\n", "unreadable-file", "other.yaml"),
        ("base: 3\n", "wrong-type", "base"),
        ("- a\n", "wrong-type", "mine.yaml"),
        ("a: [\n", "unreadable-file", "mine.yaml"),
        ("x: 2020-13-45\n", "unreadable-file", "mine.yaml"),
        ('base: "a\\0b"\n', "unusable-path", "a"),
    ],
)
def test_files_that_cannot_be_read_are_rejected(tmp_path, text, code, value):
    with pytest.raises(InputError, match=value, check=lambda error: error.code == code):
        read_experiment(write(tmp_path, mine=text) / "mine.yaml")


def test_class_path_and_init_args_of_specs_are_converted_to_the_short_form(tmp_path):
    text = """
    model:
      class_path: kiwi.training.modules.editor.LitKiwi
      init_args:
        config: {source: {class_path: AddSource, init_args: {scale: SigmaScale}}}
        optim: {init_args: {lr: 0.1}}
    trainer: {callbacks: [{class_path: lightning.pytorch.callbacks.EarlyStopping, init_args: {monitor: loss}}]}
    """
    assert read_experiment(write(tmp_path, old=text) / "old.yaml") == {
        "model": {
            "type": "LitKiwi",
            "config": {"source": {"type": "AddSource", "scale": "SigmaScale"}},
            "optim": {"lr": 0.1},
        },
        "trainer": {
            "callbacks": [{"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "loss"}}]
        },
    }


def test_data_sources_of_the_previous_release_get_their_types(tmp_path, caplog):
    text = "data: {train: [{path: a.csv}, {items: 3}, {questions: 4}], validation: [{type: Manifest, path: b.csv}]}"
    data = read_experiment(write(tmp_path, old=text) / "old.yaml")["data"]
    assert [source["type"] for source in data["train"]] == ["Manifest", "SandboxEdits", "SandboxQuestions"]
    assert data["validation"] == [{"type": "Manifest", "path": "b.csv"}]
    assert "without a type" in caplog.text


def test_renamed_options_are_read_with_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(experiment.RENAMED_KEYS, "model.old_weighting", "model.new_weighting")
    text = "model: {type: LitKiwi, old_weighting: {factor: 3}, lr: 1}"
    assert read_experiment(write(tmp_path, old=text) / "old.yaml") == {
        "model": {"type": "LitKiwi", "new_weighting": {"factor": 3}, "lr": 1}
    }
    assert "model.old_weighting has been renamed to model.new_weighting" in caplog.text


def test_the_loss_weighting_size_and_callbacks_of_the_previous_release_are_read(tmp_path):
    text = """
    model: {class_path: LitKiwi, init_args: {emphasis: {class_path: OnChanges, init_args: {half: 0.2}}, max_pixels: 8}}
    trainer: {callbacks: [{class_path: kiwi.training.before_after.BeforeAfter, init_args: {items: 4}}]}
    data: {max_pixels: 8}
    """
    assert read_experiment(write(tmp_path, old=text) / "old.yaml") == {
        "model": {"type": "LitKiwi", "loss_weighting": {"type": "OnChanges", "half": 0.2}},
        "trainer": {"callbacks": [{"type": "BeforeAfter", "items": 4}]},
        "data": {"max_pixels": 8},
    }


def test_renamed_specs_and_fields_have_their_current_names_at_any_depth(caplog):
    @dataclass(frozen=True, kw_only=True)
    class Solver(Spec, ABC):
        @abstractmethod
        def build(self): ...

    @dataclass(frozen=True, kw_only=True)
    class HeunSolver(Solver, formerly=("Heun2",)):
        order: int = renamed_from("degree", default=2)

        def build(self): ...

    @dataclass(frozen=True, kw_only=True)
    class SolverConfig(Spec):
        solver: Solver = HeunSolver()
        others: list[Solver] | None = None

    old = {"solver": {"type": "Heun2", "degree": 3}, "others": ["Heun2", {"degree": 1}]}
    new = {"solver": {"type": "HeunSolver", "order": 3}, "others": ["HeunSolver", {"order": 1}]}
    assert with_current_names(SolverConfig, old) == new
    assert override(SolverConfig(), {"solver.degree": 5}).solver == HeunSolver(order=5)
    assert "HeunSolver.degree has been renamed to HeunSolver.order" in caplog.text


@pytest.mark.parametrize(
    ("text", "code", "told"),
    [
        ("model: {3: 4}", "wrong-type", "model.3"),
        ("data: {train: [{type: Manifest, path: a.csv, on: 1}]}", "wrong-type", "data.train.True"),
        ("trainer: [1]", "wrong-type", "trainer"),
        ("previews: 3", "wrong-type", "previews"),
        ("data: x", "wrong-type", "data"),
        ("model: {class_path: LitVae, init_args: [1]}", "wrong-type", "init_args"),
        ("data: {train: {type: Manifest, path: a.csv}}", "wrong-type", "data.train is not a list"),
        ("data: {train: [a.csv]}", "wrong-type", "path: a.csv"),
        ("model: {max_pixels: 9}\ndata: {max_pixels: 8}", "duplicate-field", "data.max_pixels"),
        ("trainer:\n  max_steps: 1\n  devices: 1\n  max_steps: 2", "unreadable-file", "'max_steps' occurs twice"),
        ("trainer:\n  max_steps: 1\n  devices: 1\n  max_steps: 2", "unreadable-file", "lines 2 and 4"),
        ("model: {optim: {lr: 1}}\nmodel: {optim: {lr: 2}}", "unreadable-file", "lines 1 and 2"),
    ],
)
def test_a_malformed_configuration_is_reported_with_its_place(tmp_path, text, code, told):
    with pytest.raises(KiwiError, check=lambda error: error.code == code) as caught:
        read_experiment(write(tmp_path, e=text) / "e.yaml")
    assert told in str(caught.value)


def test_groups_whose_fields_are_commented_out_are_absent_and_merged_keys_may_be_replaced(tmp_path):
    text = "trainer:\nmodel:\n  # type: LitVae\ndata: {train: null}\nx: &x {a: 1, b: 2}\nprevious: {<<: *x, b: 3}"
    configuration = read_experiment(write(tmp_path, e=text) / "e.yaml")
    assert configuration.keys() == {"data", "x", "previous"}
    assert configuration["previous"] == {"a": 1, "b": 3}


def test_the_old_and_the_new_name_of_a_field_cannot_both_be_given():
    @dataclass(frozen=True, kw_only=True)
    class Weighted(Spec):
        power: float = renamed_from("exponent", default=1.0)

    for read in (lambda data: from_dict(Weighted, data), lambda data: with_current_names(Weighted, data)):
        with pytest.raises(SpecError, check=lambda error: error.code == "duplicate-field"):
            read({"type": "Weighted", "power": 1.0, "exponent": 2.0})
