"""`kiwi parity DIR`: check numerical parity with the published implementation."""

from kiwi import console
from kiwi.cli import parse
from kiwi.parity import TOLERANCE, ParityOptions, check_parity
from kiwi.tables import Table


def main(argv: list[str]) -> int:
    """Print the largest difference of each case and return the exit code: 0 if all cases passed, 1 otherwise."""
    options = parse(ParityOptions, argv[0], argv[1:])
    report = check_parity(options)
    if options.all_outputs:
        outputs = [(r.case, name, f"{d:.1e}") for r in report.results for name, d in r.differences.items()]
        console.table(Table("", ("case", "output", "difference"), outputs))
    rows: list[tuple[object, ...]] = [
        (r.case, len(r.differences), f"{r.worst[1]:.1e}", r.worst[0], "yes" if r.passed else "NO")
        for r in report.results
    ]
    rows += [(name, "-", "-", "-", "not computed") for name in report.not_computed]
    header = ("case", "outputs", "largest difference", "in output", f"within {TOLERANCE:g}")
    console.table(Table("", header, rows))
    return 0 if report.passed else 1
