"""What the documentation points to exists: linked pages and headings, files, specs, options."""

import configparser
import importlib
import re

import pytest

from kiwi.__main__ import COMMANDS

from .conftest import CARDS, GUIDES, PAGES, ROOT, blocks, inline_code, prose

ALL = [*PAGES, *GUIDES, *CARDS]
ROOMS = ("kiwi", "experiments", "benchmarks", "tests", "docs", ".ci", ".github")
MAX_README_WORDS = 1100
"""Including tables and commands."""

every_page = pytest.mark.parametrize("page", ALL, ids=lambda page: str(page.relative_to(ROOT)))


def slugs(page):
    """The anchors of a page's headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_every_internal_link_leads_to_a_page_and_a_heading_that_exist(page):
    for target in re.findall(r"\]\(([^)]+)\)", prose(page)):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), target
        assert not anchor or anchor in slugs(linked), target


@every_page
def test_every_file_that_is_named_exists(page):
    if page.name == "CHANGELOG.md":  # it also names what was removed
        return
    for code in inline_code(page):
        if not re.fullmatch(rf"(?:{'|'.join(map(re.escape, ROOMS))})/[\w./*{{}},-]*", code):
            continue
        before, names, after = re.fullmatch(r"([^{]*)(?:\{([^}]*)\})?(.*)", code).groups()
        for name in (names or "").split(","):
            assert list(ROOT.glob(f"{before}{name}{after}".rstrip("/"))), code


def test_every_page_of_the_documentation_is_linked_from_the_readme():
    linked = set(re.findall(r"\]\((docs/[^)#]+)\)", (ROOT / "README.md").read_text()))
    assert linked == {str(page.relative_to(ROOT)) for page in PAGES if page.parent == ROOT / "docs"}


def test_the_picture_of_the_layers_has_every_package_in_the_order_of_the_import_contract():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    layers = re.findall(r"kiwi\.(\w+)", config["importlinter:contract:layers"]["layers"])
    packages = [name for name in layers if (ROOT / "kiwi" / name / "__init__.py").exists()]
    (picture,) = blocks(ROOT / "docs/architecture.md", "mermaid")
    assert re.findall(r"kiwi\.(\w+)", picture) == packages


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= MAX_README_WORDS


@every_page
def test_every_python_name_that_is_written_out_can_be_imported(page):
    if page.name == "CHANGELOG.md":
        return
    for code in inline_code(page):
        if re.fullmatch(r"kiwi(\.\w+)+", code) and not code.endswith(".py"):
            module, _, name = code.rpartition(".")
            try:
                importlib.import_module(code)
            except ImportError:
                assert hasattr(importlib.import_module(module), name), code


@every_page
def test_every_command_that_is_named_exists(page):
    named = {match[1] for code in inline_code(page) if (match := re.match(r"(?:python -m )?kiwi ([a-z]+)", code))}
    assert named <= set(COMMANDS)


def test_every_new_name_in_the_changelog_exists():
    section = prose(ROOT / "CHANGELOG.md").partition("### Renamed in Python\n")[2].partition("###")[0]
    names = {name for cell in re.findall(r"\| ([^|]+) \|$", section, re.MULTILINE) for name in re.findall(r"\w+", cell)}
    assert len(names) > 100
    assert names <= {word for file in (ROOT / "kiwi").rglob("*.py") for word in re.findall(r"\w+", file.read_text())}
