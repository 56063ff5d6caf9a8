"""What `fit` would do, from its configuration files, without importing what `fit` imports.

Lightning alone costs 4 CPU-seconds; so defaults are read off the source text of the signatures that hold them.
"""

import ast
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from app.errors import ConfigError, several

REQUIRED = object()
"""Stands for the default of an option that has none."""


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
    """Configuration files merged in order, then single options (``{"model.rank": 8}``), over the defaults.

    Raises:
        ConfigError: a file cannot be read, or options are unknown, missing or of the wrong kind (all are named).
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
    faults: list[str] = []
    for section, defaults in sections.items():
        for name, written in given.get(section, {}).items():
            value = _number(written) if isinstance(defaults.get(name), float) else written
            fault = _fault(section, name, value, defaults)
            if fault:
                faults.append(fault)
            defaults[name] = value
    # fit takes these from the model's section.
    for name in ("base", "family", "revision"):
        sections["data"].pop(name)
    faults += [
        f"{section}.{name} is required"
        for section, values in sections.items()
        for name, value in values.items()
        if value is REQUIRED
    ]
    if faults:
        raise ConfigError(
            several("the configuration cannot be used", faults), remedy="correct them in the YAML or the command line"
        )
    trainer = {**trainer_defaults(), **given.get("trainer", {})}
    return FitOptions(**sections, trainer=trainer, run=str(top.get("run", "runs/run")))


def epochs_of(trainer: Mapping[str, Any]) -> int:
    """How many there are at most, as Lightning takes the options; -1: as many as ``max_steps`` needs."""
    epochs: int | None = trainer["max_epochs"]
    if epochs is None:
        return 1000 if trainer.get("max_steps", -1) == -1 else -1
    return epochs


SIGNATURES = {
    "model": ("app.model.module", "QLoRAModule"),
    "data": ("app.data.module", "SFTDataModule"),
    "checkpoints": ("app.callbacks.checkpoints", "Checkpoints"),
}
"""Section of the YAML -> module and class whose ``__init__`` takes it."""


@cache
def signature(module: str, name: str) -> Mapping[str, Any]:
    """Parameters of a class's ``__init__`` with their defaults, read off the source."""
    for node in ast.walk(source_of(module)):
        if isinstance(node, ast.ClassDef) and node.name == name:
            (init,) = (part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__")
            names = [argument.arg for argument in init.args.args[1:]]
            values = [ast.literal_eval(default) for default in init.args.defaults]
            return dict(zip(names, [*[REQUIRED] * (len(names) - len(values)), *values], strict=True))
    raise AssertionError(f"{module} has no class {name}")


@cache
def trainer_defaults() -> Mapping[str, Any]:
    """`fit`'s own defaults of the trainer."""
    for node in source_of("app.cli").body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "DEFAULTS":
            value: Mapping[str, Any] = ast.literal_eval(node.value)
            return value
    raise AssertionError("app.cli has no DEFAULTS")


def documentation(module: str, name: str) -> str:
    """A class's docstring, read off the source."""
    (node,) = (part for part in source_of(module).body if isinstance(part, ast.ClassDef) and part.name == name)
    return ast.get_docstring(node) or ""


@cache
def source_of(module: str) -> ast.Module:
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None
    return ast.parse(Path(spec.origin).read_text("utf-8"))


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


def _number(value: Any) -> Any:
    """YAML takes ``2e-4`` for a text; `fit` takes it for a number, and so does this."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _fault(section: str, name: str, value: Any, defaults: Mapping[str, Any]) -> str | None:
    """What is wrong with an option, if anything."""
    if name not in defaults:
        close = difflib.get_close_matches(name, defaults, n=1)
        return f"there is no {section}.{name}" + (f"; did you mean {section}.{close[0]}?" if close else "")
    default = defaults[name]
    wanted = int | float if isinstance(default, float) else type(default)
    if default is not REQUIRED and default is not None and not isinstance(value, list | tuple):
        wrong = not isinstance(value, wanted) or (isinstance(value, bool) != isinstance(default, bool))
        if wrong:
            return f"{section}.{name} is {value!r}, not {type(default).__name__}"
    return None
