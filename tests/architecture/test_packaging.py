"""The wheel holds the whole package, and the metadata says what it is and how to cite it."""

import os
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
import yaml

import kiwi


@pytest.fixture(scope="module")
def wheel(root, tree, tmp_path_factory):
    """The wheel, built from a copy so that no build folder is left in the source tree."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for path in tree:
        name = path.relative_to(root)
        if name.parts[0] in ("kiwi", "benchmarks") or len(name.parts) == 1:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy / name)
    for link in (path for path in (root / "kiwi").rglob("*") if path.is_symlink()):  # the benchmarks' definitions
        (copy / link.relative_to(root)).symlink_to(link.readlink())
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out)]
    process = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stdout + process.stderr
    (file,) = out.glob("*.whl")
    return zipfile.ZipFile(file)


def test_the_wheel_holds_every_file_of_the_package(wheel, tree, root):
    package = {str(p.relative_to(root)) for p in tree if p.relative_to(root).parts[0] == "kiwi"}
    assert {"kiwi/py.typed", "kiwi/__main__.py", "kiwi/cli/__init__.py", "kiwi/models/__init__.py"} <= package
    assert package - set(wheel.namelist()) == set()


def test_the_wheel_holds_nothing_but_the_package(wheel):
    top_level = {name.partition("/")[0] for name in wheel.namelist()}
    assert top_level == {"kiwi", f"kiwi_video-{kiwi.__version__}.dist-info"}


def test_an_installed_wheel_finds_the_benchmarks_without_torch(wheel, tmp_path):
    wheel.extractall(tmp_path / "installed")
    code = (
        "import sys; from kiwi.__main__ import main; from kiwi.bench.suites import read_published_rows as rows; "
        "from kiwi.bench.suites import DEFINITIONS, read_suite; "
        "assert str(DEFINITIONS).startswith(sys.argv[1]), DEFINITIONS; "
        "assert len(rows(read_suite('openve'))) == 12; "
        "assert not any(main(['bench', 'rubrics', 'show', name]) for name in ('openve', 'refvie', 'sandbox')); "
        "assert 'torch' not in sys.modules"
    )
    installed = str(tmp_path / "installed")
    process = subprocess.run(
        [sys.executable, "-c", code, installed], cwd=tmp_path, env=os.environ | {"PYTHONPATH": installed},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert "Physical Integration & Tracking: <1 to 5>" in process.stdout


def test_the_metadata_of_the_wheel_names_licence_version_and_command(wheel):
    info = f"kiwi_video-{kiwi.__version__}.dist-info"
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert re.search(r"^License-Expression: Apache-2\.0$", metadata, re.MULTILINE)
    assert re.search(rf"^Version: {re.escape(kiwi.__version__)}$", metadata, re.MULTILINE)
    assert "kiwi = kiwi.__main__:main" in wheel.read(f"{info}/entry_points.txt").decode()
    assert f"{info}/licenses/LICENSE" in wheel.namelist()


def test_every_folder_of_code_is_a_package(root):
    folders = {path.parent for path in (root / "kiwi").rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_the_citation_file_names_this_software_and_the_paper(root):
    citation = yaml.safe_load((root / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "license"} <= set(citation)
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == kiwi.__version__
    assert citation["license"] == "Apache-2.0"
    (paper,) = citation["references"]
    assert {"type", "title", "authors"} <= set(paper)
    assert paper["title"] == "Kiwi-Edit: Versatile Video Editing via Instruction and Reference Guidance"
    assert (paper["year"], paper["url"]) == (2026, "https://arxiv.org/abs/2603.02175")


def test_the_licence_is_apache_2(root):
    text = (root / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert text.count("\n") > 190


def test_the_readme_and_ci_name_the_same_test_command(root):
    command = 'pip install -e ".[test]" && python -m pytest -n logical --maxprocesses 8 --dist loadfile'
    assert command in (root / "README.md").read_text()
    steps = [part.strip() for part in command.split("&&")]
    script = (root / ".ci" / "run").read_text().replace("pip install -qq", "pip install")
    assert all(step in script for step in steps)


def test_the_dev_extra_is_the_test_extra(setup_cfg):
    assert setup_cfg["options.extras_require"]["dev"].strip() == "kiwi-video[test]"
