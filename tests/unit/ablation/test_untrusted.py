"""No entry of a study, model folder, benchmark or manifest runs code or sets options that it may not set."""

import json
import sys

import pytest
import yaml

from kiwi.ablation.study import read_study
from kiwi.bench.measurement import BenchmarkMeasurement
from kiwi.bench.options import BenchmarkOptions
from kiwi.bench.suites import read_items, read_suite
from kiwi.checkpoints.folder_config import read_folder_config
from kiwi.data.manifest import read_manifest
from kiwi.errors import InputError, KiwiError
from kiwi.evaluation.measurement import parse_options
from kiwi.evaluation.sandbox_measure import SandboxMeasurement
from kiwi.media.run_dir import read_record
from kiwi.models.config import KiwiConfig
from kiwi.spec import from_dict
from kiwi.training.cli_arguments import find_import
from kiwi.training.fit import FitOptions
from kiwi.training.plan import PlanOptions, plan

CLASS = "writes_on_import.Thing"
AS_DICT = {"class_path": CLASS, "init_args": {}}
OPTIONS = [
    {"model.config.source": CLASS},
    {"model.config.source": AS_DICT},
    {"model.config.source": str(AS_DICT)},
    {"model.config.source.class_path": CLASS},
    {"model.config.source": {"type": CLASS}},
    {"model.config": {"source": CLASS}},
    {"model": {"init_args": {"config": {"source": {"scale": AS_DICT}}}}},
    {"model": AS_DICT},
    {"model.class_path": CLASS},
    {"data.train": [AS_DICT]},
    {"data.train": [{"type": CLASS, "path": "a.csv"}]},
    {"trainer.callbacks": [AS_DICT]},
    {"trainer.callbacks": CLASS},
    {"trainer.callbacks+": CLASS},
    {"trainer.callbacks": f"class_path: {CLASS}"},
    {"trainer": {"logger": CLASS}},
    {"trainer.logger": CLASS},
    {"trainer.strategy": CLASS},
    {"trainer.plugins": [CLASS]},
    {"trainer.profiler": AS_DICT},
    {"optimizer": CLASS},
    {"lr_scheduler": AS_DICT},
    {"trainer.callbacks": [{"class_path": "lightning.pytorch.callbacks.LambdaCallback"}]},
]


@pytest.fixture(autouse=True)
def imported(tmp_path, monkeypatch):
    """Path of the file that a module writes when it is imported."""
    (tmp_path / "modules").mkdir()
    code = f"open({str(tmp_path / 'IMPORTED')!r}, 'w').close()\nclass Thing: pass\n"
    (tmp_path / "modules" / "writes_on_import.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    yield
    assert not (tmp_path / "IMPORTED").exists()
    assert "writes_on_import" not in sys.modules


def never_resolve(options):
    if not any(name in str(options.overrides) for name in ("writes_on", "Lambda", "smuggled")):
        return {"model": {}}
    raise AssertionError("the options reached the command line")


def write_study(folder, **content):
    (folder / "one.yaml").write_text("{}")
    (folder / "study.yaml").write_text(yaml.safe_dump({"stages": {"one": "one.yaml"}, **content}))
    return folder / "study.yaml"


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_study_never_imports_a_class(options, tmp_path):
    grid = {path: [value] for path, value in options.items()}
    for content in ({"arms": [options]}, {"options": options}, {"grid": grid}):
        with pytest.raises(InputError, check=lambda error: error.code == "import-path"):
            read_study(write_study(tmp_path, **content), never_resolve)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("data.train", [{"type": "Manifest", "path": "clips.csv"}]),
        ("data.train", [{"path": "json.csv"}]),
        ("checkpoint.filename", "step.ckpt"),
        ("model.config.source", "AddSource"),
        ("model.config.source", {"type": "AddSource", "scale": "SigmaScale"}),
        ("model.config.source", "kiwi.models.injection.AddSource"),
        ("model.init", "models.v2"),
        ("trainer.precision", "bf16-mixed"),
        ("trainer.max_steps", 3),
        ("trainer.callbacks", None),
    ],
)
def test_names_of_specs_and_files_cannot_be_import_paths(path, value):
    assert find_import(path, value) is None


def test_files_that_hold_only_data_never_import_modules(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"format": 1, "config": {"type": "KiwiConfig", "source": AS_DICT}, "editing": {"type": CLASS}})
    )
    (tmp_path / "variants.yaml").write_text(yaml.safe_dump([{"source": AS_DICT}]))
    (tmp_path / "refvie_bench.yaml").write_text(f"- !!python/object/apply:{CLASS} []")
    (tmp_path / "m.jsonl").write_text(json.dumps({"src_video": AS_DICT, "tgt_video": CLASS, "prompt": "a"}))
    (tmp_path / "run.json").write_text(json.dumps({"name": AS_DICT}))
    for read in (
        lambda: read_folder_config(tmp_path),
        lambda: plan(PlanOptions(size="5b", variants=tmp_path / "variants.yaml")),
        lambda: plan(PlanOptions(size="5b", changes=(f"source={CLASS}",))),
        lambda: read_items(read_suite("refvie"), tmp_path),
        lambda: read_manifest(tmp_path / "m.jsonl"),
        lambda: from_dict(KiwiConfig, {"source": CLASS}),
        lambda: BenchmarkMeasurement.from_study({"openve": {"judge": CLASS}})[0].check(),
    ):
        with pytest.raises(KiwiError):
            read()
    assert read_record(tmp_path / "run.json") == {"name": AS_DICT}


@pytest.mark.parametrize(
    "key",
    ["model=other", "out=x", "--model", "-model", "model other", "model\nout", "model", "no-model", "out", "name", ""],
)
def test_a_measurement_cannot_smuggle_options(key):
    for read in (
        lambda: BenchmarkMeasurement.from_study({"openve": {key: True}}),
        lambda: SandboxMeasurement.from_study({key: True}),
        lambda: parse_options(BenchmarkOptions, {key: "x"}, "s", fixed={"model": "m", "out": "o", "name": "n"}),
    ):
        with pytest.raises(KiwiError, check=lambda error: error.code in ("unknown-field", "reserved-option")):
            read()


@pytest.mark.parametrize(
    "path", ["a=1", "trainer.max_steps=5 --ckpt_path", "seed_everything=3", "a b", "", "-a", "a\n--b", "\0"]
)
def test_the_path_of_an_option_cannot_contain_another_option(path, tmp_path):
    with pytest.raises(InputError, check=lambda error: error.code == "invalid-option"):
        FitOptions(overrides={path: 1})
    with pytest.raises(InputError, check=lambda error: error.code == "invalid-option"):
        read_study(write_study(tmp_path, arms=[{path: "smuggled"}]), never_resolve)


@pytest.mark.parametrize(
    "options",
    [
        {"config": "smuggled.yaml"},
        {"print_config": "smuggled"},
        {"model.help": "smuggled"},
        {"trainer": {"default_root_dir": "smuggled"}},
        {"one.ckpt_path": "smuggled"},
    ],
    ids=str,
)
def test_options_that_the_study_sets_cannot_be_set_inside_others(options, tmp_path):
    with pytest.raises(InputError, check=lambda error: error.code == "reserved-option"):
        read_study(write_study(tmp_path, arms=[options]), never_resolve)
