"""``python -m app completion``: a script that completes commands and options in bash or zsh.

The script is made once, from the very parsers that read the command lines, and asks Python nothing afterwards.
"""

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import jsonargparse
from jsonargparse._link_arguments import ActionLink

from app.commands import run_command

PROGRAM = "app"
BASH = """
_python_m_app() {
  if [[ "${COMP_WORDS[1]}" == -m && "${COMP_WORDS[2]}" == app && $COMP_CWORD -gt 2 ]]; then
    COMP_WORDS=("${COMP_WORDS[@]:2}")
    COMP_CWORD=$((COMP_CWORD - 2))
    _shtab_app app "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
  elif declare -F _python >/dev/null; then
    _python "$@"
  fi
}
complete -o bashdefault -o default -F _python_m_app python python3 py
"""
ZSH = """
_python_m_app() {
  if [[ "${words[2]}" == -m && "${words[3]}" == app && $CURRENT -gt 3 ]]; then
    words=("${(@)words[3,-1]}")
    (( CURRENT -= 2 ))
    _shtab_app
  elif (( $+functions[_python] )); then
    _python
  else
    _files
  fi
}
compdef _python_m_app python python3 py
"""
"""The program is two words behind ``python``; other uses of ``python`` complete as they did."""


def completion(shell: Literal["bash", "zsh"] = "bash") -> int:
    """Prints a script that completes python -m app; put it where your shell reads it.

    bash: python -m app completion --shell bash >> ~/.bash_completion

    zsh: python -m app completion --shell zsh >> ~/.zshrc (behind compinit)

    Args:
        shell: whose script.
    """
    print(script(shell))
    return 0


def script(shell: Literal["bash", "zsh"]) -> str:
    """The completion script, of every command that there is."""
    made: str = command_tree().get_completion_script(f"shtab-{shell}")
    if shell == "bash":
        return made + BASH
    # The script's last lines are for a file that zsh loads by the name of the command it completes.
    return made[: made.index("typeset -A opt_args")] + ZSH


def command_tree() -> jsonargparse.ArgumentParser:
    """Each command's own parser under one, those of a command's kinds under that command."""
    # The table of commands stands above this layer: it is read by name.
    table = importlib.import_module("app.__main__")
    root = jsonargparse.ArgumentParser(prog=PROGRAM)
    commands = root.add_subcommands(required=False, dest="command")
    for name, (target, text) in table.COMMANDS.items():
        module = importlib.import_module(target.split(":")[0])
        if target == table.TRAINER:
            parser = parser_of(module, [name])._subcommands_action._name_parser_map[name]
        elif hasattr(module, "KINDS"):
            parser = jsonargparse.ArgumentParser()
        else:
            parser = parser_of(module, [])
        parser.description = parser.description or text
        # Options that fit fills in from others are listed there as arguments, with names that no shell takes.
        parser._actions = [action for action in parser._actions if not isinstance(action, ActionLink)]
        commands.add_subcommand(name, parser)
        if hasattr(module, "KINDS"):
            kinds = parser.add_subcommands(required=False, dest="kind")
            for kind in module.KINDS:
                kinds.add_subcommand(kind, parser_of(module, [kind]))
    return root


class _Found(BaseException):
    """Carries a parser out of the command that made it, past every handler of errors."""

    def __init__(self, parser: Any) -> None:
        self.parser = parser


def parser_of(module: Any, argv: Sequence[str]) -> Any:
    """The parser that a command makes for its arguments; the command itself does not run."""
    with _handed_over():
        try:
            module.main(argv)
        except _Found as found:
            return found.parser
    raise AssertionError(f"{module.__name__} parses nothing")


@contextmanager
def _handed_over() -> Iterator[None]:
    """Parsers give themselves up instead of parsing."""

    def parse_args(self: Any, *args: Any, **kwargs: Any) -> None:
        raise _Found(self)

    before = jsonargparse.ArgumentParser.parse_args
    jsonargparse.ArgumentParser.parse_args = parse_args  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        jsonargparse.ArgumentParser.parse_args = before  # type: ignore[method-assign]


def main(argv: Sequence[str]) -> int:
    if argv and argv[0] in ("bash", "zsh"):
        argv = ["--shell", *argv]
    return run_command(completion, argv, name="completion", stays="the script")
