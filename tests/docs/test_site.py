"""The site builds without a broken link, and its hand-written parts say what the code says."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from app.__main__ import COMMANDS
from app.families import all_families

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_docs", ROOT / "scripts" / "build_docs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_site_builds_and_its_references_are_complete() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts" / "build_docs.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = ROOT / "build" / "docs" / "pages" / "reference"
    commands = (pages / "commands.md").read_text("utf-8")
    assert [name for name in COMMANDS if f"\n## {name}\n" not in commands] == []
    assert "### export gguf" in commands and "`--quant`" in commands
    configuration = (pages / "configuration.md").read_text("utf-8")
    for option in ("--model.rank", "--data.max_length", "--trainer.max_epochs", "--checkpoints.every", "--resume"):
        assert f"| `{option}` |" in configuration
    assert all(f"## {family.title}" in (pages / "families.md").read_text("utf-8") for family in all_families().values())
    site = ROOT / "build" / "docs" / "site"
    loaded = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?://[^"]+)"', (site / "index.html").read_text())
    assert loaded == [], "a page asks another server for something"


def test_troubleshooting_quotes_messages_that_the_code_gives(builder: ModuleType) -> None:
    said = {message for found in builder.messages().values() for message, _ in found}
    page = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    quoted = [heading for heading in re.findall(r"^### (.+)$", page, re.M) if "…" in heading or heading.islower()]
    assert len(quoted) > 20
    assert [heading for heading in quoted if heading not in said] == []


def test_messages_are_templates_of_what_users_see(builder: ModuleType) -> None:
    found = {pair for pairs in builder.messages().values() for pair in pairs}
    assert ("there is no file …", "correct the path, or give a hub id such as org/name") in found
    assert ("options out of range", "correct them in the YAML or on the command line") in found
    assert len(found) > 100
