"""Losses and gradients that are no numbers."""

import math
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from app.__main__ import main
from app.artifact import RunDirectory
from app.callbacks.checkpoint_files import find_checkpoint
from app.callbacks.divergence import WINDOW, Divergence
from callbacks.conftest import Undisturbed, curve
from support.faults import SPOILT, with_callback
from support.fitting import fit


@pytest.mark.parametrize("what", ["gradient", "loss"])
def test_step_without_a_number_is_skipped_and_counted(
    undisturbed: Undisturbed, run: RunDirectory, tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    fault = with_callback(tmp_path, "NotANumber", steps=[3], what=what)
    fit(*fault, *undisturbed.options(run, checkpoints__keep=99, trainer__max_epochs=1))
    assert run.read_manifest().result["skipped_steps"] == 1
    assert "step 3 is skipped: " in caplog.text and "1 in a row, 1 in all" in caplog.text
    states = [
        torch.load(run.checkpoints / f"step-{step:06d}.ckpt", weights_only=True)["state_dict"] for step in (2, 3, 4)
    ]
    assert all(torch.equal(states[1][name], value) for name, value in states[0].items())
    assert any(not torch.equal(states[2][name], value) for name, value in states[1].items())
    assert all(torch.isfinite(value).all() for value in states[2].values())
    assert curve(run, "train/skipped_steps") == {1: 0, 2: 0, 3: 1, 4: 1}
    bad = curve(run, "train/loss" if what == "loss" else "train/grad_norm")
    assert [math.isfinite(bad[step]) for step in (2, 3, 4)] == [True, False, True]


def test_several_in_a_row_lead_back_to_a_lower_rate_once(
    undisturbed: Undisturbed, run: RunDirectory, tmp_path: Path
) -> None:
    fault = with_callback(tmp_path, "NotANumber", steps=[5, 6, 7], until_rate_falls=True)
    options = undisturbed.options(run, divergence__patience=3, divergence__lr_factor=0.25, model__schedule="constant")
    SPOILT.clear()
    fit(*fault, *options)
    manifest = run.read_manifest()
    assert [step for step, _ in SPOILT] == [5, 6, 7]
    (change,) = manifest.adaptations
    assert (change.step, change.lr_scale) == (7, 0.25)
    assert "3 steps in a row, from step 5 on" in change.cause
    rates = curve(run, "lr")
    assert [rates[step] for step in (4, 5, 6)] == pytest.approx([2e-4, 5e-5, 5e-5])
    assert manifest.status == "finished" and manifest.result["steps"] == 8
    assert manifest.result["skipped_steps"] == 0  # as of the checkpoint it went back to

    # The weights are those of the run that had this rate from step 5 on: nothing of the bad steps stays.
    weights = load_file(run.adapter_last / "adapter_model.safetensors")
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_second_time_stops_and_names_the_rows(
    undisturbed: Undisturbed, run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fault = with_callback(tmp_path, "NotANumber", steps=[5, 6])
    SPOILT.clear()
    assert main(["fit", *fault, *undisturbed.options(run, divergence__patience=2)]) == 2
    said = capsys.readouterr().err
    assert "2 steps in a row, from step 5 on, had no finite loss or gradient, also with 0.5 times" in said
    named = {
        (int(step), int(row)) for step, row in re.findall(r"step (\d): questions.csv line \d+ \(row-(\d+)\)", said)
    }
    spoilt = {
        (step, int(number))
        for step, texts in SPOILT[2:]
        for text in texts
        for number in re.findall(r"What is (\d+) plus", text)
    }
    assert named == spoilt and len(named) == 2 * 2 * 3
    assert run.read_manifest().status == "failed"
    assert find_checkpoint(run, "last").name == "step-000004.ckpt"


def test_spikes_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    watch = Divergence(spike=6)
    for step in range(WINDOW):
        watch._watch(step, {"loss": 1 + 0.1 * (step % 2), "gradient norm": 2 + 0.1 * (step % 2)})
    watch._watch(50, {"loss": 1.3, "gradient norm": 2.0})  # five deviations
    assert watch.spikes == 0
    watch._watch(51, {"loss": 1.5, "gradient norm": 9.0})
    assert watch.spikes == 2
    assert "step 51: loss 1.5 is a spike" in caplog.text and "gradient norm 9 is a spike" in caplog.text
    again = Divergence(spike=6)
    again.load_state_dict(watch.state_dict())
    assert again.state_dict() == watch.state_dict()
