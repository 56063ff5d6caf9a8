"""Measurements in processes of their own, so that each starts on a card that holds nothing of another's.

A process imports what it needs and then waits for its arguments; meanwhile another one may be measuring, since nothing
of the GPU is touched before they come.
"""

import importlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MARK = "RESULT "
FIRST = "APART_FIRST"
SLOW = ("torch", "transformers.models.mistral.modeling_mistral")
"""Imported before the arguments come: some six seconds. bitsandbytes is not: it asks what the card can do."""


class Apart:
    """A script in its own process, which calls `take` for its arguments and `send` with its results.

    Args:
        script: path of the script.
        folders: to import from before all others.
        first: a module to be imported before everything else.
    """

    def __init__(self, script: Path, folders: Sequence[str] = (), *, first: str = "") -> None:
        path = os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=os.environ | {"PYTHONPATH": path, FIRST: first or SLOW[0]},
        )  # fmt: skip

    def run(self, arguments: list[str], timeout: float) -> list[dict[str, Any]] | str:
        """What the script sends; text where it failed. Whatever else it prints, such as a profile, is printed."""
        try:
            out, errors = self._process.communicate(json.dumps(arguments) + "\n", timeout=timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            return f"took over {timeout:.0f} s"
        for line in reversed(out.splitlines()):
            if line.startswith(MARK):
                print(out[: -len(line) - 1], end="")
                return list(json.loads(line.removeprefix(MARK)))
        print(out[-1500:], errors[-3000:], file=sys.stderr)
        return "failed: " + (errors.strip().splitlines() or ["no output"])[-1][:120]


def take() -> list[str] | None:
    """In a process of `Apart`, its arguments, once they come; None in any other."""
    first = os.environ.pop(FIRST, None)
    if first is None:
        return None
    for module in (first, *SLOW):
        importlib.import_module(module)
    line = sys.stdin.readline()
    if not line:
        sys.exit()  # whoever started this has ended
    return list(json.loads(line))


def send(results: list[dict[str, Any]]) -> None:
    """The process's results, as its last line."""
    print(MARK + json.dumps(results), flush=True)


class MemoryWatch(threading.Thread):
    """The card's used memory at its highest, as NVML reads it, sampled every 2 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        import torch

        from app.model.memory import nvml_handle
        from app.nvml import nvml

        library, handle = nvml(), nvml_handle(torch.device("cuda", 0))
        # Version 2 leaves out what the driver reserves for itself (480 MiB of an H100), as nvidia-smi does.
        self._read = lambda: library.nvmlDeviceGetMemoryInfo(handle, version=library.nvmlMemory_v2).used
        self._done = threading.Event()
        self.peak = 0

    def run(self) -> None:
        while not self._done.wait(0.002):
            self.peak = max(self.peak, self._read())

    def stop(self) -> float:
        """The peak in MiB."""
        self._done.set()
        self.join()
        return max(self.peak, self._read()) / 2**20
