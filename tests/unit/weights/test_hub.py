from pathlib import Path

import pytest

from kiwi import shipped
from kiwi.errors import CheckpointError
from kiwi.weights.hub import locate


@pytest.mark.parametrize("subfolder", ["../other", "a/../../other", "/etc", "..", "C:/x", "..\\other"])
def test_a_subfolder_outside_its_folder_is_rejected(tmp_path, subfolder):
    (tmp_path / "model").mkdir()
    (tmp_path / "other").mkdir()
    for path in (str(tmp_path / "model"), "owner/name"):
        with pytest.raises(CheckpointError, check=lambda error: error.code == "path-outside-folder"):
            locate(path, "VAE", "pass a path", subfolder=subfolder)


def test_a_subfolder_that_is_a_link_is_accepted(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/vae").symlink_to(tmp_path)
    assert locate(str(tmp_path / "model"), "VAE", "pass a path", subfolder="vae") == tmp_path / "model/vae"


def test_a_shipped_model_is_found_by_its_name_unless_a_local_folder_has_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shipped/vae").mkdir(parents=True)
    monkeypatch.setattr(shipped, "FOLDERS", {"sandbox/vae": tmp_path / "shipped/vae"})
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert locate("sandbox/vae", "VAE", "pass a path") == tmp_path / "shipped/vae"
    for other in ("sandbox/other", "sandbox/..", "sandbox/vae/..", "sandbox", "other/vae"):
        with pytest.raises(CheckpointError, check=lambda error: error.code == "missing-model"):
            locate(other, "VAE", "pass a path")
    (tmp_path / "sandbox/vae").mkdir(parents=True)
    assert locate("sandbox/vae", "VAE", "pass a path") == Path("sandbox/vae")


def test_a_local_folder_called_sandbox_replaces_the_shipped_editor_only_if_it_is_a_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shipped/editor").mkdir(parents=True)
    folders = dict.fromkeys(("sandbox", "sandbox/editor"), tmp_path / "shipped/editor")
    monkeypatch.setattr(shipped, "FOLDERS", folders)
    assert (
        locate("sandbox", "model", "pass a path")
        == locate("sandbox/editor", "model", "")
        == tmp_path / "shipped/editor"
    )
    (tmp_path / "sandbox").mkdir()
    assert locate("sandbox", "model", "pass a path") == tmp_path / "shipped/editor"
    (tmp_path / "sandbox/config.json").write_text("{}")
    assert locate("sandbox", "model", "pass a path") == Path("sandbox")


def test_every_shipped_folder_is_in_the_registry():
    assert {path for path in shipped.ROOT.iterdir() if path.is_dir()} == set(shipped.FOLDERS.values())
