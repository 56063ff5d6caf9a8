"""Ctrl-C and SIGTERM in the middle of a step."""

import os
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from app.__main__ import main
from app.artifact import RunDirectory
from app.callbacks.checkpoint_files import find_checkpoint, read_seal
from callbacks.conftest import Undisturbed, curve
from support.faults import with_callback
from support.fitting import fit


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_signal_finishes_the_step_and_the_command_it_names_goes_on(
    undisturbed: Undisturbed,
    run: RunDirectory,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    number: signal.Signals,
    name: str,
) -> None:
    before = signal.getsignal(number)
    fault = with_callback(tmp_path, "SendSignal", step=2, number=int(number))
    options = undisturbed.options(run, checkpoints__every=50)
    assert main(["fit", *fault, *options]) == 128 + number
    assert signal.getsignal(number) == before
    said = capfd.readouterr().err
    assert f"{name}: this step or validation is finished and saved first" in said
    assert f"stopped by {name} after step 3, which is saved" in said
    seal = read_seal(find_checkpoint(run, "last"))
    assert seal is not None and seal.step == 3
    assert run.read_manifest().status == "stopped"

    command = shlex.split(said.strip().splitlines()[-1])
    assert command[:4] == ["python", "-m", "app", "fit"]
    fit(*command[4 + len(fault) :])
    assert undisturbed.is_equal(run)
    for name in ("train/loss", "val/loss"):  # no step is missing, in either attempt's part
        assert curve(run, name) == curve(undisturbed.run, name)


@pytest.mark.parametrize("hook", ["on_fit_start", "on_sanity_check_end"])
@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_signal_before_training_begins_ends_at_once(
    undisturbed: Undisturbed,
    run: RunDirectory,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    number: signal.Signals,
    name: str,
    hook: str,
) -> None:
    before = signal.getsignal(number)
    fault = with_callback(tmp_path, "SignalAtStart", number=int(number), hook=hook)
    assert main(["fit", *fault, *undisturbed.options(run)]) == 128 + number
    assert signal.getsignal(number) == before
    assert f"stopped by {name} before there was anything to save" in capfd.readouterr().err
    assert not list(run.checkpoints.glob("*.ckpt"))


def test_one_stop_after_the_other_over_an_epochs_end(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """The first stop is after an epoch's last step, without a validation there; each goes on from the one before."""
    whole = replace(undisturbed, run=RunDirectory(tmp_path / "whole"))
    fit(*whole.options(whole.run, validate_every=3))
    run = RunDirectory(tmp_path / "run")
    for step in (3, 4, 5):
        fault = with_callback(tmp_path, "SendSignal", step=step, number=int(signal.SIGINT))
        assert main(["fit", *fault, *whole.options(run, validate_every=3), "--resume", "auto"]) == 130
        assert find_checkpoint(run, "last").name == f"step-{step + 1:06d}.ckpt"
    fit(*whole.options(run, validate_every=3), "--resume", "auto")
    assert whole.is_equal(run)


@pytest.mark.slow
def test_second_ctrl_c_ends_at_once(undisturbed: Undisturbed, run: RunDirectory, tmp_path: Path) -> None:
    """The first one comes in the first step, the second before that is finished: there is nothing to save yet."""
    fault = with_callback(tmp_path, "SignalTwice")
    command = [sys.executable, "-m", "app", "fit", *fault, *undisturbed.options(run, checkpoints__every=50)]
    tests = str(Path(__file__).parents[1])
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": tests})
    assert ended.returncode == -signal.SIGINT
    assert "once more ends at once" in ended.stderr
    assert not list(run.checkpoints.glob("*.ckpt"))
    fit(*undisturbed.options(run), "--resume", "auto")  # its lock is stale
    assert undisturbed.is_equal(run)
