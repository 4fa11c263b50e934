"""python -m kiwi doctor: the installation is compared with the package's own metadata."""

import importlib.metadata
import json
import sys

import pytest

from kiwi import doctor
from kiwi.__main__ import main
from kiwi.errors import InputError


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """Put another kiwi-video with other requirements in front of the installed one."""

    def install(*requirements):
        folder = tmp_path / "kiwi_video-9.9.dist-info"
        folder.mkdir()
        lines = ["Metadata-Version: 2.1", "Name: kiwi-video", "Version: 9.9", "Requires-Python: >=3.11"]
        lines += ["Provides-Extra: moon", "Provides-Extra: dev"]
        lines += [f"Requires-Dist: {requirement}" for requirement in requirements]
        (folder / "METADATA").write_text("\n".join(lines) + "\n")
        monkeypatch.syspath_prepend(str(tmp_path))

    return install


def by_name(parts):
    return {part.name: part for part in parts}


def test_a_requirement_is_compared_with_the_installed_version():
    version = importlib.metadata.version("numpy")
    parts = doctor.check_requirements(["numpy>=2.0", "rich>=999", "kiwi-no-such-package>=1"], [])
    assert [(part.name, part.state, part.wanted) for part in parts] == [
        ("numpy", "fits", ">=2.0"),
        ("rich", "wrong version", ">=999"),
        ("kiwi-no-such-package", "missing", ">=1"),
    ]
    assert parts[0].installed == version
    assert parts[2].installed is None


def test_optional_parts_carry_their_extra_and_other_systems_are_left_out():
    requirements = [
        'ruff>=0.1; extra == "test"',
        'numpy; sys_platform == "no-such-system"',
        'kiwi-video[test]; extra == "dev"',
    ]
    parts = doctor.check_requirements(requirements, ["test", "dev"])
    assert [(part.name, part.extra) for part in parts] == [("ruff", "test")]


def test_a_native_library_that_does_not_import_does_not_fit(tmp_path, monkeypatch):
    (tmp_path / "av.py").write_text("raise OSError('libavcodec.so is missing')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "av", raising=False)
    (part,) = doctor.check_requirements(["av>=1"], [])
    assert part.state == "does not import: libavcodec.so is missing"
    assert not part.fits


def test_the_fix_is_the_pip_command_for_what_does_not_fit():
    parts = doctor.check_requirements(["numpy", "rich>=999", 'kiwi-no-such-package; extra == "moon"'], ["moon"])
    commands = doctor.fixes(parts)
    assert commands["required"] == 'pip install --upgrade "rich>=999"'
    assert commands["moon"] in ('pip install -e ".[moon]"', 'pip install "kiwi-video[moon]"')


def test_nothing_to_fix_gives_no_command():
    assert doctor.fixes(doctor.check_requirements(["numpy"], [])) == {}


def test_json_prints_the_record_and_exit_code_0_means_that_every_required_part_fits(distribution, capsys):
    distribution("numpy>=2.0", 'kiwi-no-such-package>=1; extra == "moon"')
    assert main(["doctor", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    parts = {part["name"]: part for part in record["parts"]}
    assert set(parts) == {"python", "numpy", "kiwi-no-such-package", "libx264"}
    assert parts["numpy"]["state"] == parts["python"]["state"] == parts["libx264"]["state"] == "fits"
    assert parts["kiwi-no-such-package"]["extra"] == "moon"
    assert record["fits"] is True
    assert set(record["fixes"]) == {"moon"}
    assert record["hardware"]["cores"] >= 1
    assert record["disk_free_bytes"] > 0


def test_a_missing_required_part_gives_exit_code_1_and_the_command_that_installs_it(distribution, capsys):
    distribution("kiwi-no-such-package>=1")
    assert main(["doctor"]) == 1
    out, err = capsys.readouterr()
    assert "missing" in out
    assert 'required: pip install --upgrade "kiwi-no-such-package>=1"' in out
    assert err.startswith("error: a required part is missing")


def test_the_real_installation_names_every_library_that_kiwi_is_built_on():
    record = doctor.examine()
    names = {part["name"] for part in record["parts"] if part["extra"] is None}
    chosen = {"torch", "lightning", "transformers", "torchmetrics", "lpips", "av", "einops", "tensorboard"}
    assert chosen | {"jsonargparse", "deepspeed", "diffusers", "python", "libx264"} <= names
    assert record["fits"], [part for part in record["parts"] if part["extra"] is None and part["state"] != "fits"]


def test_a_source_tree_that_is_not_installed_is_refused_with_the_command_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "DISTRIBUTION", "kiwi-video-not-installed")
    with pytest.raises(InputError, match="pip install -e"):
        doctor.examine()
