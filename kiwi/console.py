"""Terminal output with rich: messages, tables and progress bars. No other module writes to the terminal.

Results go to stdout, everything else (progress, notes, errors) to stderr, so that a command's output can be piped.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

out = Console(soft_wrap=True, highlight=False, emoji=False)
err = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)

T = TypeVar("T")


def print(message: str) -> None:
    """Write a line of a command's result to stdout, literally (without interpreting markup)."""
    out.print(escape(message))


def note(message: str) -> None:
    """Write a line about progress or other details to stderr."""
    err.print(f"[dim]{escape(message)}[/dim]")


def error(message: str) -> None:
    """Write an error message to stderr."""
    err.print(f"[bold red]error:[/bold red] {escape(message)}")


def table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]], note: str = "") -> None:
    """Print a table to stdout, with a note below it; columns of numbers are right-aligned."""
    out.print(_build_table(title, header, rows, out.width), soft_wrap=False)
    if note:
        out.print(escape(note), style="dim")


@contextmanager
def live_table() -> Iterator[Callable[[Sequence[str], Iterable[Sequence[object]]], None]]:
    """Show a table on stderr that is updated in place by calling the yielded function with a header and rows.

    Nothing is printed if stderr is not a terminal.
    """
    with Live(console=err, transient=True, auto_refresh=False) as display:

        def update(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
            if err.is_terminal:
                display.update(_build_table("", header, rows, err.width), refresh=True)

        yield update


def _build_table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]], width: int) -> Table:
    cells = [[str(cell) for cell in row] for row in rows]
    grid = Table(title=escape(title) if title else None, title_justify="left", header_style="bold")
    widths = [max(map(cell_len, column)) for column in zip(header, *cells, strict=True)]
    with_lines, without_lines = sum(widths) + 3 * len(widths) + 1, sum(widths) + len(widths) - 1
    if without_lines <= width < with_lines:  # without lines, the table fits and no words are broken
        grid.box, grid.show_edge, grid.padding = SIMPLE_HEAD, False, 0
    for column, name in enumerate(header):
        numeric = bool(cells) and all(_is_number(row[column]) for row in cells)
        grid.add_column(escape(name), justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        grid.add_row(*(escape(cell) for cell in row))
    return grid


@contextmanager
def progress_bar(description: str, total: int | None) -> Iterator[Callable[[], None]]:
    """Show a progress bar on stderr (count, elapsed and remaining time); call the yielded function after every step."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err) as display:
        task = display.add_task(escape(description), total=total)
        yield lambda: display.advance(task)


def progress(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Iterate over items with a progress bar on stderr."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    if total == 0:
        return
    with progress_bar(description, total) as advance:
        for item in items:
            yield item
            advance()


def setup_logging() -> None:
    """Send log records to stderr: kiwi's from level INFO, those of other packages from level WARNING."""
    handler = RichHandler(console=err, show_path=False, show_time=False, markup=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler], force=True)
    logging.getLogger("kiwi").setLevel(logging.INFO)


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", ""))
    except ValueError:
        return False
    return True
