"""Translate between kiwi's short form of configurations and jsonargparse, and shorten jsonargparse's error messages."""

import functools
import re
import typing
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import yaml

from kiwi.data.datamodule import EditData
from kiwi.errors import format_choices
from kiwi.experiment import read_experiment, to_short_form, with_current_keys, with_current_names
from kiwi.spec import Spec, abstract_specs, allowed_names
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
            hints = {
                name: hint for cls in classes for name, hint in typing.get_type_hints(vars(cls)["__init__"]).items()
            }
            current[group] = {
                name: with_current_names(hints.get(name), value) for name, value in configuration[group].items()
            }
    return current


def translate_argv_for_jsonargparse(argv: Sequence[str]) -> list[str]:
    """Convert the configuration files and values in arguments to current names and to jsonargparse's form."""
    pending = list(argv)
    translated = []
    while pending:
        name, separator, value = pending.pop(0).partition("=")
        is_option = name in ("--config", "-c") or (name.startswith("--") and "." in name and not name.endswith(".help"))
        if is_option and not separator and pending and not pending[0].startswith("--"):
            separator, value = "=", pending.pop(0)
        if name in ("--config", "-c"):
            # Any other value may be an inline configuration, which jsonargparse accepts too.
            is_file = value.endswith((".yaml", ".yml"))
            if is_file:
                configuration = with_class_paths(_rename_specs_and_fields(read_experiment(value)))
                value = yaml.safe_dump(configuration, sort_keys=False)
            translated += ["--config", value]
        elif is_option and separator:
            translated.append(_translate_option(name.removeprefix("--"), value))
        else:
            translated.append(name + separator + value)
    return translated


def _translate_option(path: str, text: str) -> str:
    """Convert an option such as `model.config.source={type: NoSource}` to jsonargparse's form."""
    keys = path.split(".")
    if keys[0] in GROUPS:
        keys = ["type" if key == "class_path" else key for key in keys if key != "init_args"]
    value: Any = text
    if text.startswith(("{", "[")):
        with suppress(yaml.YAMLError):
            value = yaml.safe_load(text)
    nested = functools.reduce(lambda inner, key: {key: inner}, reversed(keys), to_short_form(value))
    node: Any = _rename_specs_and_fields(with_current_keys(nested))
    current_keys = []
    for _ in keys:
        ((key, node),) = node.items()
        current_keys.append("class_path" if key == "type" and keys[0] in GROUPS else key)
    if not isinstance(node, str):
        node = yaml.safe_dump(with_class_paths(node), default_flow_style=True, width=10**6).strip()
    return f"--{'.'.join(current_keys)}={node}"


def explain_parse_error(message: str) -> str:
    """Shorten jsonargparse's error message to one sentence; for an unknown name, list the valid ones."""
    flat = re.sub(r"\s+", " ", message).strip()
    keys = re.findall(r'Parser key "([\w.]+)"', flat)
    path = ".".join(keys[1:] or keys)
    if unknown := re.search(r"Expected a dot import path string: ([\w.]+)", flat):
        classes = CALLBACKS if path.startswith("trainer.") else MODULES
        names = allowed_names(base) if (base := _find_spec_base(path)) else [cls.__name__ for cls in classes]
        return f"{path} has no choice named {unknown[1]!r}. Expected: {format_choices(names, unknown[1])}"
    if unrecognised := re.search(r"[Uu]nrecognized arguments: (\S+)", flat):
        return f"there is no option {unrecognised[1]}"
    # The last message about the innermost option states the reason; the text after it repeats the input.
    reason = flat.split(f'"{keys[-1]}": ')[-1] if keys else flat
    reason = re.split(r" - Expected a <class 'NoneType'>| Given value type", reason)[0]
    reason = re.sub(r"- Expected a path but .* either not accessible or invalid - ", "", reason)
    return f"{reason} (at {path})" if path else reason


def _find_spec_base(path: str) -> type[Spec] | None:
    """The base class of the specs that an option such as config.source.scale or data.augmentation accepts."""
    names = path.split(".")
    group = names.pop(0) if names[0] in GROUPS else "model"
    callables: list[Any] = [vars(cls)["__init__"] for cls in GROUPS[group]]
    base: type[Spec] | None = None
    for name in names:
        hints = (typing.get_type_hints(function).get(name) for function in callables)
        base = next((hint for hint in hints if isinstance(hint, type) and issubclass(hint, Spec)), None)
        if base is None:
            return None
        callables = [base, *(Spec._registry[choice] for choice in allowed_names(base))]
    return base
