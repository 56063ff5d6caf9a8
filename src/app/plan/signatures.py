"""What `fit`'s classes take, read off their source text: names, defaults, kinds and ranges of options, help texts.

Importing them costs 4 CPU-seconds for Lightning alone.
"""

import ast
import sys
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from app.errors import require_ranges

REQUIRED = object()
"""Stands for the default of an option that has none."""

SIGNATURES = {
    "model": ("app.model.module", "QLoRAModule"),
    "data": ("app.data.module", "SFTDataModule"),
    "checkpoints": ("app.callbacks.checkpoints", "Checkpoints"),
}
"""Section of the YAML -> module and class whose ``__init__`` takes it."""
TRAINER = ("lightning.pytorch.trainer.trainer", "Trainer")
"""The same of the section whose defaults are `trainer_defaults`."""


@cache
def signature(module: str, name: str) -> Mapping[str, Any]:
    """Parameters of a class's ``__init__`` with their defaults, read off the source."""
    arguments = init_of(module, name).args
    names = [argument.arg for argument in arguments.args[1:]]
    values = [ast.literal_eval(default) for default in arguments.defaults]
    return dict(zip(names, [*[REQUIRED] * (len(names) - len(values)), *values], strict=True))


@cache
def kinds(module: str, name: str) -> Mapping[str, Any]:
    """Parameters of a class's ``__init__`` with their types; ``Any`` where one comes from another library."""
    arguments = init_of(module, name).args
    return {
        argument.arg: _evaluate(argument.annotation, module)
        for argument in (*arguments.args[1:], *arguments.kwonlyargs)
        if argument.annotation is not None
    }


def ranges(module: str, name: str, values: Mapping[str, Any]) -> Mapping[str, tuple[float, float, float]]:
    """Option -> (value, least, most): what a class's ``__init__`` would hand to `require_ranges`."""
    for node in ast.walk(init_of(module, name)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == require_ranges.__name__:
            found: Mapping[str, tuple[float, float, float]] = eval(_code(node.args[1]), dict(values))
            return found
    return {}


class _Names(dict[str, Any]):
    """The names that annotations of a module use, found when asked for: its imports and assignments."""

    def __init__(self, module: str) -> None:
        super().__init__()
        self.module = module

    def __missing__(self, name: str) -> Any:
        for node in source_of(self.module).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
                return _evaluate(node.value, self.module)
            if isinstance(node, ast.ImportFrom) and node.module and name in {alias.name for alias in node.names}:
                if node.module.startswith("app."):
                    return _Names(node.module)[name]
                if node.module.split(".")[0] in sys.stdlib_module_names:
                    return getattr(import_module(node.module), name)
        raise KeyError(name)  # a builtin, or another library's


def _evaluate(expression: ast.expr, module: str) -> Any:
    try:
        return eval(_code(expression), {}, _Names(module))
    except NameError:
        return Any


def _code(expression: ast.expr) -> Any:
    return compile(ast.Expression(expression), "<signature>", "eval")


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
    return ast.get_docstring(_class(module, name)) or ""


def init_of(module: str, name: str) -> ast.FunctionDef:
    """A class's ``__init__``."""
    body = _class(module, name).body
    return next(part for part in body if isinstance(part, ast.FunctionDef) and part.name == "__init__")


def _class(module: str, name: str) -> ast.ClassDef:
    return next(part for part in source_of(module).body if isinstance(part, ast.ClassDef) and part.name == name)


@cache
def source_of(module: str) -> ast.Module:
    """A module's syntax tree. `find_spec` would import the packages above it, so it is asked for the first only."""
    package, *inside = module.split(".")
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None
    return ast.parse(Path(spec.origin).parent.joinpath(*inside).with_suffix(".py").read_text("utf-8"))
