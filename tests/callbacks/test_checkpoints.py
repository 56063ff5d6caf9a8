"""Which file `--ckpt_path` means, and that a damaged one is refused."""

from pathlib import Path

import pytest
import torch

from app.artifact import RunDirectory
from app.callbacks.checkpoint_files import find_checkpoint
from app.errors import RunError


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path)
    directory.checkpoints.mkdir()
    for name in ("step-000050", "step-000100", "best"):
        torch.save({"state_dict": {"a": torch.arange(1000)}}, directory.checkpoints / f"{name}.ckpt")
    return directory


def test_last_best_and_path(run: RunDirectory) -> None:
    assert find_checkpoint(run, "last").name == "step-000100.ckpt"
    assert find_checkpoint(run, "best").name == "best.ckpt"
    named = run.checkpoints / "step-000050.ckpt"
    assert find_checkpoint(run, str(named)) == named


@pytest.mark.parametrize("name", ["last", "best"])
def test_damaged_file_is_named(run: RunDirectory, name: str) -> None:
    path = find_checkpoint(run, name)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(RunError, match=f"{path.name} is damaged"):
        find_checkpoint(run, name)


def test_file_that_would_run_code_is_refused(run: RunDirectory) -> None:
    torch.save({"harm": print}, run.checkpoints / "step-000150.ckpt")
    with pytest.raises(RunError, match="step-000150"):
        find_checkpoint(run, "last")


def test_missing_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no checkpoint to go on from"):
        find_checkpoint(RunDirectory(tmp_path), "last")
    with pytest.raises(RunError, match="there is no checkpoint"):
        find_checkpoint(RunDirectory(tmp_path), "best")
