"""One thin file per command that is not LightningCLI's. Each has ``main(argv) -> exit status``."""

import inspect
import sys
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

from app.errors import AppError
from app.terminal import quieted


def run_command(function: Callable[..., int | Callable[[], int]], argv: Sequence[str], *, name: str, stays: str) -> int:
    """Calls ``function`` with options parsed from its own signature and docstring.

    Every parameter is an option, types and defaults are the signature's and help texts the docstring's; a truth value
    is set by its bare name (``--check``), a required ``list[str]`` takes all positional arguments, and an option of
    type ``list[str] | None`` takes several values and may be repeated (``--fail-if A --fail-if B``). A fault of the
    user's becomes one message on stderr and status 2.

    Args:
        function: returns the exit status; or a dataclass of options, whose instance is called for it. Kinds of a
            command inherit the options they share.
        argv: the arguments after the command's name.
        name: of the command, for the help text.
        stays: what it prints with --quiet too, which every command has.
    """
    from docstring_parser import parse

    from app.commands.options import CommandParser, add_quiet

    documentation = parse(function.__doc__ or "")
    parameters = inspect.signature(function).parameters.values()
    # jsonargparse reads a list from one argument, as JSON; on a command line people write several.
    many = [p.name for p in parameters if p.annotation == list[str] and p.default is p.empty]
    repeated = [p.name for p in parameters if p.annotation == list[str] | None]
    flags = {f"--{p.name}" for p in parameters if p.annotation is bool} | {"--quiet"}
    parser = CommandParser(prog=f"python -m app {name}", description=documentation.short_description)
    texts = {p.arg_name: p.description for p in documentation.params}
    for parameter in many:
        parser.add_argument(parameter, nargs="+", help=texts.get(parameter))
    for parameter in repeated:
        names = dict.fromkeys((f"--{parameter}", f"--{parameter.replace('_', '-')}"))
        parser.add_argument(*names, nargs="+", action="extend", metavar="TEXT", help=texts.get(parameter))
    add = parser.add_class_arguments if inspect.isclass(function) else parser.add_function_arguments
    add(function, as_group=False, as_positional=False, skip={*many, *repeated})
    add_quiet(parser, stays=stays)
    try:
        parsed: dict[str, Any] = parser.parse_args(_explicit(argv, flags)).as_dict()
        with quieted(parsed.pop("quiet")):
            outcome = function(**parsed)
            return outcome() if callable(outcome) else outcome
    except AppError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return fault.exit_code


def _explicit(argv: Sequence[str], flags: set[str]) -> list[str]:
    """The arguments with ``=true`` behind every flag that no value follows."""
    return [
        f"{argument}=true" if argument in flags and after not in ("true", "false") else argument
        for argument, after in zip_longest(argv, argv[1:])
    ]
