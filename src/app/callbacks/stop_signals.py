"""Ctrl-C and SIGTERM: the first one lets the step finish, the second ends the process at once."""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

NAMES = {signal.SIGINT: "ctrl-C", signal.SIGTERM: "SIGTERM"}


class Stopped(SystemExit):
    """A run that a signal has ended; its code is what a shell expects of it: 130 or 143.

    Attributes:
        signal: which one.
        step: optimizer steps done and saved; None when training had not begun.
    """

    def __init__(self, number: signal.Signals, step: int | None) -> None:
        super().__init__(128 + number)
        self.signal, self.step = number, step


class StopSignals:
    """Notes the first SIGINT or SIGTERM; from then on the system's own handling is back, which is the end.

    Lightning's handlers are not used: its SIGTERM ends between two micro-batches, in the middle of a step, and its
    ctrl-C in the middle of one (2.6.6).
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.training = False
        self._before: dict[signal.Signals, Any] = {}

    def install(self, *, training: bool) -> None:
        """Begins to listen; again, after Lightning has put its own handlers in place."""
        self.training = training
        if threading.current_thread() is threading.main_thread():
            for number in NAMES:
                before = signal.signal(number, self._handle)
                self._before.setdefault(number, before)

    def remove(self) -> None:
        """Puts back what was there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        received = signal.Signals(number)
        if not self.training:
            raise Stopped(received, None)
        self.received = received
        for other in NAMES:
            signal.signal(other, signal.SIG_DFL)
        # Written past Python's buffers, which the handler may have interrupted. The first characters put back the
        # cursor that a progress bar has hidden: a second ctrl-C would leave the terminal without one.
        cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
        text = f"{cursor}\n{NAMES[received]}: this step is finished and saved first; once more ends at once\n"
        os.write(2, text.encode())
