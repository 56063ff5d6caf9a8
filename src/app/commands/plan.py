"""``python -m app plan``: will this configuration fit this card, and how long will it take?"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from app.commands import run_command
from app.errors import ConfigError, MachineError
from app.terminal import is_quiet, make_table

if TYPE_CHECKING:
    from rich.console import Console

    from app.plan.estimate import Estimate
    from app.plan.gpu import Gpu

MIB = 2**20


def plan(config: list[str] | None = None, gpu: str | None = None, change: list[str] | None = None) -> int:
    """What a run will take, before anything but the model's config.json is downloaded.

    Memory on the card part by part against what is free, the memory policy, tokens per second, hours for the data,
    and disk. Options of fit change the configuration as they do for fit (--model.rank 8). Exit status 1: it does not
    fit.

    Args:
        config: configuration files as fit takes them; later ones win.
        gpu: a card such as rtx4060, rtx4060-laptop or rtx4060-ti-16gb; by default the one in this machine.
        change: options of fit as model.rank=8; --model.rank 8 is the same.
    """
    from rich.console import Console

    from app.plan.estimate import estimate
    from app.plan.options import read_options

    if not config:
        raise ConfigError("no configuration was named", where="--config", remedy="add --config configs/mistral.yaml")
    options = read_options([Path(file) for file in config], changes(change or []))
    result = estimate(options, choose_gpu(gpu))
    console = Console(highlight=False)
    if not is_quiet():
        show_memory(result, console)
        show_time(result, console)
        show_disk(result, console)
    console.print(verdict(result), soft_wrap=True)
    return 0 if result.fits else 1


def changes(pairs: Sequence[str]) -> Mapping[str, str]:
    """``["model.rank=8"]`` as ``{"model.rank": "8"}``.

    Raises:
        ConfigError: one is no such pair.
    """
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"{pair!r} changes no option", where="--change", remedy="write it as model.rank=8")
        found[name] = value
    return found


def choose_gpu(name: str | None) -> "Gpu":
    """The card that is named, as it is if it is in this machine; without a name, this machine's first.

    Raises:
        MachineError: no such card is known, or none is here.
    """
    from app.plan.cards import find_cards
    from app.plan.gpu import imagined, present

    here = present()
    if name is None:
        if not here:
            raise MachineError(
                "this machine has no NVIDIA GPU to plan for", where="--gpu", remedy="name one: --gpu rtx4060-laptop"
            )
        return here[0]
    meant = find_cards(name)
    return next((gpu for gpu in here if gpu.card in meant), None) or imagined(meant[0])


def show_memory(result: "Estimate", console: "Console") -> None:
    """Part by part, with the peak and what is free."""
    gpu, model = result.gpu, result.options.model
    table = make_table("memory", "MiB", "", right=("MiB",), title=f"{model['base']} on {gpu.name}")
    if result.memory is not None:
        for part in result.memory.parts:
            size = f"{part.bytes / MIB:,.0f}"
            table.add_row(part.name, size if part.at_peak else f"({size})", part.note)
        table.add_section()
        table.add_row("peak", f"{result.memory.peak / MIB:,.0f}", "as the driver counts the process")
    used = "in use now" if gpu.driver else "assumed for a desktop"
    kept = f"of {gpu.total / MIB:,.0f}: {gpu.reserved / MIB:,.0f} kept by the driver, {gpu.used / MIB:,.0f} {used}"
    table.add_row("free", f"{gpu.free / MIB:,.0f}", kept)
    console.print(table)
    if result.memory is not None:
        console.print(f"policy: {result.memory.policy}", soft_wrap=True)
        if result.memory.host:
            console.print(f"pinned CPU memory: {result.memory.host / MIB:,.0f} MiB", soft_wrap=True)
    if model["dora"]:
        console.print("not counted: what DoRA computes of every weight", style="yellow", soft_wrap=True)


def show_time(result: "Estimate", console: "Console") -> None:
    """Rows, steps, speed and hours."""
    rows = result.rows
    if rows is None:
        console.print(f"data: {result.options.data['path']} is no prepared folder yet", soft_wrap=True)
    else:
        left = f", {rows.left_out:,} longer ones left out" if rows.left_out else ""
        console.print(f"data: {rows.rows:,} rows, {rows.tokens:,} tokens, {rows.how}{left}", soft_wrap=True)
    if result.tokens_per_second is None:
        if result.memory is not None:
            console.print(f"speed: not predicted, {result.gpu.name} is in no table", soft_wrap=True)
        return
    speed = f"about {result.tokens_per_second:,.0f} tokens/s (predicted from the card's data sheet, not measured)"
    console.print(f"speed: {speed}", soft_wrap=True)
    if result.seconds is not None:
        console.print(f"time: {duration(result.seconds)} for {result.steps:,} steps", soft_wrap=True)
    else:
        console.print(f"time: {duration(1e6 / result.tokens_per_second)} for a million tokens", soft_wrap=True)


def show_disk(result: "Estimate", console: "Console") -> None:
    """What is written where, against what is free there."""
    for need in result.disk:
        line = f"disk: {need.bytes / 1e9:,.1f} GB {need.what}, in {need.where} ({need.free / 1e9:,.1f} GB free)"
        console.print(line, style="red" if need.bytes > need.free else None, soft_wrap=True)


def verdict(result: "Estimate") -> str:
    """One line, in rich's markup."""
    from rich.markup import escape

    if result.memory is None:
        line = f"[red]does not fit:[/] {escape(result.refusal)}"
    elif result.fits:
        spare = (result.gpu.free - result.memory.peak) / MIB
        line = f"[green]fits:[/] a peak of {result.memory.peak / MIB:,.0f} MiB leaves {spare:,.0f} MiB"
    else:
        over = (result.memory.peak - result.gpu.free) / MIB
        line = (
            f"[red]does not fit:[/] a peak of {result.memory.peak / MIB:,.0f} MiB is {over:,.0f} MiB more than is free"
        )
    if result.shorter is not None:
        line += f"; rows of {result.shorter:,} tokens fit (--data.max_length {result.shorter})"
    return line


def duration(seconds: float) -> str:
    """Such as "about 3.2 hours"."""
    if seconds < 5400:
        return f"about {max(1, round(seconds / 60))} minutes"
    return f"about {seconds / 3600:,.1f} hours"


def fit_options(argv: Sequence[str]) -> list[str]:
    """The arguments with fit's own (``--model.rank 8``, ``--run=runs/a``) turned into ``--change model.rank=8``."""
    out: list[str] = []
    left = list(argv)
    while left:
        argument = left.pop(0)
        name, equals, value = argument.partition("=")
        if not (name.startswith("--") and ("." in name or name == "--run")):
            out.append(argument)
            continue
        if not equals and left:
            value = left.pop(0)
        out += ["--change", f"{name[2:]}={value}"]
    return out


def main(argv: Sequence[str]) -> int:
    return run_command(plan, fit_options(argv), name="plan", stays="whether it fits")
