"""Runs `fit` on two processes, as a user would from the command line."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Literal

import psutil

from app.artifact import RunDirectory
from app.pages.history import read_rows
from app.pages.run import metrics_path
from conftest import ROOT

Strategy = Literal["ddp", "fsdp"]
LIMIT = 240.0
"""Seconds after which a run that hangs is ended, whatever else runs on the machine."""


def start(options: Sequence[str], strategy: Strategy = "ddp") -> subprocess.Popen[str]:
    """`python -m app fit …` on two ranks; they inherit this process's environment."""
    config = ROOT / "configs" / "strategy" / f"{strategy}.yaml"
    command = [sys.executable, "-m", "app", "fit", "--config", str(config), *options, "--trainer.devices", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Its exit status and what it said on stderr."""
    try:
        _, said = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return process.returncode, said


def kill_second(process: subprocess.Popen[str], run: RunDirectory, step: int) -> None:
    """Kills the second rank once the run has saved that step."""
    until = time.monotonic() + LIMIT
    saved = run.checkpoints / f"step-{step:06d}.ckpt"
    while not saved.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    (second,) = [each for each in psutil.Process(process.pid).children() if "fit" in each.cmdline()]
    second.kill()


def curve(run: RunDirectory, name: str = "train/loss") -> dict[int, float]:
    """Step -> value, of a run's own record."""
    return {row["step"]: row[name] for row in read_rows(metrics_path(run)) if name in row}
