"""A first configuration for a card, a model and data: settings that fit by the plan, with the code's own comments."""

import ast
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from app.errors import MachineError
from app.families import Family
from app.plan.estimate import Estimate, estimate
from app.plan.gpu import Gpu
from app.plan.memory import plan_memory
from app.plan.options import read_options
from app.plan.shapes import read_shape
from app.plan.signatures import (
    REQUIRED,
    SIGNATURES,
    TRAINER,
    documentation,
    init_of,
    signature,
    source_of,
    trainer_defaults,
)

LENGTHS = (2048, 1536, 1024, 768, 512, 256)
TRAINING = ("max_epochs", "accumulate_grad_batches", "gradient_clip_val")
TOP = ("run", "wandb", "validate_every")
LINKED = {"data": ("base", "family", "revision", "seed")}
"""Options that fit fills in from other sections."""
WIDTH = 110
MARGIN = 1.05
"""Room that is left: as much as the plan may err."""


@dataclass(frozen=True, kw_only=True)
class Starter:
    """What `init` found.

    Attributes:
        text: of the YAML.
        estimate: the plan of it.
    """

    text: str
    estimate: Estimate


def make_starter(*, family: Family, base: str, data: str, run: str, gpu: Gpu) -> Starter:
    """A configuration whose planned peak is free on ``gpu``: with rows as long as can be.

    Args:
        family: of the base.
        base: hub id or local folder.
        data: a prepared folder, or raw data.
        run: the run directory.
        gpu: the card.

    Raises:
        MachineError: not even the shortest rows fit.
        ModelError: the base's config.json cannot be had.
    """
    given = {"model.base": base, "model.family": family.name, "data.path": data, "run": run}
    shape = read_shape(base, family)
    fault = ""
    for settings in _settings():
        options = read_options([], {**given, **settings})
        try:
            memory = plan_memory(shape, family, options, gpu)
        except MachineError as refused:
            fault = refused.what
            continue
        fault = f"{base} needs {memory.peak / 2**20:,.0f} MiB with rows of {options.data['max_length']} tokens"
        # The fast layers keep to a budget; the plain ones take what they take.
        plain = memory.precision == "plain"
        if memory.peak * (MARGIN if plain else 1) <= gpu.free and (plain or settings["model.gradient_checkpointing"]):
            found = estimate(options, gpu)
            return Starter(text=_text({**given, **settings}, found, family), estimate=found)
    raise MachineError(
        f"{fault}; {gpu.name} has {gpu.free / 2**20:,.0f} MiB free",
        where="--gpu",
        remedy="choose a smaller base model, or close what uses the card",
    )


def _settings() -> Iterator[dict[str, Any]]:
    """From the fastest to the smallest."""
    for length in LENGTHS:
        for recomputed in (False, True):
            yield {"data.max_length": length, "model.gradient_checkpointing": recomputed}


def _text(chosen: Mapping[str, Any], found: Estimate, family: Family) -> str:
    """The YAML, a comment above each option; what has no value is there to be filled in."""
    memory = found.memory
    assert memory is not None
    speed = f", about {found.tokens_per_second:,.0f} tokens/s" if found.tokens_per_second else ""
    lines = [
        f"# {family.title} on {found.gpu.name}, written by `python -m app init`.",
        f"# Planned: {memory.peak / 2**20:,.0f} of {found.gpu.free / 2**20:,.0f} MiB free{speed} "
        "(`python -m app plan` says more).",
        "# Comments are the help texts of `python -m app fit --help`.",
        "",
        f"seed_everything: {signature(*SIGNATURES['data'])['seed']}",
    ]
    arguments = _fit_arguments()
    for name in TOP:
        default, text = arguments[name]
        lines += _option(name, chosen.get(name, default), text, indent=0)
    sections: dict[str, Mapping[str, Any]] = {section: signature(*where) for section, where in SIGNATURES.items()}
    sections["trainer"] = {name: trainer_defaults()[name] for name in TRAINING}
    for section, options in sections.items():
        lines += ["", f"{section}:"]
        texts = trainer_texts() if section == "trainer" else argument_texts(documentation(*SIGNATURES[section]))
        for name, default in options.items():
            if name not in LINKED.get(section, ()):
                value = chosen.get(f"{section}.{name}", default)
                assert value is not REQUIRED
                lines += _option(name, value, texts[name], indent=2)
    return "\n".join(lines) + "\n"


def _option(name: str, value: Any, text: str, *, indent: int) -> list[str]:
    margin = " " * indent
    written = yaml.safe_dump(list(value) if isinstance(value, tuple) else value, default_flow_style=True, width=10**6)
    written = written.removesuffix("\n").removesuffix("\n...")
    comment = textwrap.wrap(text, WIDTH, initial_indent=f"{margin}# ", subsequent_indent=f"{margin}#   ")
    return [*comment, f"{margin}{'# ' if value is None else ''}{name}: {written}"]


def argument_texts(docstring: str) -> dict[str, str]:
    """Argument -> its help text."""
    from docstring_parser import parse

    return {part.arg_name: " ".join((part.description or "").split()) for part in parse(docstring).params}


def trainer_texts() -> dict[str, str]:
    """Lightning's own words for the trainer's options, the first sentence of each; its source is read, not imported."""
    texts = argument_texts(ast.get_docstring(init_of(*TRAINER)) or "")
    return {name: text.split(". ")[0] for name, text in texts.items()}


def _fit_arguments() -> dict[str, tuple[Any, str]]:
    """Default and help text of the options that `app.cli` adds."""
    found = {}
    for node in ast.walk(source_of("app.cli")):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "parser.add_argument":
            words = {keyword.arg: keyword.value for keyword in node.keywords}
            name = ast.literal_eval(node.args[0]).removeprefix("--")
            found[name] = (ast.literal_eval(words["default"]), ast.literal_eval(words["help"]))
    return found
