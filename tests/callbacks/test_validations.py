"""When validations run, where accumulation does not divide an epoch's micro-batches."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from app.__main__ import main
from app.artifact import RunDirectory
from app.callbacks.checkpoint_files import drop_after
from app.pages.history import History
from app.pages.run import metrics_path
from callbacks.conftest import Undisturbed, curve
from support.fitting import fit


def validated(run: RunDirectory) -> list[int]:
    """The optimizer steps after which there was a validation, each as often as there was one."""
    return [row["step"] for row in History(metrics_path(run)).rows if "val/loss" in row]


def test_every_second_step_also_where_an_epoch_ends_in_a_short_window(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """Five micro-batches an epoch make steps of two, two and one; a resume after any of them is the whole run."""
    options = {
        "data__batch_size": 5,
        "trainer__max_epochs": 3,
        "checkpoints__keep": 9,
        "model__lr": 0.01,
        "run_page__samples_every": 0,
    }
    whole = replace(undisturbed, run=RunDirectory(tmp_path / "whole"))
    fit(*whole.options(whole.run, **options))
    assert validated(whole.run) == [2, 4, 6, 8, 9]
    for step in (4, 6, 7):  # validated, validated at an epoch's end, not validated
        run = RunDirectory(tmp_path / f"resumed-{step}")
        shutil.copytree(whole.run.path, run.path)
        drop_after(run, step)
        fit(*whole.options(run, **options), "--resume", "auto")
        assert whole.is_equal(run), f"differs after step {step}"
        assert validated(run) == [2, 4, 6, 8, 9], f"after step {step}"


def test_an_early_end_is_validated(undisturbed: Undisturbed, run: RunDirectory) -> None:
    fit(*undisturbed.options(run, data__batch_size=5, trainer__max_steps=5, run_page__samples_every=0))
    assert validated(run) == [2, 4, 5]


def test_a_finished_run_goes_on_for_more_epochs_as_if_it_had_had_them(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """From the validation at its end, after a step that has none in the longer run."""
    options = {"validate_every": 3, "model__schedule": "constant", "model__warmup": 0, "run_page__samples_every": 0}
    whole, run = (replace(undisturbed, run=RunDirectory(tmp_path / name)) for name in ("whole", "run"))
    fit(*whole.options(whole.run, **options))
    fit(*run.options(run.run, **options, trainer__max_epochs=1))
    fit(*run.options(run.run, **options), "--resume", "auto")
    assert (validated(whole.run), validated(run.run)) == ([3, 6, 8], [3, 4, 6, 8])
    assert curve(run.run, "train/loss") == curve(whole.run, "train/loss")
    last, wanted = (load_file(each.run.adapter_last / "adapter_model.safetensors") for each in (run, whole))
    assert all(torch.equal(last[name], value) for name, value in wanted.items())


@pytest.mark.parametrize("count", [0, -1])
def test_counts_of_nothing_are_refused(
    undisturbed: Undisturbed, run: RunDirectory, capsys: pytest.CaptureFixture[str], count: int
) -> None:
    options = undisturbed.options(run, validate_every=count, trainer__accumulate_grad_batches=count)
    assert main(["fit", *options]) == 2
    said = capsys.readouterr().err
    assert f"--validate_every is {count}; it must be from 1" in said
    assert f"--trainer.accumulate_grad_batches is {count}; it must be from 1" in said
    assert not run.path.exists()
