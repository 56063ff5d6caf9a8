"""How far long work is: a callable that the library tells, and a terminal bar behind it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from app.terminal import progress_bars

if TYPE_CHECKING:
    from rich.progress import TaskID

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, how much of it is done, and how much there is."""


def no_progress(stage: str, done: int, total: int) -> None:
    """Says nothing."""


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """One bar a stage."""
    tasks: dict[str, TaskID] = {}
    with progress_bars() as display:

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = display.add_task(stage, total=max(total, 1))
            display.update(tasks[stage], completed=min(done, max(total, 1)))

        yield tell
