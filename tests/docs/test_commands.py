"""Every command of the documentation is accepted by its parser, and the cheap ones run."""

import importlib
import re
import shlex
import shutil
from collections import Counter

import pytest
import yaml

import kiwi.cli
from kiwi.__main__ import COMMANDS, main
from kiwi.ablation.study import read_study
from kiwi.bench.suites import SUITES
from kiwi.options import Options
from kiwi.spec import Spec
from kiwi.training import fit
from kiwi.training.cli_arguments import choices_at

from .conftest import PAGES, ROOT, blocks, commands, inline_code, prose

KIWI = ("python", "-m", "kiwi")
TRAINING = ("fit", "validate")
PROGRAMS = {"pip", "python", "tensorboard"}
"""Programs other than kiwi that the documentation calls."""

OTHERS = {"--offline", "--ckpt_path", "--config", "--print_config", "--logdir"}
"""Options of Lightning's command line, and of TensorBoard."""

DOCUMENTED = {command: None for page in PAGES for command in commands(page)}
OURS = [command for command in DOCUMENTED if command.words[:3] == KIWI]


class ParsedError(Exception):
    """Ends a command once its options are parsed."""


@pytest.fixture
def parse_only(monkeypatch):
    """Every command ends as soon as its options are parsed and validated."""
    real = kiwi.cli.parse

    def parse(*arguments):
        raise ParsedError(real(*arguments))

    modules = [importlib.import_module(name) for name in {command.module for command in COMMANDS.values()}]
    for module in (kiwi.cli, *modules):
        if hasattr(module, "parse"):
            monkeypatch.setattr(module, "parse", parse)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """A folder in which commands find the experiments and write their own files."""
    folder = tmp_path_factory.mktemp("documentation")
    for name in ("experiments", "benchmarks", "tests"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "runs").mkdir()
    return folder


def written_config(path):
    """The experiment that a run's config.yaml comes from: the one that writes into its folder."""
    folder = path.removesuffix("/config.yaml")
    for file in sorted((ROOT / "experiments").rglob("*.yaml")):
        experiment = yaml.safe_load(file.read_text())
        if isinstance(experiment, dict) and experiment.get("trainer", {}).get("default_root_dir") == folder:
            return str(file.relative_to(ROOT))
    raise AssertionError(f"no experiment writes {path}")


@pytest.mark.parametrize("command", [c for c in OURS if c.words[3] in TRAINING], ids=str)
def test_every_training_command_is_a_configuration_that_the_parser_accepts(command, page_modules, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    words = [
        written_config(word) if re.fullmatch(r"runs/.*/config\.yaml", word) else word for word in command.words[3:]
    ]
    printing = ["--print_config"] if not {"--print_config", "--model.help"} & set(words) else []
    with pytest.raises(SystemExit) as caught:  # the parser exits after printing
        main([*words, *printing])
    assert caught.value.code == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("command", [c for c in OURS if c.words[3] not in TRAINING], ids=str)
def test_the_arguments_of_every_other_command_are_valid(command, parse_only, elsewhere, monkeypatch):
    monkeypatch.chdir(elsewhere)
    with pytest.raises(ParsedError):
        importlib.import_module(COMMANDS[command.words[3]].module).main(list(command.words[3:]))


@pytest.mark.parametrize(
    "words", ["edit clip.mp4 --instruction Go --out a.mp4 --stepz 3", "bench opennve --data sandbox"]
)
def test_an_unknown_option_or_action_is_an_error(words, parse_only):
    argv = words.split()
    with pytest.raises(kiwi.errors.InputError):
        importlib.import_module(COMMANDS[argv[0]].module).main(argv)


@pytest.mark.parametrize("command", [c for c in DOCUMENTED if c not in OURS], ids=str)
def test_every_other_program_is_installed_with_the_package(command):
    program, *arguments = command.words
    assert program in PROGRAMS
    if program == "pip":
        assert arguments[0] == "install"
    if program == "python" and arguments[0] != "-m":
        assert (ROOT / arguments[0]).is_file()
    if program == "python" and arguments[0] == "-m":
        assert arguments[1] == "pytest"


def test_every_option_of_fit_that_the_training_page_explains_is_accepted(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (table,) = re.findall(r"^\| option \| effect \|\n(?:\|.*\n)+", prose(ROOT / "docs/training.md"), re.MULTILINE)
    options = [code for code in re.findall(r"^\| `([^`]+)`", table, re.MULTILINE) if code.startswith("--")]
    assert len(options) > 5
    words = [word for option in options for word in shlex.split(option)]
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--config", "experiments/first_light/editor.yaml", *words, "--print_config"])
    assert caught.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["init_args"]["config"]["schedule"]["weighting"] == "even"


def test_every_option_in_the_text_is_one_of_a_command():
    for command in COMMANDS.values():
        importlib.import_module(command.module)
    all_options = [spec for spec in Spec._registry.values() if issubclass(spec, Options)]
    known = {name for options in all_options for name in flags(options)} | OTHERS
    for page in PAGES:
        for code in inline_code(page):
            for name in re.findall(r"(?<!\S)--[a-z][\w-]*(?![\w.-])", code):
                assert name in known, f"{page.name}: {code}"


def flags(options):
    """The options of a command as on the command line."""
    if not options.__module__.startswith("kiwi."):
        return []
    return kiwi.cli.build_parser(options, "command")._option_string_actions


def test_the_page_of_variants_names_every_choice_of_the_model():
    rows = re.findall(r"^\| (`.+?) \| .+? \| (.+) \|$", prose(ROOT / "docs/variants.md"), re.MULTILINE)
    assert len(rows) > 8
    for paths, listed in rows:
        named = {name for name in re.findall(r"`(\w+)`", listed) if name in Spec._registry}
        for path in re.findall(r"`([\w.]+)`", paths):
            assert named == set(choices_at(f"model.config.{path}")), path


def test_the_table_of_commands_names_every_command_with_its_options():
    rows = re.findall(r"^\| (`kiwi .+?) \| `([\w.]+)` \| .+ \|$", prose(ROOT / "docs/architecture.md"), re.MULTILINE)
    listed = {
        command: path.rpartition(".")[2] for names, path in rows for command in re.findall(r"`kiwi (.+?)`", names)
    }
    modules = {name: importlib.import_module(command.module) for name, command in COMMANDS.items()}
    expected = {f"{name} {action}" for name, module in modules.items() for action in getattr(module, "ACTIONS", ())}
    expected |= {name for name, module in modules.items() if not hasattr(module, "ACTIONS")} | {"bench SUITE"}
    assert set(listed) == expected - {f"bench {suite}" for suite in SUITES}
    for name, module in modules.items():
        for action, entry in getattr(module, "ACTIONS", {}).items():
            assert listed[f"{name} {'SUITE' if action in SUITES else action}"] == entry.options.__name__


CHEAP = ("sandbox export runs/clips", "sandbox preview", "edit runs/clips", "bench rubrics show", "plan --config")


def test_the_cheap_commands_and_the_python_code_run_as_they_are_printed(elsewhere, monkeypatch):
    monkeypatch.chdir(elsewhere)
    ran = Counter()
    for command in OURS:
        argv = list(command.words[3:])
        for prefix in (prefix for prefix in CHEAP if shlex.join(argv).startswith(prefix)):
            assert main(argv) == 0, command
            ran[prefix] += 1
    assert set(ran) == set(CHEAP)
    assert (elsewhere / "runs/background.mp4").stat().st_size > 0
    for page in PAGES:
        for block in blocks(page, "python") if page.name != "extending.md" else ():  # test_extending.py runs its blocks
            exec(compile(block, page.name, "exec"), {})


@pytest.fixture
def experiments(tmp_path):
    """A copy of the experiments, in which the documentation's files can be put beside them."""
    return shutil.copytree(ROOT / "experiments", tmp_path / "experiments", ignore=shutil.ignore_patterns("pilot"))


def test_the_experiment_of_the_training_page_is_a_configuration(experiments):
    (block,) = blocks(ROOT / "docs/training.md", "yaml")
    file = experiments / "first_light" / "mine.yaml"
    file.write_text(block)
    model = fit.resolve(fit.FitOptions(config=(file,)))["model"]
    assert model["config"]["source"]["scale"] == {"type": "LearnableScale", "bins": 8}
    assert model["config"]["latent"] == {"type": "NoConnector"}


def test_the_study_of_the_ablations_page_is_a_study(experiments):
    (block,) = blocks(ROOT / "docs/ablations.md", "yaml")
    file = experiments / "ablations" / "mine.yaml"
    file.write_text(block)
    study = read_study(file)
    assert len(study.arms) == 1 + 2 + 2  # the base, two arms, and two of the grid
    assert study.metrics[0].name == "sandbox inside"
