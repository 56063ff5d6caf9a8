"""Which file a run goes on from: whole ones only, by their hash; which stay on disk; and what a full disk does."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from app.__main__ import main
from app.artifact import RunDirectory
from app.cache import content_hash
from app.callbacks import checkpoints
from app.callbacks.checkpoint_files import (
    Seal,
    by_value,
    clear,
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
