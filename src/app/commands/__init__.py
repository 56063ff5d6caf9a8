"""One thin file per command that is not LightningCLI's. Each has ``main(argv) -> exit status``."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from app.errors import AppError


def run_command(function: Callable[..., int], argv: Sequence[str], *, name: str) -> int:
    """Calls ``function`` with options parsed from its own signature and docstring.

    Every parameter is an option, types and defaults are the signature's and help texts the docstring's. A fault of the
    user's becomes one message on stderr and status 2.

    Args:
        function: returns the exit status.
        argv: the arguments after the command's name.
        name: of the command, for the help text.
    """
    from jsonargparse import auto_cli

    try:
        parsed: Any = auto_cli(function, args=list(argv), as_positional=True, prog=f"python -m app {name}")
        return int(parsed)
    except AppError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return fault.exit_code
