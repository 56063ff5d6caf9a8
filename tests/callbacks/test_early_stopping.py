"""Which adapter a run ends with."""

import math
import shutil
from contextlib import ExitStack

import pytest
import torch
from safetensors.torch import load_file

from app.artifact import RunDirectory
from app.callbacks.checkpoint_files import find_checkpoint, read_seal
from app.cli import run_attempts
from app.model.module import QLoRAModule
from callbacks.conftest import Undisturbed
from support.fitting import fit


def test_best_adapter_is_restored_and_the_last_is_kept(undisturbed: Undisturbed, run: RunDirectory) -> None:
    """No validation counts as better, so the first stays the best, and three more end the run."""
    options = undisturbed.options(
        run, early_stopping__min_delta=100, validate_every=1, model__lr=1.0, model__schedule="constant",
        model__warmup=0, trainer__gradient_clip_val=1e6,
    )  # fmt: skip
    with ExitStack() as held:
        cli = run_attempts(["fit", *options], held)
    result = run.read_manifest().result
    assert result["steps"] == 4 and result["best_step"] < 4
    best, last = (load_file(folder / "adapter_model.safetensors") for folder in (run.adapter, run.adapter_last))
    assert any(not torch.equal(best[name], value) for name, value in last.items())
    at_best = torch.load(find_checkpoint(run, "best"), weights_only=True)["state_dict"]
    in_memory = cli.model.state_dict()
    assert all(torch.equal(in_memory[name], value) for name, value in at_best.items())
    assert all(torch.equal(best[name.removeprefix("model.").replace(".default", "")], v) for name, v in at_best.items())
    at_last = torch.load(find_checkpoint(run, "last"), weights_only=True)
    assert at_last["global_step"] == 4

    # Killed between early stopping and its end: the resumed run has stopped, too.
    before = run.read_manifest().result["steps"]
    shutil.rmtree(run.adapter)
    fit(*options, "--resume", "auto")
    assert run.read_manifest().result["steps"] == before
    again = load_file(run.adapter / "adapter_model.safetensors")
    assert all(torch.equal(again[name], value) for name, value in best.items())

    # More patience, and it goes on.
    fit(*options, "--resume", "auto", "--early_stopping.patience", "5")
    assert run.read_manifest().result["steps"] == before + 2


def test_validation_without_a_number_is_never_the_best(
    undisturbed: Undisturbed, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one has a loss of 0/0. As the best it would stay it to the end: no number is lower than NaN."""
    evaluate = QLoRAModule._evaluate
    monkeypatch.setattr(
        QLoRAModule, "_evaluate", lambda self, batch: self.trainer.global_step > 2 and evaluate(self, batch)
    )
    fit(*undisturbed.options(run, early_stopping__check_finite=False, trainer__num_sanity_val_steps=0))
    result = run.read_manifest().result
    assert result["best_step"] > 2 and result["best_val_loss"] == pytest.approx(result["val_loss"], abs=0.5)
    assert find_checkpoint(run, "best").name == f"step-{result['best_step']:06d}.ckpt"


def test_best_of_another_metric_is_not_recorded_as_a_loss(undisturbed: Undisturbed, run: RunDirectory) -> None:
    fit(*undisturbed.options(run, checkpoints__monitor="val/perplexity", early_stopping__monitor="val/perplexity"))
    result, same = run.read_manifest().result, undisturbed.run.read_manifest().result
    assert result["best_val_loss"] is None and result["best_step"] == same["best_step"]
    seal = read_seal(find_checkpoint(run, "best"))
    assert seal is not None and seal.value == pytest.approx(math.exp(same["best_val_loss"]))
