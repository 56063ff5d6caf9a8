"""The documentation's site: the pages of docs/ and, made from the code itself, its references.

    python scripts/build_docs.py           # build/docs/site; fails at any link that leads nowhere
    python scripts/build_docs.py --serve   # the same, shown on http://localhost:8000 (this machine alone)

The references are what the command lines' own parsers say, so no option is ever described by hand: ``commands.md`` has
every command's options, ``configuration.md`` those of `fit`'s YAML, ``families.md`` the facts of each family,
``messages.md`` every error message that the sources can give.
"""

import argparse
import ast
import logging
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from app.__main__ import COMMANDS, TRAINER, usage
from app.commands.completion import command_tree
from app.errors import AppError
from app.families import all_families

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "docs"
BUILD = ROOT / "build" / "docs"


def options(actions: Sequence[Any]) -> list[str]:
    """A table of options."""
    rows = []
    for action in actions:
        name = action.option_strings[0] if action.option_strings else action.dest.upper()
        if action.help == "==SUPPRESS==" or action.dest == "help" or name.endswith(".help"):
            continue
        default = "" if action.default in (None, "==SUPPRESS==") else f"`{_plain(action.default)}`"
        values = str(action.metavar or "")
        choice = f"`{values.strip('{}').replace(',', '` `')}`" if values.startswith("{") else ""
        text = " ".join((action.help or "").replace("%%", "%").split()).replace("|", "\\|")
        rows.append(f"| `{name}` | {default} | {choice} | {text} |")
    return ["| option | default | values | |", "|---|---|---|---|", *rows, ""] if rows else []


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).replace("|", "\\|") or '""'


def kinds(parser: Any) -> Mapping[str, Any]:
    """Name -> parser of what a command line goes on with."""
    action = getattr(parser, "_subcommands_action", None)
    return action._name_parser_map if action else {}


def commands_page(tree: Any) -> str:
    """Every command with all its options, from `completion.command_tree`."""
    lines = ["# Commands", "", "Written by the commands themselves when this page is built.", ""]
    lines += ["```text", usage(), "```", ""]
    for name, parser in kinds(tree).items():
        lines += [f"## {name}", "", parser.description, ""]
        if COMMANDS[name][0] == TRAINER:
            lines += ["Its options: [configuration](configuration.md).", ""]
        elif kinds(parser):
            for kind, inner in kinds(parser).items():
                lines += [f"### {name} {kind}", "", inner.description, "", *options(inner._actions)]
        else:
            lines += options(parser._actions)
    return "\n".join(lines)


def configuration_page(parser: Any) -> str:
    """The keys of `fit`'s YAML, section by section."""
    lines = [
        "# Configuration of fit",
        "",
        "Every key of the YAML is an option of the command line too: `--model.rank 8` is `rank: 8` under `model:`. "
        "Written by the parser when this page is built.",
        "",
    ]
    sections: dict[str, list[Any]] = {"": []}
    for action in parser._actions:
        section = action.dest.partition(".")[0] if "." in action.dest else ""
        sections.setdefault(section, []).append(action)
    for section, actions in sections.items():
        table = options([action for action in actions if action.dest not in sections])
        if table:
            lines += [f"## {section or 'At the top'}", "", *table]
    return "\n".join(lines)


def families_page() -> str:
    """The facts of each family."""
    lines = ["# Families", "", "What `src/app/families` says of each. To add one: [add a family](../families.md).", ""]
    for family in all_families().values():
        facts = {
            "in the YAML": f"`family: {family.name}`",
            "base models": ", ".join(f"`{name}`" for name in family.base_models),
            "licence of the weights": family.licence,
            "parameters": f"{family.parameters:,}",
            "`model_type`": ", ".join(f"`{kind}`" for kind in family.model_types),
            "LoRA targets": ", ".join(f"`{target}`" for target in family.lora_targets),
            "ends an answer": ", ".join(f"`{token}`" for token in family.stop_tokens),
            "in llama.cpp": f"`{family.gguf.architecture}`",
        }
        lines += [f"## {family.title}", "", "| | |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in facts.items()]
        lines += ["", "Sources:", "", *(f"- {source}" for source in family.sources), ""]
    return "\n".join(lines)


def messages() -> dict[str, list[tuple[str, str]]]:
    """Module -> (message, remedy) of every AppError that it raises; what is filled in at run time is "…"."""
    kinds = {kind.__name__ for kind in AppError.__subclasses__()}
    found: dict[str, list[tuple[str, str]]] = {}
    for path in sorted((ROOT / "src" / "app").rglob("*.py")):
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
        raised = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in kinds]
        for call in sorted(raised, key=lambda call: call.lineno):
            remedy = next((keyword.value for keyword in call.keywords if keyword.arg == "remedy"), None)
            what, cure = _template(call.args[0]), _template(remedy)
            if what.strip("… "):
                name = path.relative_to(ROOT / "src").with_suffix("").as_posix().replace("/", ".")
                found.setdefault(name, []).append((what, cure))
    return found


def _template(node: ast.expr | None) -> str:
    """The text that an expression makes, with "…" for what only a run can know."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return " ".join(node.value.split())
    if isinstance(node, ast.JoinedStr):
        parts = [str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values]
        return " ".join("".join(parts).split())
    if isinstance(node, ast.BinOp):
        return _template(node.left) + _template(node.right)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "several":
        return _template(node.args[0])
    return "…"


def messages_page() -> str:
    """Every message with its remedy."""
    lines = [
        "# Every error message",
        "",
        "What this application can say on stderr (exit status 2), with the remedy it gives; … stands for names and "
        "numbers. Read from the sources when this page is built. The usual ones are explained in "
        "[troubleshooting](../troubleshooting.md).",
        "",
    ]
    for module, found in messages().items():
        lines += [f"## {module}", "", "| message | remedy |", "|---|---|"]
        for pair in found:
            lines.append("| {} | {} |".format(*(text.replace("|", "\\|").replace("<", "&lt;") for text in pair)))
        lines.append("")
    return "\n".join(lines)


def assemble() -> Path:
    """Pages and references together in a fresh folder; returns the site's configuration there."""
    shutil.rmtree(BUILD, ignore_errors=True)
    shutil.copytree(SOURCE, BUILD / "pages", ignore=shutil.ignore_patterns("*.toml"))
    shutil.copy(SOURCE / "zensical.toml", BUILD)
    shutil.copy(ROOT / "CHANGELOG.md", BUILD / "pages" / "changelog.md")
    shutil.copy(ROOT / "CONTRIBUTING.md", BUILD / "pages" / "contributing.md")
    reference = BUILD / "pages" / "reference"
    reference.mkdir()
    # Its table of settings is held against the code by a test; bentofile.yaml shows the same page to BentoML's users.
    shutil.copy(ROOT / "src" / "app" / "serve" / "README.md", reference / "server.md")
    tree = command_tree()
    pages = {
        "commands": commands_page(tree),
        "configuration": configuration_page(kinds(tree)["fit"]),
        "families": families_page(),
        "messages": messages_page(),
    }
    for name, text in pages.items():
        (reference / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    return BUILD / "zensical.toml"


def run() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", action="store_true", help="show it, and build it again when a page changes")
    serve = parser.parse_args().serve
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    config = assemble()
    program = [sys.executable, "-m", "zensical", *(["serve"] if serve else ["build", "--strict"])]
    done = subprocess.run([*program, "--config-file", config], check=False, env={**os.environ, "NO_COLOR": "1"})
    if not serve:
        print(f"{'failed' if done.returncode else 'wrote'} {BUILD / 'site' / 'index.html'}")
    return done.returncode


if __name__ == "__main__":
    raise SystemExit(run())
