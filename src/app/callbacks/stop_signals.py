"""Ctrl-C and SIGTERM: the first one lets the step finish, the second ends the process at once."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

NAMES = {signal.SIGINT: "ctrl-C", signal.SIGTERM: "SIGTERM"}


class Stopped(SystemExit):
    """A run that a signal has ended; its code is what a shell expects of it: 130 or 143.

    Attributes:
        signal: which one.
        step: the newest that is saved; 0 or None when there is none.
    """

    def __init__(self, number: signal.Signals, step: int | None) -> None:
        super().__init__(128 + number)
        self.signal, self.step = number, step


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """Until training begins, ctrl-C and SIGTERM end the command in one line; then what was there before is back.

    Lightning answers a KeyboardInterrupt with exit status 1 and no word, and a SIGTERM, once it has finished what it is
    at, with status 0 and no word (2.6.6). Its handler calls the one that it finds.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(signal.Signals(number), None)

    before = {number: signal.signal(number, stop) for number in NAMES}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopSignals:
    """Notes the first SIGINT or SIGTERM; from then on the system's own handling is back, which is the end.

    Lightning's handlers are not used: its SIGTERM ends between two micro-batches, in the middle of a step, and its
    ctrl-C in the middle of one (2.6.6). It puts back those it found when the run ends, which takes these away.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def install(self) -> None:
        """Begins to listen."""
        for number in NAMES:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        for each in NAMES:
            signal.signal(each, signal.SIG_DFL)
        # Written past Python's buffers, which the handler may have interrupted. The first characters put back the
        # cursor that a progress bar has hidden: a second ctrl-C would leave the terminal without one.
        cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
        said = "this step or validation is finished and saved first; once more ends at once"
        os.write(2, f"{cursor}\n{NAMES[self.received]}: {said}\n".encode())
