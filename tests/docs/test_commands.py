"""Every command of the README and of docs/ runs: in order, as it is written, at toy size.

Where a page says Mistral-7B, a tiny checkpoint of its architecture stands in: ``configs/mistral.yaml`` of the folder in
which the commands run is the real one with another base and fewer steps. What cannot run here says so in a comment
before its block: ``<!-- not run: reason -->``.
"""

import contextlib
import csv
import io
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import pytest
import yaml

from app.__main__ import main
from conftest import TinyCheckpoint

ROOT = Path(__file__).parents[2]
PROGRAMS = ("python", "make", "pip", "bentoml", "docker", "ollama", "git", "curl", "pre-commit", "bash", "py")
SHELLS = ("sh", "bash", "console")
FENCE = re.compile(
    r"(?:<!-- not run: (?P<reason>.+?) -->\n)?^```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^```$", re.S | re.M
)


@dataclass(frozen=True, kw_only=True)
class Command:
    """A line that a reader would type: where it stands, what it says, and why it is not run (or "")."""

    where: str
    line: str
    reason: str


def commands(page: Path) -> list[Command]:
    """The page's commands, in order; a block without a language is one of commands if a line begins like one."""
    text, found = page.read_text(encoding="utf-8"), []
    for block in FENCE.finditer(text):
        body = block["body"].replace("\\\n", " ")
        lines = [line.removeprefix("$ ").strip() for line in body.splitlines()]
        is_shell = block["language"] in SHELLS
        if not is_shell and (block["language"] or not any(line.split(" ")[0] in PROGRAMS for line in lines)):
            continue
        number = text[: block.start("body")].count("\n") + 1
        where = f"{page.relative_to(ROOT)}:{number}"
        found += [
            Command(where=where, line=line, reason=block["reason"] or "")
            for line in lines
            if line and not line.startswith("#")
        ]
    return found


def pages() -> list[Path]:
    """docs/ in the order of its navigation, and contributing."""
    nav = tomllib.loads((ROOT / "docs" / "zensical.toml").read_text())["project"]["nav"]
    names = [value for entry in nav for value in entry.values() if isinstance(value, str)]
    return [*(ROOT / "docs" / name for name in names), ROOT / "docs" / "decisions.md", ROOT / "CONTRIBUTING.md"]


class Shop:
    """Where commands run: the current folder. A server that is started stays until the end, on a port of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self._patch = monkeypatch
        self._folder = folder
        self._server: subprocess.Popen[bytes] | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]

    def run(self, command: Command) -> None:
        """Runs a line; ``# exit status N`` behind it says what is expected.

        A line is one command, before which a question may be piped in by ``echo``.
        """
        line, _, remark = command.line.replace("localhost:3000", f"localhost:{self._port}").partition(" #")
        wanted = int(match[1]) if (match := re.search(r"exit status (\d)", remark)) else 0
        words = shlex.split(line)
        typed = "What is 3 plus 9?\n"
        if words[0] == "echo" and "|" in words:
            at = words.index("|")
            typed, words = " ".join(words[1:at]) + "\n", words[at + 1 :]
        if words[:3] == ["python", "-m", "app"]:
            self._patch.setattr(sys, "stdin", io.StringIO(typed))
            try:
                status = main(words[3:])
            except SystemExit as end:  # --print_config prints and leaves
                status = int(end.code or 0)
        elif words[:2] == ["bentoml", "serve"]:
            status = self._serve(words[2:])
        elif words[0] in ("ls", "curl"):
            status = subprocess.run([*words, *(["-sf"] if words[0] == "curl" else [])], check=False).returncode
        else:
            pytest.fail(f"{command.where}: nobody knows how to test {line!r}; write <!-- not run: reason --> before it")
        assert status == wanted, f"{command.where}: {line!r} ended with status {status}"

    def close(self) -> None:
        """Stops the server, if there is one."""
        if self._server is not None:
            self._server.terminate()
            self._server.wait(60)

    def _serve(self, words: list[str]) -> int:
        """Starts BentoML and waits until the model is loaded; its exit status if it ends before that, else 0."""
        home = {"BENTOML_HOME": str(self._folder / "bentoml"), "BENTOML_DO_NOT_TRACK": "true"}
        self._server = subprocess.Popen(
            [sys.executable, "-m", "bentoml", "serve", *words, "--port", str(self._port)],
            env={**os.environ, **home, "APP_GRACE": "0"},
        )
        while self._server.poll() is None:
            with contextlib.suppress(OSError), urlopen(f"http://localhost:{self._port}/health", timeout=5) as answer:
                if answer.status == 200:
                    return 0
            time.sleep(0.5)
        return self._server.returncode


@pytest.fixture
def workshop(tiny: TinyCheckpoint, smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A reader's folder: their files, the configs, the small model."""
    rows = [
        {"question": f"What is {n} plus {n * 3}, and why?", "answer": f"It is {n * 4}." + " Sums add." * (n % 5 + 1)}
        for n in range(80)
    ]
    with (tmp_path / "questions.csv").open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out, delimiter=";")
        writer.writerows([("Frage", "Antwort"), *(row.values() for row in rows), ("Is this row whole?", "")])
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:40]), "utf-8")
    (tmp_path / "notes.csv").write_text("Betreff,Text\n" + "".join(f"Note {n}?,Text {n}.\n" for n in range(40)))
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    config = yaml.safe_load((tmp_path / "configs" / "mistral.yaml").read_text())
    config["model"] |= {"base": str(tiny("mistral")), "optimizer": "adamw"}
    config["data"]["max_length"] = 256
    config["trainer"] |= {"max_epochs": 1, "accumulate_grad_batches": 16, "accelerator": "cpu"}
    config |= {"validate_every": 2, "checkpoints": {"every": 2, "keep": 2}}
    (tmp_path / "configs" / "mistral.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / smollm2.name).symlink_to(smollm2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    opened = Shop(monkeypatch, tmp_path)
    yield opened
    opened.close()


def test_what_is_not_run_says_why() -> None:
    found = [command for page in (ROOT / "README.md", *pages()) for command in commands(page)]
    assert len(found) > 40
    for command in found:
        known = re.match(r"(echo .* \| )?python -m app |ls |bentoml serve |curl localhost", command.line)
        assert known or len(command.reason) > 10, f"{command.where}: {command.line!r} is neither run nor explained"


def test_unmarked_unknown_commands_fail(shop: Shop) -> None:
    with pytest.raises(pytest.fail.Exception, match="nobody knows"):
        shop.run(Command(where="page.md:1", line="rm -rf /tmp/nothing", reason=""))
    with pytest.raises(AssertionError, match="status 2"):
        shop.run(Command(where="page.md:1", line="python -m app prepare missing.csv", reason=""))
    shop.run(Command(where="page.md:1", line="python -m app prepare missing.csv  # exit status 2", reason=""))


@pytest.mark.slow
@pytest.mark.parametrize("part", ["README", "docs"])
def test_the_commands_run(part: str, workshop: Path, shop: Shop) -> None:
    pytest.importorskip("llama_cpp")
    for page in [ROOT / "README.md"] if part == "README" else pages():
        for command in commands(page):
            if not command.reason:
                shop.run(command)
    assert (workshop / "runs" / "mistral" / "adapter").is_dir()
