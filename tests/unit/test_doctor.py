"""python -m kiwi doctor compares the installation with kiwi's package metadata."""

import importlib.metadata
import json
import sys

import pytest

from kiwi import doctor
from kiwi.__main__ import main
from kiwi.errors import InputError


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """Install fake metadata of kiwi-video, with other requirements, before the real one on the path."""

    def install(*requirements):
        folder = tmp_path / "kiwi_video-9.9.dist-info"
        folder.mkdir()
        lines = ["Metadata-Version: 2.1", "Name: kiwi-video", "Version: 9.9", "Requires-Python: >=3.11"]
        lines += ["Provides-Extra: moon", "Provides-Extra: dev"]
        lines += [f"Requires-Dist: {requirement}" for requirement in requirements]
        (folder / "METADATA").write_text("\n".join(lines) + "\n")
        monkeypatch.syspath_prepend(str(tmp_path))

    return install


def test_a_requirement_is_compared_with_the_installed_version():
    version = importlib.metadata.version("numpy")
    parts = doctor.check_requirements(["numpy>=2.0", "rich>=999", "kiwi-no-such-package>=1"], [])
    assert [(part.name, part.status, part.specifier) for part in parts] == [
        ("numpy", "ok", ">=2.0"),
        ("rich", "wrong version", ">=999"),
        ("kiwi-no-such-package", "missing", ">=1"),
    ]
    assert parts[0].installed == version
    assert parts[2].installed is None


def test_optional_dependencies_have_their_extra_and_other_platforms_are_skipped():
    requirements = [
        'ruff>=0.1; extra == "test"',
        'numpy; sys_platform == "no-such-system"',
        'kiwi-video[test]; extra == "dev"',
    ]
    parts = doctor.check_requirements(requirements, ["test", "dev"])
    assert [(part.name, part.extra) for part in parts] == [("ruff", "test")]


def test_a_native_package_that_does_not_import_is_reported(tmp_path, monkeypatch):
    (tmp_path / "av.py").write_text("raise OSError('libavcodec.so is missing')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "av", raising=False)
    (part,) = doctor.check_requirements(["av>=1"], [])
    assert part.status == "does not import: libavcodec.so is missing"
    assert not part.ok


def test_the_fix_is_a_pip_command_for_unsatisfied_dependencies():
    parts = doctor.check_requirements(["numpy", "rich>=999", 'kiwi-no-such-package; extra == "moon"'], ["moon"])
    commands = doctor.fix_commands(parts)
    assert commands["required"] == 'pip install --upgrade "rich>=999"'
    assert commands["moon"] in ('pip install -e ".[moon]"', 'pip install "kiwi-video[moon]"')


def test_satisfied_dependencies_give_no_command():
    assert doctor.fix_commands(doctor.check_requirements(["numpy"], [])) == {}


def test_json_prints_the_record_and_exit_code_0_means_that_all_requirements_are_satisfied(distribution, capsys):
    distribution("numpy>=2.0", 'kiwi-no-such-package>=1; extra == "moon"')
    assert main(["doctor", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    parts = {part["name"]: part for part in record["dependencies"]}
    assert set(parts) == {"python", "numpy", "kiwi-no-such-package", "libx264"}
    assert parts["numpy"]["status"] == parts["python"]["status"] == parts["libx264"]["status"] == "ok"
    assert parts["kiwi-no-such-package"]["extra"] == "moon"
    assert record["ok"] is True
    assert set(record["fixes"]) == {"moon"}
    assert record["hardware"]["cores"] >= 1
    assert record["disk_free_bytes"] > 0


def test_a_missing_requirement_gives_exit_code_1_and_the_command_that_installs_it(distribution, capsys):
    distribution("kiwi-no-such-package>=1")
    assert main(["doctor"]) == 1
    out, err = capsys.readouterr()
    assert "missing" in out
    assert 'required: pip install --upgrade "kiwi-no-such-package>=1"' in out
    assert err.startswith("error: requirements are missing")


def test_the_installation_lists_every_package_that_kiwi_requires():
    record = doctor.check_installation()
    names = {part["name"] for part in record["dependencies"] if part["extra"] is None}
    chosen = {"torch", "lightning", "transformers", "torchmetrics", "lpips", "av", "einops", "tensorboard"}
    assert chosen | {"jsonargparse", "deepspeed", "diffusers", "python", "libx264"} <= names
    assert record["ok"], [part for part in record["dependencies"] if part["extra"] is None and part["status"] != "ok"]


def test_a_source_tree_that_is_not_installed_raises_with_the_command_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "DISTRIBUTION", "kiwi-video-not-installed")
    with pytest.raises(InputError, match="pip install -e"):
        doctor.check_installation()
