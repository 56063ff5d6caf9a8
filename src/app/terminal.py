"""What people see beside results: one style of progress bars, one of tables, and ``--quiet``, which leaves both out.

Bars move on stderr of a terminal only, not where TERM is dumb; NO_COLOR (no-color.org) is rich's to obey.
"""

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn
    from rich.table import Table

_quiet = ContextVar("quiet", default=False)
_open: "ContextVar[Progress | None]" = ContextVar("open", default=None)


def is_quiet() -> bool:
    """Whether only results, warnings and errors are wanted."""
    return _quiet.get()


@contextmanager
def quieted(on: bool) -> Iterator[None]:
    """``--quiet`` inside: no bars, and of the application's log only warnings."""
    if not on:
        yield
        return
    log = logging.getLogger("app")
    level, before = log.level, _quiet.set(True)
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)
        _quiet.reset(before)


def progress_display(*columns: "ProgressColumn") -> "Progress":
    """A display of bars with time gone and time left, not begun; it stays empty where no bars are wanted.

    Args:
        columns: more of them, before the times.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    return Progress(
        TextColumn("[bold]{task.description:<24}"),
        BarColumn(),
        TaskProgressColumn(),
        *columns,
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=is_quiet() or not console.is_interactive,
    )


@contextmanager
def progress_bars() -> "Iterator[Progress]":
    """The display that is open, or one for as long as this lasts: two at once would write over each other."""
    if (outer := _open.get()) is not None:
        yield outer
        return
    with progress_display() as display:
        before = _open.set(display)
        try:
            yield display
        finally:
            _open.reset(before)


def make_table(*columns: str, right: Collection[str] = (), title: str = "", head: bool = True) -> "Table":
    """An empty table: a line under its head and no frame.

    Args:
        columns: their names.
        right: those of numbers, which stand at the right.
        title: above it.
        head: whether the names show.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        title=title or None, title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=(0, 2, 0, 0),
        show_header=head,
    )  # fmt: skip
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table
