"""Options built in Python are checked and converted as those of a command line or a file."""

import sys
from pathlib import Path

import numpy as np
import pytest

from kiwi.ablation import AblateOptions
from kiwi.bench.options import AgreementOptions, BenchmarkOptions
from kiwi.checkpoints import ConvertOptions
from kiwi.editing.files import EditOptions
from kiwi.errors import KiwiError
from kiwi.models.injection import NoSource
from kiwi.sandbox.export import PreviewOptions
from kiwi.training.cache import CacheOptions, fill_cache
from kiwi.training.curves import CurvesOptions
from kiwi.training.fit import FitOptions
from kiwi.training.plan import PlanOptions
from kiwi.training.vocabulary import VocabularyOptions, learn_vocabulary

EDIT = {"video": "a.mp4", "instruction": "Make it snow", "out": "b.mp4"}


def test_text_becomes_a_path_and_a_single_value_a_tuple():
    options = EditOptions(**EDIT, reference="x.png", model=Path("m"), steps=np.int64(3))
    assert (options.video, options.out, options.reference) == (Path("a.mp4"), Path("b.mp4"), (Path("x.png"),))
    assert (options.model, options.steps, type(options.steps)) == ("m", 3, int)
    assert FitOptions(config="a.yaml").arguments() == ["--config", "a.yaml"]
    assert FitOptions(config=["a.yaml", Path("b.yaml")]).config == (Path("a.yaml"), Path("b.yaml"))
    assert AblateOptions(study="s.yaml", seeds=np.arange(3), price=2).seeds == (0, 1, 2)
    assert BenchmarkOptions(suite="openve", metrics="basic").metrics == ("basic",)
    assert AgreementOptions(runs="r").runs == (Path("r"),)


@pytest.mark.parametrize(
    ("options", "values", "code"),
    [
        (EditOptions, EDIT | {"solver": "ddim"}, "unknown-choice"),
        (EditOptions, EDIT | {"steps": True}, "wrong-type"),
        (EditOptions, EDIT | {"instruction": None}, "wrong-type"),
        (EditOptions, EDIT | {"reference": [3]}, "wrong-type"),
        (PlanOptions, {"size": "9b"}, "unknown-choice"),
        (ConvertOptions, {"format": "wann", "src": "a", "dst": "b"}, "unknown-choice"),
        (ConvertOptions, {"format": "wan", "src": "a", "dst": "b", "dtype": "fp8"}, "unknown-choice"),
        (AblateOptions, {"study": "s.yaml", "launcher": "pbs"}, "unknown-choice"),
        (AblateOptions, {"study": "s.yaml", "seeds": "3"}, "wrong-type"),
        (BenchmarkOptions, {"suite": "openve", "gallery": "no"}, "wrong-type"),
        (CacheOptions, {"config": "a.yaml", "out": "c", "only": "latent"}, "unknown-choice"),
        (CacheOptions, {"config": "a.yaml", "out": "c", "dtype": "bf16"}, "unknown-choice"),
        (CurvesOptions, {"runs": None, "out": "c.png"}, "wrong-type"),
        (FitOptions, {"overrides": {3: 4}}, "wrong-type"),
        (FitOptions, {"overrides": ["a"]}, "wrong-type"),
        (PreviewOptions, {"out": "p.png", "items": 2.5}, "wrong-type"),
        (VocabularyOptions, {"out": "v", "words": "many"}, "wrong-type"),
    ],
)
def test_a_value_of_the_wrong_type_or_without_meaning_is_refused(options, values, code):
    with pytest.raises(KiwiError, check=lambda error: error.code == code):
        options(**values)


def test_a_copy_with_changes_is_checked_too():
    with pytest.raises(KiwiError, check=lambda error: error.code == "wrong-type"):
        FitOptions(config="a.yaml").replace(checkpoint=3)


def test_overrides_may_be_specs_paths_and_numbers_of_numpy():
    overrides = {"a": NoSource(), "b": [Path("x")], "c": np.float64(0.5), "d": np.arange(2), "e": {"f": np.int8(2)}}
    assert FitOptions(overrides=overrides).arguments() == [
        "--a={type: NoSource}",
        "--b=[x]",
        "--c=0.5",
        "--d=[0, 1]",
        "--e={f: 2}",
    ]
    with pytest.raises(KiwiError, check=lambda error: error.code == "wrong-type"):
        FitOptions(overrides={"a": object()}).arguments()


@pytest.mark.parametrize("config", [None, "missing.yaml"])
def test_verifying_a_cache_from_python_reads_no_experiment_and_encodes_nothing(config, tmp_path):
    from kiwi.data.feature_cache import EncoderFingerprints, FeatureCache

    FeatureCache.create(tmp_path, EncoderFingerprints(vae="a", mllm="b"), "float32")
    assert fill_cache(CacheOptions(config=config, out=tmp_path, verify=True)) == (0, 0, [])


def test_an_empty_path_is_not_the_current_folder():
    with pytest.raises(KiwiError, check=lambda error: error.code == "empty-path"):
        CurvesOptions(runs=("",), out=Path("curves.png"))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no names that are not Unicode")
def test_a_folder_whose_name_is_not_unicode_is_refused_by_the_library_that_writes_it(tmp_path):
    with pytest.raises(KiwiError, check=lambda error: error.code == "unusable-path"):
        learn_vocabulary(VocabularyOptions(out=tmp_path / "a\udcfb", words=300, items=5))
    assert list(tmp_path.iterdir()) == []
