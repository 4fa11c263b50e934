from pathlib import Path

import pytest

from kiwi.errors import CheckpointError
from kiwi.weights import hub
from kiwi.weights.hub import locate


@pytest.mark.parametrize("subfolder", ["../other", "a/../../other", "/etc", "..", "C:/x", "..\\other"])
def test_a_subfolder_may_not_leave_its_folder(tmp_path, subfolder):
    (tmp_path / "model").mkdir()
    (tmp_path / "other").mkdir()
    for path in (str(tmp_path / "model"), "owner/name"):
        with pytest.raises(CheckpointError, match="leaves"):
            locate(path, "VAE", "name one", subfolder=subfolder)


def test_a_subfolder_may_be_a_link(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/vae").symlink_to(tmp_path)
    assert locate(str(tmp_path / "model"), "VAE", "name one", subfolder="vae") == tmp_path / "model/vae"


def test_a_shipped_model_is_found_by_its_name_and_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shipped/vae").mkdir(parents=True)
    monkeypatch.setattr(hub, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert locate("sandbox/vae", "VAE", "name one") == tmp_path / "shipped/vae"
    for other in ("sandbox/other", "sandbox/..", "sandbox/vae/..", "sandbox", "other/vae"):
        with pytest.raises(CheckpointError, match="there is no VAE"):
            locate(other, "VAE", "name one")
    (tmp_path / "sandbox/vae").mkdir(parents=True)
    assert locate("sandbox/vae", "VAE", "name one") == Path("sandbox/vae")


def test_the_shipped_editor_has_a_short_name_that_only_a_model_takes_from_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shipped/editor").mkdir(parents=True)
    monkeypatch.setattr(hub, "SHIPPED", tmp_path / "shipped")
    assert (
        locate("sandbox", "model", "name one") == locate("sandbox/editor", "model", "") == tmp_path / "shipped/editor"
    )
    (tmp_path / "sandbox").mkdir()
    assert locate("sandbox", "model", "name one") == tmp_path / "shipped/editor"
    (tmp_path / "sandbox/config.json").write_text("{}")
    assert locate("sandbox", "model", "name one") == Path("sandbox")
