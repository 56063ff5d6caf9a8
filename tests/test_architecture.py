"""The README's layers and file rules, read off the source: who imports whom, how long files are, what --help loads."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "app"
MODULES = {
    ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in SOURCE.rglob("*.py")
}

LAYERS = (
    (
        "app",
        *(
            f"app.{name}"
            for name in ("artifact", "cache", "card", "errors", "families", "hub", "nvml", "pages", "terminal")
        ),
        "app.data.records",
    ),
    ("app.data",),
    (
        *(
            f"app.data.{name}"
            for name in ("tokenize", "tokenized", "cache", "pack", "padding", "sampler", "preview", "module")
        ),
        "app.kernels",
    ),
    ("app.model",),
    ("app.generate", "app.plan"),
    ("app.callbacks", "app.evaluate", "app.export"),
    ("app.serve", "app.commands"),
    ("app.cli", "app.__main__"),
)
"""Downward only. ``app.data`` stands for its modules that are not named elsewhere."""

NEVER = (
    ("app.kernels", "app"),
    ("app.model", "app.data"),
    ("app.callbacks", "app.evaluate"),
    ("app.callbacks", "app.export"),
    ("app.evaluate", "app.callbacks"),
    ("app.evaluate", "app.export"),
    ("app.export", "app.callbacks"),
    ("app.export", "app.evaluate"),
    ("app.serve", "app.commands"),
)
"""(importer, imported) pairs forbidden although the layers would allow them."""

HEAVY = ("bitsandbytes", "datasets", "jsonargparse", "lightning", "numpy", "pandas", "peft", "torch", "transformers")


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def layer(module: str) -> int:
    """The layer of the longest name in LAYERS that the module lies in (``app`` itself stands for no other)."""
    named = [
        (len(name), index)
        for index, names in enumerate(LAYERS)
        for name in names
        if module == name or (name != "app" and inside(module, name))
    ]
    assert named, f"{module} is in no layer: give it one in LAYERS and in README.md"
    return max(named)[1]


def imports(tree: ast.AST, *, at_load: bool = False) -> Iterator[str]:
    """Names of imported modules; ``at_load`` leaves out those inside functions and under TYPE_CHECKING."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, "imports are absolute"
            deeper = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in deeper)
        elif not (at_load and runs_later(node)):
            yield from imports(node, at_load=at_load)


def runs_later(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        return ast.unparse(node.test) == "TYPE_CHECKING"
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def parsed(module: str) -> ast.AST:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_downward(module: str) -> None:
    own = [name for name in imports(parsed(module)) if inside(name, "app")]
    upward = [name for name in own if layer(name) > layer(module)]
    assert not upward, f"{module} imports from a layer above its own: {upward}"
    forbidden = [
        name
        for name in own
        for importer, imported in NEVER
        if inside(module, importer) and inside(name, imported) and not inside(name, importer)
    ]
    assert not forbidden, f"{module} may not import {forbidden}"


@pytest.mark.parametrize("module", sorted(module for module in MODULES if layer(module) == 0))
def test_the_lowest_layer_loads_the_standard_library_only(module: str) -> None:
    foreign = {name.split(".")[0] for name in imports(parsed(module), at_load=True)}
    assert foreign <= {*sys.stdlib_module_names, "app"}


@pytest.mark.parametrize("module", sorted(module for module in MODULES if layer(module) == 1))
def test_preparing_data_loads_no_model_library(module: str) -> None:
    loaded = {name.split(".")[0] for name in imports(parsed(module), at_load=True)}
    assert not loaded & {"torch", "transformers", "datasets", "lightning", "peft", "bitsandbytes"}


def test_files_are_short_and_named_for_what_they_do() -> None:
    files = [path for folder in ("src", "tests", "scripts") for path in (ROOT / folder).rglob("*.py")]
    long = {
        str(path.relative_to(ROOT)): lines
        for path in files
        if (lines := len(path.read_text("utf-8").split("\n"))) > 351
    }
    assert not long, f"longer than 350 lines: {long}"
    vague = [str(path.relative_to(ROOT)) for path in files if path.stem in ("utils", "helpers", "common")]
    assert not vague


def test_folders_are_one_deep() -> None:
    assert all(len(path.relative_to(SOURCE).parts) <= 2 for path in MODULES.values())


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import runpy, sys\n"
        "sys.argv = ['app', '--help']\n"
        "try:\n    runpy.run_module('app', run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code\n"
        f"print('loaded:', *sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    usage, _, loaded = done.stdout.rpartition("loaded:")
    assert "usage: python -m app COMMAND" in usage
    assert not loaded.split()
