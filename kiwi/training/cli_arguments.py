"""Translate between kiwi's short form of configurations and jsonargparse, and shorten jsonargparse's error messages."""

import functools
import itertools
import os
import re
import sys
import typing
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import yaml

from kiwi.data.datamodule import EditData
from kiwi.errors import InputError, closest_match, format_choices, repeated_option
from kiwi.experiment import (
    SOURCE_LISTS,
    SOURCES_SYNTAX,
    read_experiment,
    to_short_form,
    update_configuration,
    with_current_keys,
    with_current_names,
)
from kiwi.reading import parse_yaml
from kiwi.spec import LARGEST, Spec, abstract_specs, allowed_names, from_dict
from kiwi.training.callbacks.before_after import BeforeAfter
from kiwi.training.callbacks.edit_quality import EditQuality
from kiwi.training.modules.base import LitModule
from kiwi.training.modules.editor import LitKiwi
from kiwi.training.modules.mllm import LitMllm
from kiwi.training.modules.text_to_video import LitBase
from kiwi.training.modules.vae import LitVae

MODULES: tuple[type[LitModule], ...] = (LitKiwi, LitBase, LitVae, LitMllm)
"""LightningModules that `model.type` can name."""

CALLBACKS = (BeforeAfter,)
"""Callbacks of kiwi that `trainer.callbacks` can name without a module path, because they are imported here."""

GROUPS: dict[str, tuple[type, ...]] = {"model": MODULES, "data": (EditData,), "quality": (EditQuality,)}
"""Option groups that contain specs, and the classes whose constructor arguments they hold."""

_IMPORTING_GROUPS = ("trainer", "optimizer", "lr_scheduler")
"""Option groups of Lightning, where any text may be the import path of a class."""

_LISTS_OF_SPECS = ("--data.train", "--data.validation", "--trainer.callbacks", "--trainer.logger", "--trainer.plugins")
"""Options whose lists replace earlier ones as a whole."""

SEE_HELP = "see `python -m kiwi fit --help`"

_REJECTED_FIELD = (
    r"(?:Group '(?P<group>[\w.]+)' does not accept option '|does not accept option '|Option '"
    r"|[Uu]nrecognized arguments: --)(?P<name>[\w.]+)"
)
"""An option that jsonargparse rejects, in each of its messages about one."""

_BROKEN_CLASS = r"given class_path '((?!kiwi\.)(?:\w+\.)+\w+)': ((?!Parser key).*?)(?= - | Given value|$)"
"""A class outside kiwi that cannot be imported or built, and the reason, in jsonargparse's message."""


def with_class_paths(value: Any) -> Any:
    """Convert a configuration in short form (`kiwi.experiment.to_short_form`) to jsonargparse's form.

    This is the only place where `{type: Name, field: value}` becomes `{class_path: Name, init_args: {field: value}}`.
    """
    if isinstance(value, list):
        return [with_class_paths(item) for item in value]
    if not isinstance(value, dict) or "class_path" in value:
        return value
    fields = {name: with_class_paths(item) for name, item in value.items()}
    if not isinstance(fields.get("type"), str):
        return fields
    name = fields.pop("type")
    spec = Spec._registry.get(name)
    has_no_alternatives = spec is not None and not any(issubclass(spec, base) for base in abstract_specs())
    return fields if has_no_alternatives else {"class_path": name, "init_args": fields}


def _rename_specs_and_fields(configuration: dict[str, Any]) -> dict[str, Any]:
    """Replace former names of specs and of their fields in a configuration by the current names."""
    current = dict(configuration)
    for group, classes in GROUPS.items():
        if isinstance(configuration.get(group), dict):
            hints = {name: hint for cls in classes for name, hint in _hints_of(cls).items()}
            current[group] = {
                name: with_current_names(hints.get(name), value) for name, value in configuration[group].items()
            }
    return current


def translate_argv_for_jsonargparse(argv: Sequence[str]) -> list[str]:
    """Convert the configuration files and values in arguments to current names and to jsonargparse's form.

    Raises:
        KiwiError: an option has no value, a configuration is malformed, or an option is given under two names.
    """
    pending = list(argv)
    translated = []
    names: dict[str, str] = {}
    while pending:
        name, separator, value = pending.pop(0).partition("=")
        is_option = name in ("--config", "-c") or (name.startswith("--") and "." in name and not name.endswith(".help"))
        if is_option and not separator and pending and not pending[0].startswith("--"):
            separator, value = "=", pending.pop(0)
        if (is_option and not separator) or (name in ("--config", "-c") and not value.strip()):
            raise InputError(f"the option {name} has no value", code="missing-value", fix=f"write {name} VALUE")
        if name in ("--config", "-c"):
            configuration = _rename_specs_and_fields(_read_configuration(value))
            configuration = {group: with_class_paths(options) for group, options in configuration.items()}
            for part in (_empty_lists_of_specs(configuration), configuration):
                translated += ["--config", yaml.safe_dump(part, sort_keys=False)] if part else []
        elif is_option:
            option = _translate_option(name.removeprefix("--"), value)
            current = option.partition("=")[0]
            given = name.replace(".init_args", "").replace(".type", ".class_path")
            if (other := names.setdefault(current, given)) != given:
                raise repeated_option(given if other == current else other, current)
            # jsonargparse would complete the entries of a list by those of the previous one, if it is as long.
            is_list = current in _LISTS_OF_SPECS and value.startswith("[")
            translated += [f"{current}=[]", option] if is_list else [option]
        else:
            translated.append(name + separator + value)
    return translated


def _read_configuration(value: str) -> dict[str, Any]:
    """Read the value of --config: a file, or YAML."""
    if value.endswith((".yaml", ".yml", ".json")) or os.path.lexists(value):
        return read_experiment(value)
    try:
        configuration = parse_yaml(value)
    except ValueError as error:
        problem, expected = "the value of --config cannot be read", "a file, or a mapping in YAML"
        raise InputError(problem, code="invalid-option", got=error, expected=expected) from None
    if isinstance(configuration, str):
        raise InputError(f"the configuration {value} does not exist", code="missing-file", fix="check the path")
    return update_configuration(configuration, "the value of --config")


def _empty_lists_of_specs(configuration: dict[str, Any]) -> dict[str, Any]:
    """The lists of specs that a configuration sets, empty; without these, jsonargparse would merge entries of lists."""
    paths = [option.removeprefix("--").split(".") for option in _LISTS_OF_SPECS]
    given = [(group, name) for group, name in paths if isinstance(configuration.get(group, {}).get(name), list)]
    return {group: {name: [] for owner, name in given if owner == group} for group, _ in given}


def _translate_option(path: str, text: str) -> str:
    """Convert an option such as `model.config.source={type: NoSource}` to jsonargparse's form."""
    keys = path.split(".")
    if ".".join(keys[:2]) in SOURCE_LISTS and len(keys) > 2:
        problem = "an entry of a list of data sources cannot be changed alone"
        raise InputError(problem, code="unknown-field", got=path, expected=SOURCES_SYNTAX)
    if keys[0] in GROUPS:
        keys = ["type" if key == "class_path" else key for key in keys if key != "init_args"]
    value: Any = text
    if text.startswith(("{", "[")):
        try:
            value = parse_yaml(text)
        except ValueError as error:
            # What is no YAML at all may be the name of a folder.
            if not isinstance(error.__context__, yaml.YAMLError):
                raise InputError(f"the value of {path} cannot be read", code="invalid-option", got=error) from None
    nested = functools.reduce(lambda inner, key: {key: inner}, reversed(keys), to_short_form(value))
    node: Any = _rename_specs_and_fields(with_current_keys(nested))
    current_keys = []
    for _ in keys:
        ((key, node),) = node.items()
        current_keys.append("class_path" if key == "type" and keys[0] in GROUPS else key)
    if not isinstance(node, str):
        # Text that only looks like a mapping, such as a folder named {x}, stays as it is.
        node = with_class_paths(node)
        node = text if node == value else yaml.safe_dump(node, default_flow_style=True, width=10**6).strip()
    return f"--{'.'.join(current_keys)}={node}"


def require_numbers(value: Any, path: str = "") -> None:
    """Raise an InputError for a number in a parsed configuration that is not finite, or larger than any size or count.

    Arguments of classes outside kiwi, such as those of callbacks, may be any numbers.
    """
    if isinstance(value, dict):
        if str(value.get("class_path", "kiwi.")).startswith("kiwi."):
            for name, item in value.items():
                require_numbers(item, path if name == "init_args" else f"{path}.{name}".lstrip("."))
    elif isinstance(value, list | tuple):
        for item in value:
            require_numbers(item, path)
    elif isinstance(value, int | float) and path != "seed_everything" and not abs(value) <= LARGEST:  # also for NaN
        expected = f"a number up to {LARGEST:,}"
        raise InputError(f"{path} is not finite or too large", code="out-of-range", got=value, expected=expected)


def build_model_specs(model: Mapping[str, Any]) -> dict[str, Spec]:
    """Build the specs in the section `model` of a resolved configuration, whose constructors check their values.

    Raises:
        SpecError: a value is out of range.
    """
    module = next((cls for cls in MODULES if cls.__name__ == model.get("type")), None)
    hints = _hints_of(module) if module is not None else {}
    specs = {name: hint for name, hint in hints.items() if isinstance(hint, type) and issubclass(hint, Spec)}
    return {name: from_dict(spec, model[name], f"model.{name}") for name, spec in specs.items() if name in model}


def explain_parse_error(message: str, options: Iterable[str] = ()) -> InputError:
    """Make a short error of jsonargparse's message; for an unknown name, it lists the valid ones.

    Args:
        message: jsonargparse's message, which can be a page long.
        options: the options of the command, for suggestions.
    """
    flat = re.sub(r"\s+", " ", message).strip()
    keys = re.findall(r'Parser key "([\w.]+)"', flat)
    path = ".".join(keys)
    choices = choices_at(path)
    if unknown := re.search(r"(?:a dot import path string:|Not a valid subclass of \w+. Got value:) (\S+)", flat):
        if choices:
            problem, expected = f"{path} has no choice named {unknown[1]!r}", format_choices(choices, unknown[1])
            return InputError(problem, code="unknown-choice", expected=expected)
    elif choices and "Expected an instantiatable class" in flat:
        expected, fix = format_choices(choices, ""), f"write `type: NAME` there, such as `type: {choices[0]}`"
        return InputError(f"{path} has no type", code="missing-type", expected=expected, fix=fix)
    elif missing := re.search(r"the following arguments are required: ([\w.]+(?:, [\w.]+)*)", flat):
        names = [name.removeprefix("fit.").removeprefix("validate.") for name in missing[1].strip().split(", ")]
        problem = f"no --config file sets {' and '.join(f'{path}.{name}' if path else name for name in names)}"
        of_spec = re.search(r".*given class_path '(?:\w+\.)*(\w+)'", flat)
        file = "--config experiments/first_light/editor.yaml"  # has no fields of specs that a user defines
        example = f"{path}: {{type: {of_spec[1]}, {names[0]}: VALUE}}" if of_spec else file
        fix = f"give {'it' if of_spec else 'one that does'}, such as {example}"
        return InputError(problem, code="missing-option", fix=fix)
    elif rejected := re.search(_REJECTED_FIELD, flat):
        field = f"{rejected['group']}.{rejected['name']}" if rejected["group"] else rejected["name"]
        if owner := re.search(r".*given class_path '(?:\w+\.)*(\w+)'", flat):
            return _unknown_field(owner[1], field, path)
        group, _, name = field.partition(".")
        if len(classes := GROUPS.get(group, ())) == 1:
            return _unknown_field(classes[0].__name__, name, group)
        similar = closest_match(f"--{field}", options)
        return InputError(f"there is no option --{field}", code="unknown-field", expected=similar, fix=SEE_HELP)
    elif broken := re.search(_BROKEN_CLASS, flat):
        problem = f"{path or 'the configuration'} names {broken[1]}, which cannot be imported or built"
        fix = "install the package that it needs, correct its options, or add the folder of its module to PYTHONPATH"
        return InputError(problem, code="missing-module", got=broken[2], fix=fix)
    # The last message about the innermost option states the reason; the text after it repeats the input.
    reason = flat.split(f'"{keys[-1]}": ' if keys else "Errors: - ")[-1]
    reason = re.split(r" - Expected a <class 'NoneType'>| - Not a valid subclass| Given value type", reason)[0]
    reason = re.sub(r"- Expected a path but .* either not accessible or invalid - ", "", reason)
    if wrong := re.search(r"- Expected a (?:<class '(\w+)'>|typing.Literal\[([^]]+)\])", f"- {reason}"):
        got = re.search(r"Got value: (.*)", reason) or re.search(r"Given value: (?!NestedArg)(.*)", flat)
        expected = wrong[1] or f"one of {wrong[2]}"
        return InputError(f"{path} has a wrong value", code="wrong-type", got=got and got[1], expected=expected)
    module = next((cls.__name__ for cls in MODULES if f".{cls.__name__}'" in flat), None)
    fix = f"see `python -m kiwi fit --model.help {module}`" if module else SEE_HELP
    return InputError(f"{path}: {reason}" if path else reason, code="invalid-option", fix=fix)


def _unknown_field(owner: str, field: str, path: str) -> InputError:
    """The error for a field that the class named `owner`, whose options are at `path`, does not have."""
    known = {cls.__name__: cls for cls in (*itertools.chain.from_iterable(GROUPS.values()), *CALLBACKS)}
    classes = [cls] if (cls := Spec._registry.get(owner, known.get(owner))) else []
    *parents, name = field.split(".")
    for parent in parents:
        if not (inner := _types_of_field(classes, parent)):
            name = parent  # the first unknown name
            break
        classes, path = inner, f"{path}.{parent}"
    owners = " or ".join(cls.__name__ for cls in classes) or owner
    fields = sorted({name for cls in classes for name in _hints_of(cls)})
    expected = format_choices(fields, name) if classes else None
    return InputError(f"{owners} has no field {f'{path}.{name}'!r}", code="unknown-field", expected=expected)


def find_import(path: str, value: Any) -> str | None:
    """Find the first import path in the value of an option, which jsonargparse would import; None if there is none.

    Specs that are imported already are found by name, so their paths are not counted.
    """
    *_, key = path.split(".")
    if isinstance(value, str):
        with suppress(ValueError):
            parsed = parse_yaml(value)  # as jsonargparse does
            value = value if parsed is None else parsed
    if isinstance(value, dict):
        found = (find_import(f"{path}.{name}", item) for name, item in value.items() if isinstance(name, str))
        return next(filter(None, found), None)
    if isinstance(value, list):
        return next(filter(None, (find_import(path, item) for item in value)), None)
    if not isinstance(value, str) or not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", value):
        return None
    places = [name for name in path.replace("+", "").split(".") if name not in ("init_args", "dict_kwargs")]
    names_a_class = key in ("class_path", "type") or places[0] in _IMPORTING_GROUPS or choices_at(".".join(places))
    module, _, name = value.rpartition(".")
    is_known = module.partition(".")[0] == "kiwi" or (module in sys.modules and name in Spec._registry)
    return value if names_a_class and not is_known else None


def choices_at(path: str) -> list[str]:
    """Names of the specs, modules or callbacks that an option such as model.config.source.scale accepts."""
    group, *names = path.split(".")
    if path == "trainer.callbacks":
        return [cls.__name__ for cls in CALLBACKS]
    classes: Sequence[type] = GROUPS.get(group, ())
    for name in names:
        classes = _types_of_field(classes, name)
    return [cls.__name__ for cls in classes]


def _types_of_field(classes: Iterable[type], name: str) -> list[type]:
    """The specs that the field `name` of any of these classes accepts."""
    bases = {base: None for cls in classes for base in _spec_bases(_hints_of(cls).get(name))}
    return [Spec._registry[choice] for base in bases for choice in allowed_names(base)]


def _spec_bases(hint: Any) -> list[type[Spec]]:
    """The spec types in a type annotation, such as DataSource in list[DataSource]."""
    if isinstance(hint, type) and issubclass(hint, Spec):
        return [hint]
    return [base for argument in typing.get_args(hint) for base in _spec_bases(argument)]


def _hints_of(cls: type) -> dict[str, Any]:
    """Type annotations of the options of a class: the fields of a spec, or the arguments of a constructor."""
    hints = typing.get_type_hints(cls if issubclass(cls, Spec) else vars(cls)["__init__"])
    return {name: hint for name, hint in hints.items() if name != "return" and not name.startswith("_")}
