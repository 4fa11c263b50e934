"""`kiwi plan SIZE`: what an editor costs, part by part or variant by variant; no weights needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from kiwi import console
from kiwi.cli import parser
from kiwi.cli.experiments import read_editor
from kiwi.errors import InputError
from kiwi.options import parse_assignments

if TYPE_CHECKING:
    from kiwi.models.budget import Workload
    from kiwi.models.config import KiwiConfig

SIZES = ("5b", "14b", "1.3b")
SIDES = ("frames", "height", "width")

_WHAT = """Count the parameters and floating-point operations of an editor; no weights are needed.

Operations are those of the DiT, forward, for one sample (a multiplication and an addition are two): of one denoising
step, and of what is computed once an edit. The MLLM's and the VAE's are not among them."""


def main(argv: list[str]) -> int:
    """Count, print a table."""
    options = parser(argv[0], _WHAT)
    options.add_argument(
        "size", nargs="?", choices=SIZES, help="published size: a DiT, and the VAE and MLLM that go with it"
    )
    options.add_argument("--config", type=Path, metavar="YAML", help="instead of a size: an experiment of `kiwi fit`")
    options.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="change a choice, such as source=NoSource"
    )
    options.add_argument("--variants", type=Path, metavar="YAML", help="a row for each entry of overrides in this file")
    options.add_argument("--frames", type=int, help="frames of the video, 4k + 1 (default: 81, or the experiment's)")
    options.add_argument("--height", type=int, help="of the video, in pixels (default: 704, or the experiment's)")
    options.add_argument("--width", type=int, help="of the video, in pixels (default: 1280, or the experiment's)")
    options.add_argument("--references", type=int, default=1, help="reference images")
    arguments = options.parse_args(argv[1:])
    if (arguments.size is None) == (arguments.config is None):
        raise InputError("plan counts a size or an experiment", wanted=f"one of {', '.join(SIZES)}, or --config")
    if arguments.references < 0:
        raise InputError("--references cannot be negative", got=arguments.references)
    variants = [{}] if arguments.variants is None else _read_variants(arguments.variants)

    from kiwi.models.budget import with_untrained_parts
    from kiwi.models.config import KiwiConfig
    from kiwi.spec import override

    found = None if arguments.config is None else read_editor(arguments.config)
    config, parts = (KiwiConfig.untrained(arguments.size), None) if found is None else (found.config, found.parts)
    # Changes come first: they may exchange what could not be counted.
    baseline = with_untrained_parts(override(config, parse_assignments(arguments.set)))
    work = _workload(arguments, baseline, None if found is None else found.data)
    configs = [override(baseline, variant) for variant in variants]
    if arguments.variants is None:
        _by_part(baseline, work, parts)
    else:
        _by_variant(baseline, configs, work)
    return 0


def _workload(arguments: Any, config: KiwiConfig, data: Mapping[str, Any] | None) -> Workload:
    """The largest sample of the data, or the published size, unless another one is asked for."""
    from kiwi.models.budget import Workload
    from kiwi.models.vae.wan import NewVae

    assert isinstance(config.vae, NewVae)
    if data is None:
        work = Workload(reference_tokens=config.mllm.limits.max_reference_tokens)
    else:
        work = Workload.of_training(config, [one.max_frames for one in data["train"]], data.get("max_pixels"))
    given = {name: value for name in SIDES if (value := getattr(arguments, name)) is not None}
    work = replace(work, **given, references=arguments.references)
    multiple = config.vae.sizes.spatial_factor * config.dit.patch_size[1]
    whole = all(side > 0 and side % multiple == 0 for side in (work.height, work.width))
    if work.frames < 1 or (work.frames - 1) % 4 or not whole:
        raise InputError(
            "the video does not fit the model",
            got=f"{work.frames} frames of {work.height}x{work.width}",
            wanted=f"4k + 1 frames, height and width multiples of {multiple}",
        )
    return work


def _by_part(config: KiwiConfig, work: Workload, parts: Sequence[str] | None) -> None:
    from kiwi.models.budget import count_budget

    budget = count_budget(config, work)
    learning = {part: size * (parts is None or part in parts) for part, size in budget.trainable.items()}
    rows = [(part, _millions(size), _millions(learning[part])) for part, size in budget.parameters.items()]
    rows.append(("all", _millions(sum(budget.parameters.values())), _millions(sum(learning.values()))))
    console.table("", ("part", "parameters (M)", "learning (M)"), rows)
    console.print(
        f"{work.frames} frames of {work.height}x{work.width}: {budget.tokens:,} tokens, {budget.context:,} of context, "
        f"{budget.step_flops / 1e12:,.1f} TFLOP a step, {budget.edit_flops / 1e12:,.2f} TFLOP once an edit"
    )


def _by_variant(baseline: KiwiConfig, configs: list[KiwiConfig], work: Workload) -> None:
    from kiwi.models.budget import count_budget
    from kiwi.spec import diff

    budgets = [count_budget(config, work) for config in console.progress(configs, "counting")]
    first, rows = budgets[0], []
    for config, budget in zip(configs, budgets, strict=True):
        changed = [f"{path} = {new}" for path, (_, new) in diff(baseline, config).items()]
        total, before = sum(budget.parameters.values()), sum(first.parameters.values())
        rows.append(
            (
                ", ".join(changed) or "(as published)",
                _millions(total),
                f"{total - before:+,}",
                _millions(sum(budget.trainable.values())),
                f"{budget.tokens:,}",
                f"{budget.context:,}",
                f"{budget.step_flops / 1e12:,.2f}",
                f"{budget.step_flops / first.step_flops:.3f}",
            )
        )
    sizes = ("parameters (M)", "against first", "learning (M)")
    console.table("", ("variant", *sizes, "tokens", "context", "TFLOP a step", "ratio"), rows)


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f}"


def _read_variants(file: Path) -> list[dict[str, Any]]:
    try:
        entries = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as problem:
        raise InputError(f"{file} cannot be read", got=str(problem).splitlines()[0]) from problem
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{file} holds no variants", wanted="a list of mappings from dotted paths to values")
    return entries
