"""What a person types into ``python -m app chat``: lines, their history, ctrl-C and parameters."""

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from app.errors import ConfigError, DataError

_BLOCK = '"""'


@contextmanager
def on_interrupt(action: Callable[[], None]) -> Iterator[None]:
    """Within it ctrl-C calls ``action`` instead of breaking into a running step, and typed keys are not echoed."""
    before = signal.signal(signal.SIGINT, lambda *_: action())
    try:
        with _no_echo():
            yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _no_echo() -> Iterator[None]:
    """Keeps a terminal from writing typed keys (and ^C) into a display that is being redrawn."""
    try:
        import termios
    except ImportError:  # Windows: the console echoes only while a line is read.
        yield
        return
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    quiet = [*before]
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(sys.stdin, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


@contextmanager
def line_history(path: Path) -> Iterator[None]:
    """Line editing with the lines typed before, kept in ``path``; where Python has no readline (Windows), neither."""
    try:
        import readline
    except ImportError:
        yield
        return
    with suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(1000)
    try:
        yield
    finally:
        # A history that cannot be kept is no reason to fail at the end of a talk.
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(path)


def read_input() -> str:
    """One input: a line, lines that end in a backslash, or a block between two lines of three quotes."""
    line = input("› ")
    if line.strip() == _BLOCK:
        lines: list[str] = []
        while (line := input("… ")).strip() != _BLOCK:
            lines.append(line)
        return "\n".join(lines)
    lines = []
    while line.endswith("\\"):
        lines.append(line[:-1])
        line = input("… ")
    return "\n".join([*lines, line])


@contextmanager
def only_utf8(where: str) -> Iterator[None]:
    """Around reading and encoding a text: bytes that are not UTF-8 stop the one, or as lone surrogates the other.

    Raises:
        DataError: there were such bytes.
    """
    try:
        yield
    except UnicodeError as fault:
        remedy = "convert it, such as with iconv -f latin1 -t utf-8"
        raise DataError("the text is not UTF-8", where=where, remedy=remedy) from fault


def home_expanded(path: Path, *, where: str) -> Path:
    """The path with ``~`` or ``~name`` replaced by that user's folder.

    Raises:
        ConfigError: nobody knows that folder.
    """
    try:
        return path.expanduser()
    except RuntimeError as fault:
        raise ConfigError(
            f"the home folder in {path} is not known", where=where, remedy="write the path out, from / on"
        ) from fault


def parse_parameter(text: str) -> tuple[str, Any]:
    """``name=value`` as a sampling option; values are JSON, and ``none`` stands for null.

    Raises:
        ConfigError: it is no option, or its value is not of the option's type.
    """
    name, _, given = text.partition("=")
    kinds: dict[str, tuple[type, ...]] = {
        "temperature": (int, float),
        "top_k": (int,),
        "top_p": (int, float),
        "min_p": (int, float),
        "repetition_penalty": (int, float),
        "frequency_penalty": (int, float),
        "presence_penalty": (int, float),
        "seed": (int, type(None)),
        "max_tokens": (int,),
        "stop": (list,),
    }
    if name not in kinds:
        raise ConfigError(f"there is no option {name!r}", where="/params", remedy=f"use one of: {', '.join(kinds)}")
    value: Any = given
    with suppress(ValueError):
        value = json.loads("null" if given == "none" else given)
    if type(value) not in kinds[name]:
        raise ConfigError(
            f"{name} cannot be {given!r}",
            where="/params",
            remedy="write numbers plainly, seed=none, stop='[\"END\"]'",
        )
    return name, tuple(value) if isinstance(value, list) else value
