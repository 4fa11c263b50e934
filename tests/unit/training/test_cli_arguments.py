"""Errors of the command line of `fit`: a wrong name or value is reported with the accepted ones."""

from pathlib import Path

import pytest

from kiwi.errors import InputError, SpecError
from kiwi.spec import Spec, warn_renamed
from kiwi.training.fit import FitOptions, resolve
from kiwi.training.lightning_cli import ParseOnlyCLI, run_cli

EDITOR = "experiments/first_light/editor.yaml"


def rejection(*arguments):
    with pytest.raises((InputError, SpecError)) as caught:
        run_cli(["fit", "--config", EDITOR, *arguments], ParseOnlyCLI)
    message = str(caught.value)
    assert not any(word in message for word in ("class_path", "Union", "subclass", "kiwi.models"))  # of jsonargparse
    return caught.value


WRONG_NAMES = [
    ("config", "sorce", "AddSource", "unknown-field", "'model.config.sorce'", "(did you mean source?)"),
    (
        "config.dit",
        "dimm",
        "3",
        "unknown-field",
        "DiTConfig has no field 'model.config.dit.dimm'",
        "one of activations",
    ),
    ("config", "source", "AddSorce", "unknown-choice", "model.config.source has no", "(did you mean AddSource?)"),
    ("config", "source", "{type: AddSource, skale: 1}", "unknown-field", "AddSource has no field", "scale"),
    ("config", "source", "{type: NoSource, scale: 1}", "unknown-field", "NoSource has no field", "no valid names"),
    ("config", "source", "3", "unknown-choice", "no choice named '3'", "one of AddSource"),
    (
        "config.source",
        "scale",
        "{type: LearnableScale, bin: 3}",
        "unknown-field",
        "LearnableScale has no field 'model.config.source.scale.bin'",
        "bins",
    ),
    ("optim", "schedule", "cosinus", "wrong-type", "model.optim.schedule", "one of 'constant', 'cosine'"),
    ("optim", "lr", "fast", "wrong-type", "model.optim.lr", "float"),
]


@pytest.mark.parametrize(("path", "field", "value", "code", "problem", "expected"), WRONG_NAMES)
@pytest.mark.parametrize("from_file", [True, False], ids=["from a file", "from the command line"])
def test_a_wrong_option_of_the_model_is_reported_with_the_accepted_ones(
    path, field, value, code, problem, expected, from_file, tmp_path
):
    if from_file:
        text = f"{field}: {value}"
        for name in reversed(f"model.{path}".split(".")):
            text = f"{name}: {{{text}}}"
        (tmp_path / "changes.yaml").write_text(text)
        error = rejection("--config", str(tmp_path / "changes.yaml"))
    else:
        error = rejection(f"--model.{path}.{field}={value}")
    assert error.code == code
    assert problem in error.problem
    assert expected in error.expected


@pytest.mark.parametrize(
    ("option", "problem", "expected"),
    [
        ("--model.config.source.skale=1", "AddSource has no field 'model.config.source.skale'", "scale"),
        ("--data.batchsize=3", "EditData has no field 'data.batchsize'", "(did you mean batch_size?)"),
        ("--data.train=[{type: Manifst}]", "data.train has no choice named 'Manifst'", "(did you mean Manifest?)"),
        (
            "--data.train=[{type: Manifest, pth: a.csv}]",
            "Manifest has no field 'data.train.pth'",
            "(did you mean path?)",
        ),
        ("--data.train=[{pth: a.csv}]", "data.train has no type", "one of Manifest"),
        ("--trainer.precision=17", "trainer.precision has a wrong value", "one of 'auto', '32-true'"),
        ("--trainer.callbacks=[{type: BeforeAfter, item: 3}]", "BeforeAfter has no field", "(did you mean items?)"),
    ],
)
def test_wrong_options_of_the_data_and_the_trainer_are_reported_too(option, problem, expected):
    error = rejection(option)
    assert problem in error.problem
    assert expected in error.expected


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--trainer.max_step=3", "--trainer.max_steps"),
        ("--ckpt=last", "--ckpt_path"),
        ("--model.config.dit.num_layer=3", "(did you mean num_layers?)"),
    ],
)
def test_an_abbreviated_option_is_rejected_with_its_full_name(option, expected):
    error = rejection(option)
    assert error.code == "unknown-field"
    assert expected in error.expected


def test_values_of_the_model_are_checked_without_building_it():
    options = FitOptions(config=(Path(EDITOR),), overrides={"model.dropout.source": 2.0})
    with pytest.raises(SpecError) as caught:
        resolve(options)
    assert caught.value.code == "out-of-range"


def test_the_error_for_a_missing_experiment_suggests_one():
    with pytest.raises(InputError, check=lambda error: error.code == "missing-option") as caught:
        run_cli(["fit", "--data.root", "clips"], ParseOnlyCLI)
    assert "--config experiments/first_light/editor.yaml" in caught.value.fix
    assert "model" in caught.value.problem


def test_a_spec_without_a_type_is_reported_with_what_to_write(tmp_path):
    (tmp_path / "e.yaml").write_text("model: {type: LitKiwi, config: {vae: {z_dim: 4}, mllm: NewQwen}}")
    with pytest.raises(InputError, check=lambda error: error.code == "missing-type") as caught:
        run_cli(["fit", "--config", str(tmp_path / "e.yaml")], ParseOnlyCLI)
    assert caught.value.problem == "model.config.vae has no type"
    assert "`type: NewVae`" in caught.value.fix


def test_the_error_for_a_missing_field_of_a_users_spec_has_its_path(tmp_path, monkeypatch):
    (tmp_path / "kiwi_user_weighting.py").write_text(
        "from dataclasses import dataclass\nfrom kiwi.training.loss_weighting import LossWeighting\n\n"
        "@dataclass(frozen=True, kw_only=True)\nclass UserWeighting(LossWeighting):\n    strength: float\n"
        "    def weights(self, target_BCFHW, source_BCFHW): ...\n"
    )
    (tmp_path / "kiwi_broken_weighting.py").write_text("import kiwi_absent_package\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    error = rejection("--model.loss_weighting=kiwi_broken_weighting.UserWeighting")
    assert error.code == "broken-module"
    assert "kiwi_broken_weighting" in error.problem
    assert "kiwi_absent_package" in error.got
    monkeypatch.setattr(Spec, "_registry", dict(Spec._registry))
    error = rejection("--model.loss_weighting=kiwi_user_weighting.UserWeighting")
    assert error.code == "missing-option"
    assert "model.loss_weighting.strength" in error.problem
    assert "first_light" not in error.fix


@pytest.mark.parametrize("folder", ["{x}", "{a, b}", "[x]"])
def test_a_folder_whose_name_looks_like_yaml_keeps_its_name(folder):
    options = FitOptions(config=(Path(EDITOR),), overrides={"trainer.default_root_dir": folder, "data.root": folder})
    cli = run_cli(["fit", "--config", EDITOR, f"--trainer.default_root_dir={folder}"], ParseOnlyCLI)
    assert cli.config["fit"]["trainer"]["default_root_dir"] == folder
    assert resolve(options)["trainer"]["default_root_dir"] == folder


def test_a_removed_option_of_the_previous_release_is_moved_on_the_command_line(caplog):
    warn_renamed.cache_clear()  # other tests may have warned of it
    cli = run_cli(["fit", "--config", EDITOR, "--model.max_pixels=4096"], ParseOnlyCLI)
    assert cli.config["fit"]["data"]["max_pixels"] == 4096
    assert "max_pixels" in caplog.text


@pytest.mark.parametrize(
    "arguments",
    [
        ["--trainer.max_steps"],
        ["--model.optim"],
        ["--data.root", "--data.batch_size", "2"],
        ["--config"],
        ["--config="],
    ],
)
def test_an_option_without_a_value_is_named(arguments):
    error = rejection(*arguments)
    assert error.code == "missing-value"
    assert arguments[0].rstrip("=") in error.problem


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--config", "{trainer: ["], "invalid-option", "--config"),
        (["--config", "{trainer: {max_steps: 1, max_steps: 2}}"], "invalid-option", "'max_steps' occurs twice"),
        (["--config", "{trainer: [1]}"], "wrong-type", "trainer"),
        (["--config", "hello"], "missing-file", "hello"),
        (["--config", "[1]"], "wrong-type", "--config"),
        (["--model.optim={lr: 1.0, lr: 2.0}"], "invalid-option", "model.optim"),
        (["--model.optim={type: 3}"], "wrong-type", "type"),
        (["--seed_everything", "x"], "wrong-type", "seed_everything"),
        (["--model.max_pixels=1024", "--data.max_pixels", "2048"], "duplicate-field", "data.max_pixels"),
    ],
)
def test_malformed_values_of_options_are_named(arguments, code, told):
    error = rejection(*arguments)
    assert error.code == code
    assert told in str(error)


def test_a_configuration_can_be_given_as_yaml_and_an_option_twice():
    text = "{trainer: {max_steps: 7}, model: {class_path: LitKiwi, init_args: {max_pixels: 4096}}}"
    cli = run_cli(["fit", "--config", EDITOR, "--config", text], ParseOnlyCLI)
    assert cli.config["fit"]["trainer"]["max_steps"] == 7
    assert cli.config["fit"]["data"]["max_pixels"] == 4096
    options = ["--model.init_args.optim.lr=0.5", "--model.optim.lr=0.25"]
    cli = run_cli(["fit", "--config", EDITOR, *options], ParseOnlyCLI)
    assert cli.config["fit"]["model"]["init_args"]["optim"]["init_args"]["lr"] == 0.25


@pytest.mark.parametrize("from_file", [True, False], ids=["from a file", "from the command line"])
def test_a_list_of_data_sources_replaces_the_list_of_the_experiment(from_file, tmp_path):
    (tmp_path / "base.yaml").write_text("data: {train: [{type: Manifest, path: a.csv, max_frames: 5, weight: 2.0}]}")
    (tmp_path / "e.yaml").write_text("data: {train: [{type: Manifest, path: b.csv}]}")
    change = ["--config", str(tmp_path / "e.yaml")] if from_file else ["--data.train=[{type: Manifest, path: b.csv}]"]
    cli = run_cli(["fit", "--config", EDITOR, "--config", str(tmp_path / "base.yaml"), *change], ParseOnlyCLI)
    (source,) = cli.config["fit"]["data"]["train"]
    assert source["init_args"].as_dict() == {"path": "b.csv", "max_frames": 81, "weight": None}


def test_a_data_source_can_be_appended_to_the_list_of_the_experiment():
    before = run_cli(["fit", "--config", EDITOR], ParseOnlyCLI).config["fit"]["data"]["train"]
    option = "--data.train+={type: Manifest, path: b.csv}"
    *first, last = run_cli(["fit", "--config", EDITOR, option], ParseOnlyCLI).config["fit"]["data"]["train"]
    assert first == before
    assert last["init_args"]["path"] == "b.csv"


@pytest.mark.parametrize(
    "option",
    [
        "--data.train.max_frames=1",
        "--data.train.init_args.path=b.csv",
        "--data.train=b.csv",
        "--data.train={type: Manifest, path: b.csv}",
        "--data.train=[b.csv]",
        "--data.validation.path=b.csv",
    ],
)
def test_any_other_way_to_set_data_sources_is_told_the_two_that_there_are(option):
    error = rejection(option)
    assert error.code in ("wrong-type", "unknown-field")
    assert "type: Manifest, path: " in error.expected


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("trainer.max_steps", 10**30),
        ("trainer.gradient_clip_val", float("inf")),
        ("checkpoint.every_n_train_steps", 10**12),
        ("model.optim.lr", float("nan")),
        ("model.config.dit.num_layers", 10**30),
        ("data.max_pixels", 10**12),
        ("previews.items", 10**30),
    ],
)
def test_numbers_that_are_not_finite_or_too_large_are_rejected_before_anything_is_built(option, value):
    with pytest.raises(InputError, check=lambda error: error.code in ("out-of-range", "wrong-type")) as caught:
        resolve(FitOptions(config=(Path(EDITOR),), overrides={option: value}))
    assert option in caught.value.problem
