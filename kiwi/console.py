"""Terminal output with rich: messages, tables and progress bars. No other module writes to the terminal.

Results go to stdout, everything else (progress, notes, errors) to stderr, so that a command's output can be piped.
Control characters in texts, which names and error messages of other packages may contain, are shown as escapes.
"""

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

import rich.progress
import rich.table
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.logging import RichHandler
from rich.markup import escape as escape_markup

from kiwi.printable import escape_controls, escape_line
from kiwi.tables import Table

# Python sets a stream to None if the parent process has closed it (`>&-`). A file in its place also prevents the next
# file that is opened from getting the number of the stream, and with it what other libraries print.
for _stream in ("stdout", "stderr"):
    if getattr(sys, _stream) is None:
        setattr(sys, _stream, open(os.devnull, "w"))  # noqa: PTH123, SIM115
# Tables in a file or pipe are not squeezed into the 80 columns that rich assumes there.
_FILE_WIDTH = 160
out = Console(soft_wrap=True, highlight=False, emoji=False, width=None if sys.stdout.isatty() else _FILE_WIDTH)
err = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)

T = TypeVar("T")

_format_warning = warnings.formatwarning


def escape(text: str) -> str:
    """Escape rich's markup and control characters, so that text of any origin is printed literally."""
    return escape_markup(escape_controls(text))


def print(message: str) -> None:
    """Write a line of a command's result to stdout, literally (without interpreting markup)."""
    out.print(escape(message))


def note(message: str) -> None:
    """Write a line about progress or other details to stderr."""
    err.print(f"[dim]{escape(message)}[/dim]")


def error(message: str) -> None:
    """Write an error message to stderr."""
    err.print(f"[bold red]error:[/bold red] {escape(escape_line(message))}")


def table(content: Table) -> None:
    """Print a table to stdout, with its note below it."""
    out.print(_build_grid(content, out.width), soft_wrap=False)
    if content.note:
        out.print(escape(content.note), style="dim")


@contextmanager
def live_table() -> Iterator[Callable[[Table], None]]:
    """Show a table on stderr that each call of the yielded function replaces; print nothing if it is no terminal."""
    with Live(console=err, transient=True, auto_refresh=False) as display:

        def update(content: Table) -> None:
            if err.is_terminal:
                display.update(_build_grid(content, err.width), refresh=True)

        yield update


def _build_grid(content: Table, width: int) -> rich.table.Table:
    """Lay out a table; columns of numbers are right-aligned."""
    cells = [[escape_line(cell) for cell in row] for row in content.cells()]
    title = escape(content.title) if content.title else None
    grid = rich.table.Table(title=title, title_justify="left", header_style="bold")
    widths = [max(map(cell_len, column)) for column in zip(content.header, *cells, strict=True)]
    with_lines, without_lines = sum(widths) + 3 * len(widths) + 1, sum(widths) + len(widths) - 1
    if without_lines <= width < with_lines:  # without lines, the table fits and no words are broken
        grid.box, grid.show_edge, grid.padding = SIMPLE_HEAD, False, 0
    for name, numeric in zip(content.header, content.numeric_columns(), strict=True):
        grid.add_column(escape(name), justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        grid.add_row(*map(escape, row))
    return grid


@contextmanager
def progress_bar(description: str, total: int | None) -> Iterator[Callable[[], None]]:
    """Show a progress bar on stderr (count, elapsed and remaining time); call the yielded function after every step."""
    times = rich.progress.TimeElapsedColumn(), rich.progress.TimeRemainingColumn()
    columns = "{task.description}", rich.progress.BarColumn(), rich.progress.MofNCompleteColumn(), *times
    with rich.progress.Progress(*columns, console=err) as display:
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


class _PrintableRecord(logging.LogRecord):
    """A log record of any package, whose message shows control characters as escapes in every handler."""

    def getMessage(self) -> str:
        return escape_controls(super().getMessage())


def setup_logging() -> None:
    """Send log records to stderr: kiwi's from level INFO, those of other packages from level WARNING.

    Control characters in log records, in warnings and in the tracebacks of bugs are shown as escapes.
    """
    handler = RichHandler(console=err, show_path=False, show_time=False, markup=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler], force=True)
    logging.getLogger("kiwi").setLevel(logging.INFO)
    logging.setLogRecordFactory(_PrintableRecord)
    warnings.formatwarning = lambda *args, **kwargs: escape_controls(_format_warning(*args, **kwargs))
    sys.excepthook = lambda *exception: sys.stderr.write(
        escape_controls("".join(traceback.format_exception(*exception)))
    )
