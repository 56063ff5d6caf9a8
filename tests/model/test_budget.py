"""A step whose memory plan was made for a budget takes no more of the card."""

import json
import subprocess
import sys

import pytest

from conftest import ROOT

BUDGET = 7150


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("kernels", "rows", "length"),
    [("fp8", 1, 2048), ("fp8", 4, 2048), ("fp8", 1, 8192), ("fp8", 1, 16384), ("bf16", 1, 8192)],
)
def test_steps_of_a_7b_model_stay_within_their_budget(kernels: str, rows: int, length: int) -> None:
    """By the driver's count for the whole card, so in a process that is alone on it."""
    options = {
        "--systems": kernels, "--optimizer": "adamw_8bit", "--batches": rows, "--length": length, "--budgets": BUDGET,
        "--steps": 2, "--warmup": 3,
    }  # fmt: skip
    command = [
        sys.executable,
        ROOT / "scripts/bench/train.py",
        *(str(word) for pair in options.items() for word in pair),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (result,) = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("[")))
    # With less than half of the budget it would have planned something else.
    assert BUDGET / 2 < result["peak_mib"] <= BUDGET, result["note"]
