import ast
import logging
import os
from pathlib import Path

import huggingface_hub
import pytest

import kiwi
from kiwi import shipped
from kiwi.__main__ import main
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


def test_a_request_to_the_hub_is_logged_before_it_is_made_and_not_made_offline(monkeypatch, caplog, tmp_path):
    calls = []

    def snapshot_download(repository, local_files_only, **_):
        calls.append(local_files_only)
        assert local_files_only or any(repository in record.getMessage() for record in caplog.records)
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with caplog.at_level(logging.INFO), pytest.raises(CheckpointError, match="no network"):
        locate("owner/name", "VAE", "pass a path")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match="--offline"):
        locate("owner/name", "VAE", "pass a path")
    assert calls == [False, True]


def test_offline_holds_for_every_command_and_its_child_processes(monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "0")
    assert main(["--version", "--offline"]) == 0
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_a_folder_with_a_pipe_for_a_config_is_rejected_before_it_is_read(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointError, check=lambda error: error.code == "unreadable-file"):
        locate(str(tmp_path), "MLLM", "pass a path")


def test_every_from_pretrained_of_transformers_forbids_code_from_the_model():
    own = {"KiwiEditor", "cls"}
    for file in Path(kiwi.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            if is_call and node.func.attr == "from_pretrained" and ast.unparse(node.func.value) not in own:
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert keywords.get("trust_remote_code") == "False", f"{file}:{node.lineno}"
