"""`kiwi plan SIZE`: what an editor costs, part by part or variant by variant; no weights needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from kiwi import console
from kiwi.cli import changes, parser
from kiwi.errors import InputError

if TYPE_CHECKING:
    from kiwi.models.budget import Workload
    from kiwi.models.config import KiwiConfig

MULTIPLES = {"5b": 32, "14b": 16, "1.3b": 16}
"""Published sizes, and what heights and widths must be multiples of."""

_WHAT = """Count the parameters and floating-point operations of an editor; no weights are needed.

Operations are those of the DiT, forward, for one sample (a multiplication and an addition are two): of one denoising
step, and of what is computed once an edit. The MLLM's and the VAE's are not among them."""


def main(argv: list[str]) -> int:
    """Count, print a table."""
    options = parser(argv[0], _WHAT)
    options.add_argument("size", choices=MULTIPLES, help="published size: a DiT, and the VAE and MLLM that go with it")
    options.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="change a choice, such as source=NoSource"
    )
    options.add_argument("--variants", type=Path, metavar="YAML", help="a row for each entry of overrides in this file")
    options.add_argument("--frames", type=int, default=81, help="frames of the video, 4k + 1")
    options.add_argument("--height", type=int, default=704, help="of the video, in pixels")
    options.add_argument("--width", type=int, default=1280, help="of the video, in pixels")
    options.add_argument("--references", type=int, default=1, help="reference images")
    arguments = options.parse_args(argv[1:])
    multiple = MULTIPLES[arguments.size]
    frames, height, width = arguments.frames, arguments.height, arguments.width
    if frames < 1 or (frames - 1) % 4 or min(height, width) < 1 or height % multiple or width % multiple:
        raise InputError(
            "the video does not fit the model",
            got=f"{frames} frames of {height}x{width}",
            wanted=f"4k + 1 frames, height and width multiples of {multiple}",
        )
    if arguments.references < 0:
        raise InputError("--references cannot be negative", got=arguments.references)
    variants = [{}] if arguments.variants is None else _read_variants(arguments.variants)

    from kiwi.models.budget import Workload
    from kiwi.models.config import KiwiConfig
    from kiwi.spec import override

    work = Workload(frames=frames, height=height, width=width, references=arguments.references)
    baseline = override(KiwiConfig.untrained(arguments.size), changes(arguments.set))
    configs = [override(baseline, variant) for variant in variants]
    if arguments.variants is None:
        _by_part(baseline, work)
    else:
        _by_variant(baseline, configs, work)
    return 0


def _by_part(config: KiwiConfig, work: Workload) -> None:
    from kiwi.models.budget import count

    budget = count(config, work)
    rows = [(part, _millions(size), _millions(budget.learning[part])) for part, size in budget.parameters.items()]
    console.table("", ("part", "parameters (M)", "learning (M)"), rows)
    console.say(
        f"{budget.tokens:,} tokens, {budget.context:,} of context: {budget.step_flops / 1e12:,.1f} TFLOP a step, "
        f"{budget.edit_flops / 1e12:,.2f} TFLOP once an edit"
    )


def _by_variant(baseline: KiwiConfig, configs: list[KiwiConfig], work: Workload) -> None:
    from kiwi.models.budget import count
    from kiwi.spec import diff

    budgets = [count(config, work) for config in console.progress(configs, "counting")]
    first, rows = budgets[0], []
    for config, budget in zip(configs, budgets, strict=True):
        changed = [f"{path} = {new}" for path, (_, new) in diff(baseline, config).items()]
        total, before = sum(budget.parameters.values()), sum(first.parameters.values())
        rows.append(
            (
                ", ".join(changed) or "(as published)",
                _millions(total),
                f"{total - before:+,}",
                _millions(sum(budget.learning.values())),
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
