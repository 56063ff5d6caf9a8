"""Which file a run goes on from: whole ones only, by their hash; which stay on disk; and what a full disk does."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from safetensors.torch import load_file

from app.__main__ import main
from app.artifact import RunDirectory
from app.cache import content_hash
from app.callbacks import checkpoints
from app.callbacks.checkpoint_files import (
    Seal,
    by_value,
    clear,
    drop,
    fault_of,
    find_checkpoint,
    newest_whole,
    prune,
    read_seal,
)
from app.errors import RunError
from callbacks.conftest import Undisturbed
from support.faults import with_callback
from support.fitting import fit


@pytest.fixture
def copied(undisturbed: Undisturbed, run: RunDirectory) -> RunDirectory:
    """The undisturbed run's checkpoints: its two newest and its best."""
    shutil.copytree(undisturbed.run.checkpoints, run.checkpoints)
    return run


def test_last_best_and_path(undisturbed: Undisturbed, copied: RunDirectory) -> None:
    steps = sorted(copied.checkpoints.glob("*.ckpt"))
    assert find_checkpoint(copied, "last") == steps[-1]
    seal = read_seal(find_checkpoint(copied, "best"))
    result = undisturbed.run.read_manifest().result
    assert seal is not None and (seal.step, seal.value) == (result["best_step"], result["best_val_loss"])
    assert find_checkpoint(copied, str(steps[0])) == steps[0]


def flip(path: Path) -> None:
    """One bit in the middle of it, where tensors lie: it still loads."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip, truncate, empty])
def test_damaged_one_is_named_and_passed_over_for_the_one_before(
    copied: RunDirectory, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    before, newest = sorted(copied.checkpoints.glob("*.ckpt"))[-2:]
    damage(newest)
    assert newest_whole(copied) == before
    assert len(caplog.records) == 1 and f"{newest} is damaged" in caplog.text
    with pytest.raises(RunError, match=f"{newest.name} is damaged"):
        find_checkpoint(copied, str(newest))


def test_damage_that_torch_does_not_see_is_seen_by_the_hash(copied: RunDirectory) -> None:
    """The control of the test above: without its seal the file with a flipped bit would be gone on from."""
    newest = find_checkpoint(copied, "last")
    flip(newest)
    torch.load(newest, weights_only=True, mmap=True)
    assert "SHA-256" in str(fault_of(newest))


def test_run_goes_on_from_the_one_before_and_ends_the_same(
    undisturbed: Undisturbed, copied: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    newest = find_checkpoint(copied, "last")
    truncate(newest)
    fit(*undisturbed.options(copied), "--resume", "auto")
    assert f"{newest} is damaged" in caplog.text
    assert undisturbed.is_equal(copied)


def test_all_damaged(undisturbed: Undisturbed, copied: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    for path in copied.checkpoints.glob("*.ckpt"):
        truncate(path)
    assert main(["fit", *undisturbed.options(copied), "--resume", "auto"]) == 2
    assert "no whole checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("sealed", [True, False])
def test_file_that_would_run_code_is_refused(copied: RunDirectory, sealed: bool) -> None:
    path = copied.checkpoints / "step-000999.ckpt"
    torch.save({"harm": print}, path)
    if sealed:  # an attacker can make a hash too
        seal = Seal(sha256=content_hash(path), bytes=path.stat().st_size, step=999, value=None)
        path.with_suffix(".json").write_text(json.dumps(asdict(seal)))
    with pytest.raises(RunError, match="step-000999"):
        find_checkpoint(copied, str(path))
    assert find_checkpoint(copied, "last") != path


def test_missing_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no checkpoint to go on from"):
        find_checkpoint(RunDirectory(tmp_path), "last")
    with pytest.raises(RunError, match="no checkpoint with a validation"):
        find_checkpoint(RunDirectory(tmp_path), "best")
    with pytest.raises(RunError, match="there is no checkpoint"):
        find_checkpoint(RunDirectory(tmp_path), str(tmp_path / "other.ckpt"))


def test_last_ones_and_best_ones_stay(copied: RunDirectory) -> None:
    any_one = find_checkpoint(copied, "last")
    seal = read_seal(any_one)
    assert seal is not None
    clear(copied)
    for step, value in {2: 5.0, 4: 3.0, 6: None, 8: 4.0, 10: 6.0, 12: 7.0, 14: None}.items():
        path = copied.checkpoints / f"step-{step:06d}.ckpt"
        path.touch()
        path.with_suffix(".json").write_text(json.dumps(asdict(replace(seal, step=step, value=value))))
    prune(copied, keep=2, best=2)
    left = [int(path.stem.removeprefix("step-")) for path in sorted(copied.checkpoints.glob("*.ckpt"))]
    assert left == [4, 8, 12, 14]
    assert [path.stem for path in by_value(copied)] == ["step-000004", "step-000008", "step-000012"]
    assert len(list(copied.checkpoints.glob("*.json"))) == 4


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


def test_overwrite_leaves_nothing_of_the_run_before(undisturbed: Undisturbed, run: RunDirectory) -> None:
    """A checkpoint of a later step than the new run has must not be taken for its last."""
    shutil.copytree(undisturbed.run.checkpoints, run.checkpoints)
    last = find_checkpoint(run, "last")
    last.rename(last.with_name("step-000999.ckpt"))
    fit(*undisturbed.options(run, trainer__max_epochs=1), "--overwrite", "true")
    assert {path.stem for path in run.checkpoints.glob("*.ckpt")} <= {f"step-{step:06d}" for step in range(1, 6)}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of 192 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0  # Windows has none
    as_root = [] if is_root else ["sudo", "-n"]  # which CI's own user may, without being asked
    mount = [*as_root, "mount", "-t", "tmpfs", "-o", "size=192m", "tmpfs", folder]
    try:
        subprocess.run(mount, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a tmpfs cannot be mounted here (it takes root)")
    yield folder
    subprocess.run([*as_root, "umount", folder], check=True)


def test_disk_too_small_for_the_run_is_refused_at_once(
    undisturbed: Undisturbed, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (disk / "filler").write_bytes(bytes(150 * 2**20))
    assert main(["fit", *undisturbed.options(RunDirectory(disk / "run"))]) == 2
    said = capsys.readouterr().err
    assert "MiB of free disk space; this run needs" in said and "checkpoints.keep" in said


@pytest.mark.parametrize("foreseen", [True, False], ids=["too little space", "ENOSPC while writing"])
def test_disk_that_fills_does_not_end_training(
    undisturbed: Undisturbed,
    disk: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    foreseen: bool,
) -> None:
    """Full from step 3 to step 7; the space check is blinded to see what the real error does."""
    run = RunDirectory(disk / "run")
    if not foreseen:
        real = shutil.disk_usage(disk)._replace(free=10**12)
        monkeypatch.setattr("shutil.disk_usage", lambda path: real)
    fit(*with_callback(tmp_path, "FillDisk", full=3, free=7), *undisturbed.options(run))
    assert "step 4 could not be saved" in caplog.text and "step 3 stays the newest" in caplog.text
    assert ("are needed" if foreseen else "No space left on device") in caplog.text
    manifest = run.read_manifest()
    assert manifest.status == "finished" and manifest.result["failed_saves"] >= 3
    assert all(fault_of(path) is None for path in run.checkpoints.glob("*.ckpt"))
    assert undisturbed.is_equal(run)


def test_memory_that_runs_out_while_saving(
    undisturbed: Undisturbed, run: RunDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once: the save is tried again. Twice in a row: it is reported, and training goes on."""
    tries: list[int] = []
    real = checkpoints.save_checkpoint

    def short_of_memory(trainer: Trainer, path: Path, value: float | None = None) -> int:
        tries.append(trainer.global_step)
        if tries in ([1], [1, 1, 2, 3], [1, 1, 2, 3, 3]):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(trainer, path, value)

    monkeypatch.setattr(checkpoints, "save_checkpoint", short_of_memory)
    fit(*undisturbed.options(run))
    assert tries == [1, 1, 2, 3, 3, 4, 5, 6, 7, 8]
    assert "step 3 could not be saved" in caplog.text and "step 2 stays the newest" in caplog.text
    assert run.read_manifest().result["failed_saves"] == 1
    assert undisturbed.is_equal(run)
