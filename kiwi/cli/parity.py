"""`kiwi parity DIR`: hold the package's numbers against golden vectors of the published model."""

from __future__ import annotations

from pathlib import Path

from kiwi import console
from kiwi.cli import parser
from kiwi.errors import InputError


def main(argv: list[str]) -> int:
    """Compare every output of every case; 0 when all agree, 1 when one does not."""
    options = parser(
        "parity",
        "Compare this package's numbers with golden vectors of the published model: every output of every case that "
        "this version computes, one line a case with the largest absolute difference. Exit code 1 when an output is "
        "beyond 1e-4 or missing; cases that this version does not compute are listed and do not count.",
    )
    options.add_argument("dir", type=Path, help="folder of NAME.json + NAME.safetensors, such as tests/golden")
    options.add_argument("--case", action="append", metavar="NAME", help="only this case; may be repeated")
    options.add_argument("--all-outputs", action="store_true", help="one line an output instead of one a case")
    arguments = options.parse_args(argv[1:])

    from kiwi.parity.cases import CASES
    from kiwi.parity.golden import TOLERANCE, compare_case, load_case

    found = sorted(file.stem for file in arguments.dir.glob("*.json") if file.with_suffix(".safetensors").exists())
    wanted = arguments.case or found
    if not found or not set(wanted) <= set(found):
        raise InputError(f"no such golden cases in {arguments.dir}", got=", ".join(found) or "none", wanted="NAME.json")
    chosen = [name for name in CASES if name in wanted]
    verdicts = [compare_case(load_case(arguments.dir / f"{name}.json"), CASES[name]) for name in chosen]
    if arguments.all_outputs:
        each = [(v.case, name, f"{d:.1e}") for v in verdicts for name, d in v.differences.items()]
        console.table("", ("case", "output", "difference"), each)
    rows: list[tuple[object, ...]] = [
        (v.case, len(v.differences), f"{v.worst[1]:.1e}", v.worst[0], _word(v.passed)) for v in verdicts
    ]
    rows += [(name, "-", "-", "-", "not computed") for name in sorted(set(wanted) - set(CASES))]
    console.table("", ("case", "outputs", "largest difference", "at", f"within {TOLERANCE:g}"), rows)
    return 0 if verdicts and all(v.passed for v in verdicts) else 1


def _word(passed: bool) -> str:
    return "yes" if passed else "NO"
