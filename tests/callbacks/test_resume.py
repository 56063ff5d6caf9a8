"""What a run goes on from, what it then holds, and the options that a resume refuses to change."""

import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from app.__main__ import main
from app.artifact import RunDirectory
from app.callbacks.checkpoint_files import clear, drop, find_checkpoint
from callbacks.conftest import Undisturbed
from support.faults import with_callback
from support.fitting import fit


def test_resume_of_a_run_that_has_not_begun_begins_it_and_of_a_finished_one_changes_nothing(
    undisturbed: Undisturbed, run: RunDirectory
) -> None:
    options = [*undisturbed.options(run), "--resume", "auto"]
    fit(*options)
    assert undisturbed.is_equal(run)
    fit(*options)
    assert undisturbed.is_equal(run)


@pytest.mark.parametrize("last", [True, False], ids=["nothing is left to train", "the second part takes less"])
def test_peak_memory_is_that_of_all_parts(undisturbed: Undisturbed, run: RunDirectory, last: bool) -> None:
    """As the checkpoint has it: a part that was killed wrote none into the manifest."""
    shutil.copytree(undisturbed.run.path, run.path)
    newest = find_checkpoint(run, "last")
    checkpoint = torch.load(newest, weights_only=True)
    assert checkpoint["callbacks"]["MemoryMonitor"] == run.read_manifest().result["peak_memory"]
    path = newest if last else min(run.checkpoints.glob("*.ckpt"))
    peak = {"allocated": 10**15, "reserved": 10**15, "process": 10**15}
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["callbacks"]["MemoryMonitor"] = peak
    clear(run)
    torch.save(checkpoint, path)
    run.manifest_path.unlink()
    fit(*undisturbed.options(run), "--resume", "auto")
    assert run.read_manifest().result["peak_memory"] == peak


def test_going_on_from_an_older_one_leaves_the_way_of_the_later_ones(
    undisturbed: Undisturbed, run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They were taken for the newest: what was saved now was deleted at once, and the next resume went their way."""
    options = undisturbed.options(run, checkpoints__keep=2, trainer__max_epochs=1)
    fit(*options)
    last = find_checkpoint(run, "last")
    for step in (90, 91):
        shutil.copy(last, last.with_name(f"step-{step:06d}.ckpt"))
    copy = last.with_name("step-000002-copy.ckpt")
    shutil.copy(last, copy)
    fault = with_callback(tmp_path, "SendSignal", step=5, number=int(signal.SIGTERM))
    longer = [*undisturbed.options(run, checkpoints__keep=2), "--ckpt_path", str(last)]
    assert main(["fit", *fault, *longer]) == 143
    assert "after step 6, which is saved" in capsys.readouterr().err
    assert find_checkpoint(run, "last").name == "step-000006.ckpt"


def test_best_that_was_deleted_for_one_that_is_left_is_none(
    undisturbed: Undisturbed, run: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    """`adapter/` holds that of a later step, which the run no longer has."""
    shutil.copytree(undisturbed.run.path, run.path)
    before, last = sorted(run.checkpoints.glob("*.ckpt"))[-2:]
    drop(set(run.checkpoints.glob("*.ckpt")) - {before, last})
    shutil.rmtree(run.adapter)
    run.adapter.mkdir()
    fit(*undisturbed.options(run), "--ckpt_path", str(before))
    assert f"is not in {run.path}: the best from step 7 on is kept" in caplog.text
    assert undisturbed.is_equal(run)
    assert (run.adapter / "adapter_model.safetensors").is_file()


def test_end_of_another_run_becomes_this_ones(
    undisturbed: Undisturbed, run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is left to train: its adapter was neither written nor missed."""
    last = find_checkpoint(undisturbed.run, "last")
    options = [*undisturbed.options(run), "--ckpt_path", str(last)]
    fit(*options)
    mine, its = (load_file(each.adapter_last / "adapter_model.safetensors") for each in (run, undisturbed.run))
    assert all(torch.equal(mine[name], value) for name, value in its.items())
    assert (run.adapter / "adapter_model.safetensors").is_file()
    assert find_checkpoint(run, "last").name == last.name

    assert main(["fit", *options]) == 2  # there is a run now, which is not the one that is to be gone on with
    assert "holds the checkpoints of another run" in capsys.readouterr().err
    fit(*options, "--overwrite", "true")


def test_another_order_of_rows_is_refused(
    undisturbed: Undisturbed, copied: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    options = undisturbed.options(copied, data__batch_size=2, seed_everything=7)
    assert main(["fit", *options, "--resume", "auto"]) == 2
    said = capsys.readouterr().err
    assert "data.batch_size is 2; it was 3" in said and "seed_everything is 7; it was 42" in said


CHANGED = {
    "model.rank": (8, 16),
    "model.alpha": (64.0, 32.0),
    "model.targets": (["q_proj"], ["all"]),
    "model.lr": (1e-06, 0.0002),
    "model.weight_decay": (0.1, 0.0),
    "model.optimizer": ("adamw", "paged_adamw_8bit"),
    "trainer.accumulate_grad_batches": (3, 2),
    "data.batch_size": (2, 3),
}
"""Option -> another value, and that of the undisturbed run."""


def test_options_that_the_checkpoint_does_not_go_with_are_refused_at_once(
    undisturbed: Undisturbed, run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(undisturbed.run.path, run.path)
    files = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    changed = {name.replace(".", "__"): value for name, (value, _) in CHANGED.items()}
    assert main(["fit", *undisturbed.options(run, **changed), "--resume", "auto"]) == 2
    said = capsys.readouterr().err
    for name, (now, before) in CHANGED.items():
        told = name + " x devices" * (name == "trainer.accumulate_grad_batches")
        assert f"- {told} is {now}; it was {before}\n" in said
    assert "remedy: go on without changing them" in said and said.count("; it was") == len(CHANGED)
    assert {path: path.read_bytes() for path in files} == files


def test_evaluation_asks_for_the_options_of_the_adapter_alone(
    undisturbed: Undisturbed, copied: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    options = undisturbed.options(copied, model__quantization="none", model__lr=1e-6)
    assert main(["validate", *options, "--ckpt_path", "best"]) == 0
    assert main(["validate", *options, "--model.alpha", "64", "--ckpt_path", "best"]) == 2
    assert "model.alpha is 64.0; it was 32.0" in capsys.readouterr().err


def test_checkpoint_from_before_options_and_peaks_were_in_it_is_gone_on_from(
    undisturbed: Undisturbed, run: RunDirectory
) -> None:
    shutil.copytree(undisturbed.run.path, run.path)
    path = find_checkpoint(run, "last")
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["options"], checkpoint["callbacks"]["MemoryMonitor"]
    clear(run)
    torch.save(checkpoint, path)
    before = run.read_manifest().result["peak_memory"]
    fit(*undisturbed.options(run, model__lr=1e-6), "--resume", "auto")
    assert run.read_manifest().result["peak_memory"] == before
