"""Checkpoint files: whole or not at all, each with its hash beside it, found again newest first, pruned to a few."""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from app.artifact import RunDirectory, write_atomic
from app.cache import content_hash
from app.card import write_adapter_card
from app.errors import RunError, first_line
from app.model.ladder import is_out_of_memory

STEP_FILES = "step-*.ckpt"
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Seal:
    """What ``step-000050.json`` says of the checkpoint beside it.

    Attributes:
        sha256: of the file.
        bytes: its size.
        step: optimizer steps done.
        value: the monitored metric at this step; None where there was no validation.
    """

    sha256: str
    bytes: int
    step: int
    value: float | None


def step_path(run: RunDirectory, step: int) -> Path:
    return run.checkpoints / f"step-{step:06d}.ckpt"


def seal_path(checkpoint: Path) -> Path:
    return checkpoint.with_suffix(".json")


def read_seal(checkpoint: Path) -> Seal | None:
    """The checkpoint's seal; None where there is none, or none that can be read."""
    try:
        return Seal(**json.loads(seal_path(checkpoint).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def save_checkpoint(trainer: Trainer, path: Path, value: float | None = None) -> int:
    """Writes Lightning's checkpoint beside, flushes it to disk, seals it, and only then gives it its name.

    The seal comes first: a file that bears its final name always has one. Rank 0 writes; all ranks return or raise
    alike, for one that went its own way would leave the others waiting.

    Returns:
        Its size in bytes.

    Raises:
        OSError, RuntimeError: it could not be written (torch has no kind of its own for a full disk); nothing is left.
    """
    size, fault = 0, None
    try:
        size = _write(trainer, path, value)
    except Exception as raised:  # told to the other ranks below
        if trainer.world_size == 1:
            raise
        fault = raised
    said = None if fault is None else (first_line(fault), is_out_of_memory(fault))
    size, said = trainer.strategy.broadcast((size, said))
    if said is not None:
        text, memory = said
        raise (torch.OutOfMemoryError if memory else RuntimeError)(text) from fault
    return size


def _write(trainer: Trainer, path: Path, value: float | None) -> int:
    if not trainer.is_global_zero:
        trainer.save_checkpoint(path, weights_only=False)  # takes part; writes nothing
        return 0
    part = path.with_name(f".{path.name}.part")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            trainer.save_checkpoint(part, weights_only=False)
        except Exception:
            trainer.strategy.barrier()  # in which the other ranks wait
            raise
        with part.open("rb+") as written:
            os.fsync(written.fileno())
        seal = Seal(sha256=content_hash(part), bytes=part.stat().st_size, step=trainer.global_step, value=value)
        path.unlink(missing_ok=True)  # of another attempt: it must not be taken for what the new seal seals
        write_atomic(seal_path(path), json.dumps(asdict(seal)) + "\n")
        part.replace(path)
        return seal.bytes
    finally:
        part.unlink(missing_ok=True)


def save_adapter(trainer: Trainer, pl_module: LightningModule, folder: Path) -> None:
    """The adapter and its tokenizer in peft's own layout; each file is replaced whole."""
    if not trainer.is_global_zero:
        return
    model: Any = pl_module.peft_model
    data: Any = trainer.datamodule  # type: ignore[attr-defined]  # set by Trainer.fit
    run = RunDirectory(trainer.default_root_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".adapter-") as part:
        # False: peft would ask the hub for the base's config to see whether its vocabulary was changed.
        model.save_pretrained(part, save_embedding_layers=False)
        data.tokenizer.save_pretrained(part)
        if run.manifest_path.is_file():
            write_adapter_card(run, Path(part))
        for file in Path(part).iterdir():
            with file.open("rb+") as written:
                os.fsync(written.fileno())
        for file in Path(part).iterdir():
            file.replace(folder / file.name)


def fault_of(path: Path) -> str | None:
    """Why a checkpoint cannot be gone on from; None if it can.

    Its bytes are compared with its seal; one without a seal is read through. Either way it must load without pickle.
    """
    seal = read_seal(path)
    if seal is not None:
        if path.stat().st_size != seal.bytes:
            return f"it has {path.stat().st_size} bytes instead of {seal.bytes}"
        if content_hash(path) != seal.sha256:
            return "its bytes are not those that were written (SHA-256 differs)"
    try:
        torch.load(path, map_location="meta" if seal is not None else "cpu", weights_only=True, mmap=seal is not None)
    except Exception as fault:  # torch raises half a dozen kinds for a damaged archive
        return first_line(fault)
    return None


def newest_whole(run: RunDirectory) -> Path | None:
    """The newest checkpoint that is whole; damaged ones are named and passed over. None if there is none."""
    for path in sorted(run.checkpoints.glob(STEP_FILES), reverse=True):
        fault = fault_of(path)
        if fault is None:
            return path
        log.warning(f"the checkpoint {path} is damaged: {fault}; the one before it is used")
    return None


def by_value(run: RunDirectory) -> list[Path]:
    """The checkpoints with a validation, the best (lowest) first."""
    seals = [(read_seal(path), path) for path in run.checkpoints.glob(STEP_FILES)]
    return [path for _, path in sorted((seal.value, path) for seal, path in seals if seal and seal.value is not None)]


def find_checkpoint(run: RunDirectory, name: str) -> Path:
    """The file that ``--ckpt_path`` means: "last", "best", or a path.

    Raises:
        RunError: there is none; or the one that was named is damaged, or all are.
    """
    if name == "last":
        path = newest_whole(run)
        if path is None:
            damaged = any(run.checkpoints.glob(STEP_FILES))
            raise RunError(
                f"{run.path} holds no {'whole ' if damaged else ''}checkpoint to go on from",
                where="--ckpt_path last",
                remedy="start without --ckpt_path; the first checkpoint is written after checkpoints.every steps",
            )
        return path
    best = by_value(run)
    if name == "best" and not best:
        raise RunError(
            f"there is no checkpoint with a validation in {run.checkpoints}", where="--ckpt_path", remedy="use last"
        )
    path = best[0] if name == "best" else Path(name)
    if not path.is_file():
        raise RunError(
            f"there is no checkpoint {path}", where="--ckpt_path", remedy="use last, best, or the path of a .ckpt file"
        )
    fault = fault_of(path)
    if fault is not None:
        raise RunError(
            f"the checkpoint {path} is damaged: {fault}",
            where="--ckpt_path",
            remedy="use --ckpt_path last, which goes on from the newest that is whole",
        )
    return path


def prune(run: RunDirectory, *, keep: int, best: int) -> None:
    """Deletes all but the newest ``keep`` and the ``best`` best."""
    files = sorted(run.checkpoints.glob(STEP_FILES))
    kept = {*files[-keep:], *by_value(run)[:best]}
    drop(path for path in files if path not in kept)


def drop(checkpoints: Iterable[Path]) -> None:
    """Deletes checkpoints with their seals."""
    for path in checkpoints:
        path.unlink(missing_ok=True)
        seal_path(path).unlink(missing_ok=True)


def drop_after(run: RunDirectory, step: int) -> list[Path]:
    """Deletes the checkpoints of later steps, which are not to be gone on from; returns those it has found."""
    numbers = {path: path.stem.removeprefix("step-") for path in run.checkpoints.glob(STEP_FILES)}
    later = [path for path, number in numbers.items() if number.isdecimal() and int(number) > step]
    drop(later)
    return later


def clear(run: RunDirectory) -> None:
    """Deletes what another run has left that this one would take for its own."""
    drop(list(run.checkpoints.glob(STEP_FILES)))
    for folder in (run.adapter, run.adapter_last):
        shutil.rmtree(folder, ignore_errors=True)
    tidy(run)


def tidy(run: RunDirectory) -> None:
    """Deletes what saves that were killed half-way have left; only while the run is locked."""
    for folder in run.path.glob(".adapter-*"):
        shutil.rmtree(folder, ignore_errors=True)
    left = [seal for seal in run.checkpoints.glob("step-*.json") if not seal.with_suffix(".ckpt").exists()]
    for path in (*left, *run.checkpoints.glob(".step-*")):
        path.unlink(missing_ok=True)
