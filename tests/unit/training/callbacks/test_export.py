"""The folder of the exported model is checked before training."""

from pathlib import Path

import pytest

from kiwi.errors import InputError
from kiwi.training.callbacks.export import RESERVED_NAMES, ModelExport


@pytest.mark.parametrize("folder", ["", "  ", "../x", "a/../..", "/x", "C:\\x", "a\0b", "./", *RESERVED_NAMES])
def test_a_model_folder_outside_the_run_folder_or_of_a_reserved_name_is_rejected(folder):
    codes = ("invalid-path", "path-outside-folder")
    with pytest.raises(InputError, match=r"--export\.folder", check=lambda error: error.code in codes):
        ModelExport(folder=folder)


@pytest.mark.parametrize("folder", ["model", "models/last", "model..x", "雪"])
def test_a_model_folder_inside_the_run_folder_is_accepted(folder):
    assert ModelExport(folder=folder).folder == folder


def test_a_name_that_is_too_long_is_rejected_before_training(tmp_path: Path):
    export = ModelExport(folder="x" * 300)
    with pytest.raises(InputError, check=lambda error: error.code == "unwritable-folder"):
        export.require_replaceable_folder(tmp_path, None)
