"""Refreshes requirements.txt and requirements-dev.txt from pyproject.toml:

    make lock                        # what pyproject.toml newly asks for; pins that still fit stay
    make lock UPGRADE=--upgrade      # everything to its newest version

One set of pins for Linux, macOS and Windows (uv's universal resolution), written by hand nowhere.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from app.artifact import write_atomic

ROOT = Path(__file__).parents[1]
PYTHON = "3.11"
# torch pins the CUDA libraries and Triton of its own build; its CPU build wants none of them (3 GB).
CUDA = re.compile(r"(nvidia-(?!ml-py)|cuda-|triton)")
# Interpreters and platforms that torch has no build for.
ELSEWHERE = re.compile(r"implementation_name == 'pypy'|sys_platform == 'emscripten'")

HEAD = """\
# {purpose}
# Written by `make lock`; do not edit. pyproject.toml says what is asked for, this file what is installed.
"""
RUNTIME_NOTE = """\
# On Linux, torch from PyPI brings CUDA; a machine without an NVIDIA GPU saves 3 GB by installing PyTorch's CPU
# build of this very version first (pytorch.org, "Start locally"): this file is content with it.
"""


@dataclass(frozen=True, kw_only=True)
class Pin:
    """One resolved package: ``line`` as pip reads it, and what asks for it ("app" for pyproject.toml itself)."""

    name: str
    line: str
    via: tuple[str, ...]


def resolve(pins: Path, *options: str) -> list[Pin]:
    """All packages that pyproject.toml needs; pins in the file ``pins`` stay where they fit, and it is rewritten."""
    command = [
        sys.executable,
        "-m",
        "uv",
        "pip",
        "compile",
        "pyproject.toml",
        "--universal",
        f"--python-version={PYTHON}",
    ]
    subprocess.run([*command, "--no-header", "--quiet", f"--output-file={pins}", *options], cwd=ROOT, check=True)
    found = []
    for block in re.split(r"\n(?=\S)", pins.read_text(encoding="utf-8").strip()):
        line, *comments = block.splitlines()
        sources = (re.sub(r"^\s*#\s*(via)?\s*", "", comment) for comment in comments)
        via = tuple("app" if source.startswith("app ") else source for source in sources if source)
        found.append(Pin(name=line.split("==")[0], line=line, via=via))
    return found


def wanted(pin: Pin) -> bool:
    return not CUDA.match(pin.name) and not ELSEWHERE.search(pin.line)


def section(title: str, pins: list[Pin]) -> str:
    """A titled list; packages that others pull in say which ones do."""
    lines = []
    for pin in pins:
        others = [source for source in pin.via if source != "app"]
        shown = ", ".join(others[:3]) + (" …" if len(others) > 3 else "")
        lines.append(pin.line if "app" in pin.via else f"{pin.line}  # {shown}")
    return "\n".join(["", f"# {title}", *lines, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes the pinned requirements files.")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions instead of keeping pins")
    upgrade = ["--upgrade"] if parser.parse_args().upgrade else []
    runtime_file, tests_file = ROOT / "requirements.txt", ROOT / "requirements-dev.txt"
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder) / "pins.txt"
        existing = [file.read_text(encoding="utf-8") for file in (runtime_file, tests_file) if file.exists()]
        pins.write_text("".join(existing).replace("-r requirements.txt\n", ""), encoding="utf-8")
        everything = [pin for pin in resolve(pins, "--extra=dev", *upgrade) if wanted(pin)]
        # Resolved with the tools first, so that both files agree on what they share.
        runtime = [pin for pin in resolve(pins) if wanted(pin)]
    lines = {pin.line for pin in runtime}
    tools = [pin for pin in everything if pin.line not in lines]
    write_atomic(
        runtime_file,
        HEAD.format(purpose="Exact versions of all that the application needs.")
        + RUNTIME_NOTE
        + section("Ours: imported by src/app, or needed by an option of it", [p for p in runtime if "app" in p.via])
        + section("Pulled in by those", [p for p in runtime if "app" not in p.via]),
    )
    write_atomic(
        tests_file,
        HEAD.format(purpose="Exact versions of what the tests, the linter and the type checker need besides.")
        + "-r requirements.txt\n"
        + section("Ours", [p for p in tools if "app" in p.via])
        + section("Pulled in by those", [p for p in tools if "app" not in p.via]),
    )
    print(f"{len(runtime)} packages in {runtime_file.name}, {len(tools)} more in {tests_file.name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
