"""What all command lines share: errors of one message, with the option that was probably meant."""

import difflib
import re
import sys
from typing import Any, NoReturn

from jsonargparse import ArgumentParser


class BriefErrors:
    """Mixed into a parser: an error is one message with a suggestion, not three screens of usage."""

    prog: str

    def error(self, message: str, *args: Any, **kwargs: Any) -> NoReturn:
        """Prints what is wrong with the command line or the YAML, and exits with status 2."""
        assert isinstance(self, ArgumentParser)
        message = re.sub(r"Expected an? <class '(\w+)'>. Got value: None", r"it is required (\1)", message)
        print(f"error: {message}{suggestion(message, option_names(self))}", file=sys.stderr)
        print(f"  help:   {self.prog} --help lists the options", file=sys.stderr)
        raise SystemExit(2)


class CommandParser(BriefErrors, ArgumentParser):
    """The parser of a command that is not LightningCLI's."""


def add_quiet(parser: ArgumentParser, *, stays: str) -> None:
    """Adds ``--quiet``, the same for every command (`app.terminal.quieted`).

    Args:
        parser: the command's.
        stays: what the command prints nevertheless.
    """
    text = f"No progress, tables or explanations. What stays: {stays}; warnings of the log; errors."
    parser.add_argument("--quiet", type=bool, nargs="?", const=True, default=False, help=text)


def option_names(parser: ArgumentParser) -> set[str]:
    """Every option of the parser and of its subcommands, as written in YAML."""
    names = set()
    for action in parser._actions:
        names.add(action.dest)
        for subparser in (getattr(action, "_name_parser_map", None) or {}).values():
            names |= option_names(subparser)
    return names


def suggestion(message: str, known: set[str]) -> str:
    """A line with the option that was probably meant, if the message quotes one that does not exist."""
    for key in re.findall(r"(?:--|['\"])([A-Za-z_][\w.]*)", message):
        close = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
        if close and key not in known:
            return f"\n  remedy: did you mean {close[0]}?"
    return ""
