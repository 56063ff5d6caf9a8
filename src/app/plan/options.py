"""What `fit` would do, from its configuration files, without importing what `fit` imports."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from app.errors import ConfigError, range_faults, several
from app.plan.signatures import REQUIRED, SIGNATURES, TRAINER, kinds, ranges, signature, trainer_defaults


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """The resolved options of a run, by section of the YAML."""

    model: Mapping[str, Any]
    data: Mapping[str, Any]
    checkpoints: Mapping[str, Any]
    trainer: Mapping[str, Any]
    run: str

    @property
    def micro_batch(self) -> tuple[int, int]:
        """Rows and tokens of a row."""
        return self.data["batch_size"], self.data["max_length"]


def read_options(files: Sequence[Path], changes: Mapping[str, Any]) -> FitOptions:
    """Configuration files merged in order, then single options (``{"model.rank": 8}``, or as texts), over the defaults.

    Raises:
        ConfigError: a file cannot be read, or options are unknown, missing, of the wrong kind or out of range (all
            such are named).
    """
    given: dict[str, dict[str, Any]] = {}
    top: dict[str, Any] = {}
    for file in files:
        for key, value in _read(file).items():
            if isinstance(value, dict):
                given.setdefault(key, {}).update(value)
            else:
                top[key] = value
    for option, value in changes.items():
        section, _, name = option.partition(".")
        if name:
            given.setdefault(section, {})[name] = value
        else:
            top[option] = value
    sections = {section: dict(signature(*where)) for section, where in SIGNATURES.items()}
    sections["trainer"] = dict(trainer_defaults())
    faults: list[str] = []
    for section, values in sections.items():
        known = kinds(*SIGNATURES.get(section, TRAINER))
        for name, written in given.get(section, {}).items():
            values[name], fault = _as_fit_takes_it(f"{section}.{name}", written, known)
            faults += fault
    # fit takes these from the model's section.
    for name in ("base", "family", "revision"):
        sections["data"].pop(name)
    faults += [
        f"{section}.{name} is required"
        for section, values in sections.items()
        for name, value in values.items()
        if value is REQUIRED
    ]
    # A range can be told of what is a number only.
    if not faults:
        for section, where in SIGNATURES.items():
            faults += range_faults(section, ranges(*where, sections[section]))
        faults += _trainer_faults(sections["trainer"])
    if faults:
        raise ConfigError(
            several("the configuration cannot be used", faults), remedy="correct them in the YAML or the command line"
        )
    return FitOptions(**sections, run=str(top.get("run", "runs/run")))


def epochs_of(trainer: Any) -> int:
    """How many there are at most, as Lightning takes the options; -1: as many as ``max_steps`` needs."""
    epochs: int | None = trainer["max_epochs"]
    if epochs is None:
        return 1000 if trainer.get("max_steps", -1) == -1 else -1
    return epochs


def _read(file: Path) -> dict[str, Any]:
    try:
        value = yaml.safe_load(file.read_text("utf-8"))
    except OSError as fault:
        raise ConfigError(
            f"{file} cannot be read: {fault.strerror}",
            where="--config",
            remedy="name a file such as configs/mistral.yaml",
        ) from fault
    except (yaml.YAMLError, UnicodeDecodeError) as fault:
        raise ConfigError(f"{file} is not YAML: {fault}", where="--config", remedy="correct the line named") from fault
    if not isinstance(value, dict):
        raise ConfigError(f"{file} holds no options", where="--config", remedy="name a configuration that fit takes")
    return value


def _as_fit_takes_it(option: str, written: Any, known: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """An option's value, and what is wrong with it: by fit's own parser, which takes the text ``2e-4`` for a number."""
    from jsonargparse import ArgumentError, ArgumentParser

    section, name = option.split(".", 1)
    if name.split(".")[0] not in known:
        close = difflib.get_close_matches(name, known, n=1)
        return written, [f"there is no {option}" + (f"; did you mean {section}.{close[0]}?" if close else "")]
    kind = known.get(name, Any)  # such as trainer.strategy.init_args
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=kind)
    try:
        # For the parser None is an option that is not given.
        if written is not None or kind is Any or type(None) in get_args(kind):
            return parser.parse_object({"value": written}).value, []
    except ArgumentError:
        pass
    return written, [f"{option} is {written!r}, not {_in_words(kind)}"]


def _in_words(kind: Any) -> str:
    parts = get_args(kind)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(map(_in_words, parts))
    if parts:
        return f"a {kind.__name__.lower()} of {parts[-1].__name__}"
    return "null" if kind is type(None) else str(kind.__name__)


def _trainer_faults(trainer: Mapping[str, Any]) -> list[str]:
    """Numbers that Lightning refuses, or does not end with."""
    most = 10**9
    limit = trainer.get("limit_train_batches")
    faults = range_faults(
        "trainer",
        {
            "max_epochs": (epochs_of(trainer), -1, most),
            "max_steps": (trainer.get("max_steps", -1), -1, most),
            "accumulate_grad_batches": (trainer["accumulate_grad_batches"], 1, most),
            "limit_train_batches": (1 if limit is None else limit, 0, 1 if isinstance(limit, float) else most),
        },
    )
    return faults + endless_faults(trainer)


def endless_faults(trainer: Any) -> list[str]:
    """What is wrong with options of the trainer under which training has no end: the schedule needs one."""
    if not epochs_of(trainer) == trainer.get("max_steps", -1) == -1:
        return []
    return ["trainer.max_epochs is -1 and trainer.max_steps too: training would never end; set one of them"]
