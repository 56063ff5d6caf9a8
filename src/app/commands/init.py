"""``python -m app init``: a first configuration, by asking or by options."""

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from app.commands import run_command
from app.errors import ConfigError, MachineError
from app.families import all_families, get_family
from app.terminal import is_quiet


def init(
    family: str | None = None,
    base: str | None = None,
    data: str | None = None,
    gpu: str | None = None,
    run: str | None = None,
    output: Path | None = None,
    overwrite: bool = False,
    yes: bool = False,
) -> int:
    """Writes a commented configuration for your card, model and data, with settings that plan says fit.

    In a terminal it asks for what no option names; elsewhere, or with --yes, the defaults are taken.

    Args:
        family: mistral, llama3, gemma, phi3 or smollm2.
        base: hub id or local folder; by default the family's first model.
        data: a folder that prepare wrote, or raw data.
        gpu: a card such as rtx4060-laptop; by default the one in this machine.
        run: the run directory; by default runs/FAMILY.
        output: the file to write; by default FAMILY.yaml.
        overwrite: replace the file if it exists.
        yes: ask nothing.
    """
    from app.artifact import write_atomic
    from app.commands.plan import choose_gpu, verdict
    from app.plan.gpu import present
    from app.plan.starter import make_starter

    ask = _ask if sys.stdin.isatty() and not yes else _default
    chosen = get_family(family or ask("model family", "mistral", list(all_families())))
    base = base or ask("base model (hub id or folder)", chosen.base_models[0])
    data = data or ask("data (a prepared folder, CSV, JSONL)", "data")
    card = choose_gpu(gpu or (None if present() else ask("GPU", "rtx4060-laptop")))
    run = run or ask("run directory", f"runs/{chosen.name}")
    output = output or Path(ask("write to", f"{chosen.name}.yaml"))
    with _writing(output):
        if output.is_dir():
            example = output / f"{chosen.name}.yaml"
            raise ConfigError(f"{output} is a folder", where="--output", remedy=f"name a file, such as {example}")
        if output.exists() and not overwrite:
            raise ConfigError(
                f"{output} exists already", where="--output", remedy="choose another --output, or add --overwrite"
            )
    starter = make_starter(family=chosen, base=base, data=data, run=run, gpu=card)
    with _writing(output):
        write_atomic(output, starter.text)
    if is_quiet():
        print(output)
        return 0
    from rich.console import Console

    console = Console(highlight=False)
    console.print(f"wrote {output} for {card.name}", soft_wrap=True, markup=False)
    console.print(verdict(starter.estimate), soft_wrap=True)
    typed = shlex.quote(str(output))
    console.print(f"next: python -m app plan --config {typed}", soft_wrap=True, markup=False)
    console.print(f"      python -m app fit --config {typed}", soft_wrap=True, markup=False)
    return 0


@contextmanager
def _writing(output: Path) -> Iterator[None]:
    """Turns what the system says of the file into one message."""
    try:
        yield
    except OSError as fault:
        raise MachineError(
            f"{output} cannot be written: {fault.strerror}",
            where="--output",
            remedy="name a file in a folder that you may write to, on a disk with space",
        ) from fault


def _ask(question: str, default: str, choices: list[str] | None = None) -> str:
    from rich.prompt import Prompt

    return Prompt.ask(question, default=default, choices=choices)


def _default(question: str, default: str, choices: list[str] | None = None) -> str:
    return default


def main(argv: Sequence[str]) -> int:
    try:
        return run_command(init, argv, name="init", stays="questions, and the file's name")
    except (KeyboardInterrupt, EOFError):
        print("\nstopped: nothing was written", file=sys.stderr)
        return 130
