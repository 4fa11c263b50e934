"""Rules for the package's files that no linter checks."""

import ast
import importlib.metadata
import re
import sys

import pytest
import yaml
from packaging.requirements import Requirement

from kiwi.__main__ import COMMANDS

MAX_LINES = 350
MACHINE_PATHS = ("work", "opt/dev", "root")


def assert_none(offenders):
    offenders = list(offenders)
    assert not offenders, "\n".join(["these break the rule:", *sorted(offenders)])


def test_no_file_is_longer_than_350_lines(sources):
    counts = {name: len(text.splitlines()) for name, text in sources.items()}
    assert_none([f"{name}: {count} lines" for name, count in counts.items() if count > MAX_LINES])


def test_every_module_has_a_docstring(parsed):
    assert_none([name for name, module in parsed.items() if not ast.get_docstring(module)])


def test_everything_public_has_a_docstring(parsed):
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    public = [
        (name, node)
        for name, module in parsed.items()
        for node in module.body
        if isinstance(node, kinds) and not node.name.startswith("_")
    ]
    assert len(public) > 20
    assert_none([f"{name}: {node.name}" for name, node in public if not ast.get_docstring(node)])


def test_nothing_prints_except_the_console(parsed):
    assert_none(
        f"{name}:{node.lineno}"
        for name, module in parsed.items()
        for node in ast.walk(module)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    )


def test_the_import_contract_lists_exactly_the_modules_that_exist(root, setup_cfg):
    layers = set(re.findall(r"kiwi\.(\w+)", setup_cfg["importlinter:contract:layers"]["layers"]))
    modules = {p.stem for p in (root / "kiwi").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert_none((modules - {"__init__"}) ^ layers)


def test_every_imported_library_is_required(parsed, setup_cfg):
    groups = [setup_cfg["options"]["install_requires"], *setup_cfg["options.extras_require"].values()]
    required = {canonical(Requirement(line).name) for group in groups for line in group.strip().splitlines()}
    distributions = importlib.metadata.packages_distributions()
    imported = {
        (module, name)
        for name, parsed_module in parsed.items()
        for node in ast.walk(parsed_module)
        for module in top_level_imports(node)
        if module not in sys.stdlib_module_names and module != "kiwi"
    }
    missing = {
        f"{name} imports {module}"
        for module, name in imported
        if required.isdisjoint(canonical(distribution) for distribution in distributions.get(module, [module]))
    }
    assert_none(missing)


def top_level_imports(node):
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level:
        return [node.module.partition(".")[0]]
    return []


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_experiment_is_plain_yaml(root):
    for path in sorted((root / "experiments").rglob("*.y*ml")):
        with path.open() as file:
            assert isinstance(yaml.safe_load(file), list if path.stem == "variants" else dict), path


def test_the_examples_of_the_help_name_files_that_exist(root):
    words = [word for command in COMMANDS.values() for word in command.example.split()]
    files = [word for word in words if word.startswith(("experiments/", "benchmarks/", "tests/"))]
    assert_none([file for file in files if not (root / file).exists()])
    assert files


def test_no_file_names_a_path_of_this_machine(tree, root):
    pattern = re.compile(rf"(?<![\w.~*-])/(?:{'|'.join(MACHINE_PATHS)})/".encode())
    assert_none(
        f"{path.relative_to(root)}: {match[0].decode()}"
        for path in tree
        if b"\0" not in (data := path.read_bytes())[:1024] and (match := pattern.search(data))
    )


@pytest.mark.parametrize("folder", MACHINE_PATHS)
def test_the_rule_against_machine_paths_finds_them(folder, tmp_path):
    file = tmp_path / "a.txt"
    file.write_text(f'see "/{folder}/clips"')
    with pytest.raises(AssertionError):
        test_no_file_names_a_path_of_this_machine([file], tmp_path)


def test_every_experiment_parses_as_a_run(root):
    """Every option in every YAML file is one of `fit`, and every spec in it can be built."""
    from kiwi.__main__ import main
    from kiwi.experiment import read_experiment

    files = [file for file in sorted((root / "experiments").rglob("*.yaml")) if file.stem not in ("base", "model")]
    for file in files:
        content = yaml.safe_load(file.read_text())
        if isinstance(content, list) or "stages" in read_experiment(file):  # variants of `plan`, or a study
            continue
        with pytest.raises(SystemExit) as caught:  # the parser exits after printing
            main(["fit", "--config", str(file), "--print_config"])
        assert caught.value.code == 0, file


def test_the_readme_has_no_placeholders(root):
    assert "@@" not in (root / "README.md").read_text()


STEPS = {"forward", "encode", "prepare", "prepare_source", "prepare_reference", "velocity", "compute_velocity", "embed"}
STEPS |= {"add_condition", "remove_added_tokens", "project", "project_context", "queries_for"}
"""Methods of the model's modules in which the data flows."""


def configuration_branches(module):
    """Branches on the module's own configuration or type, as function:line."""
    for function in ast.walk(module):
        if isinstance(function, ast.FunctionDef) and function.name in STEPS:
            for node in ast.walk(function):
                branch = getattr(node, "test", getattr(node, "subject", None))
                names = {n.id for n in ast.walk(branch) if isinstance(n, ast.Name)} if branch else set()
                if names & {"self", "isinstance"}:
                    yield f"{function.name}:{node.lineno}"


def test_no_forward_branches_on_the_configuration(parsed):
    """Another configuration builds another module; every module does one thing."""
    models = {name: module for name, module in parsed.items() if "models/" in name}
    nodes = (node for module in models.values() for node in ast.walk(module))
    assert {node.name for node in nodes if isinstance(node, ast.FunctionDef)} >= STEPS
    assert_none(f"{name}: {line}" for name, module in models.items() for line in configuration_branches(module))


@pytest.mark.parametrize("line", ["if self.use_source: x += 1", "x = 1 if isinstance(x, int) else 2"])
def test_the_rule_against_branches_finds_them(line):
    code = f"class A:\n    def forward(self, x):\n        {line}\n        return x"
    assert list(configuration_branches(ast.parse(code)))
