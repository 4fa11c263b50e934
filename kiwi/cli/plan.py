"""`kiwi plan SIZE`: parameters and operations of an editor, by part or by variant, without weights."""

from kiwi import console
from kiwi.cli import parse
from kiwi.tables import Table
from kiwi.training.plan import Plan, PlanOptions, plan


def main(argv: list[str]) -> int:
    """Count parameters and operations, and print a table."""
    options = parse(PlanOptions, argv[0], argv[1:])
    costs = plan(options)
    if options.variants is None:
        _print_parts(costs)
    else:
        _print_variants(costs)
    return 0


def _print_parts(costs: Plan) -> None:
    (budget,), video = costs.budgets, costs.workload
    rows = [
        (part, _format_millions(count), _format_millions(budget.total_trainable({part} & costs.train_parts)))
        for part, count in budget.parameters.items()
    ]
    trainable = budget.total_trainable(costs.train_parts)
    rows.append(("all", _format_millions(budget.total_parameters), _format_millions(trainable)))
    console.table(Table("", ("part", "parameters (M)", "trainable (M)"), rows))
    console.print(
        f"{video.frames} frames of {video.height}x{video.width}: {budget.tokens:,} tokens, {budget.context:,} context "
        f"tokens, {_format_flops(budget.denoising_step_flops)} per denoising step, "
        f"{_format_flops(budget.conditioning_flops)} once per edit"
    )


def _print_variants(costs: Plan) -> None:
    first = costs.budgets[0]
    rows = [
        (
            label or "(no changes)",
            _format_millions(budget.total_parameters),
            f"{budget.total_parameters - first.total_parameters:+,}",
            _format_millions(budget.total_trainable()),
            f"{budget.tokens:,}",
            f"{budget.context:,}",
            f"{budget.denoising_step_flops / 1e12:,.2f}",
            f"{budget.denoising_step_flops / first.denoising_step_flops:.3f}",
        )
        for label, budget in zip(costs.labels, costs.budgets, strict=True)
    ]
    parameters = ("parameters (M)", "difference from first", "trainable (M)")
    header = ("variant", *parameters, "tokens", "context", "TFLOP per denoising step", "ratio to first")
    console.table(Table("", header, rows))


def _format_millions(count: int) -> str:
    return f"{count / 1e6:,.1f}"


def _format_flops(flops: float) -> str:
    unit, prefix = (1e12, "T") if flops >= 1e11 else (1e9, "G")
    return f"{flops / unit:,.2f} {prefix}FLOP"
