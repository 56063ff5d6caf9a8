"""Checkpoints: every 50 optimizer steps, the best by validation loss, and the end. Megabytes, never the base."""

import logging
import math
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from app.artifact import RunDirectory
from app.callbacks.checkpoint_files import (
    by_value,
    drop_after,
    fault_of,
    prune,
    read_seal,
    save_adapter,
    save_checkpoint,
    step_path,
)
from app.callbacks.stop_signals import Stopped, StopSignals
from app.errors import MachineError, first_line, require_ranges
from app.model.ladder import is_out_of_memory
from app.model.window import release_memory

TOKENIZER_BYTES = 40 * 2**20
"""More than any tokenizer here takes (Gemma's has 34 MB)."""
LOG_BYTES = 32 * 2**20
"""Left free for logs and the manifest: a disk that is full to the last byte helps nobody."""
log = logging.getLogger(__name__)


class Checkpoints(Checkpoint):
    """Saves what a resume needs and, beside it, the adapter as plain peft loads it.

    ``checkpoints/step-000050.ckpt`` with ``adapter-last/``; when it is the best yet, with ``adapter/`` too. Without a
    validation split ``adapter/`` follows the last step. At the end the best adapter is the one in memory and in
    ``adapter/``. A step with a validation is saved after it, so that a resume knows its outcome.

    A save that fails is reported and tried again a little later; training goes on, and older checkpoints stay.

    Lightning's ModelCheckpoint is not used: it cannot save the last step of a run that does not divide by the
    interval, leaves a stale ``last.ckpt`` beside a versioned one after a resume, ends the run when the disk is full,
    and knows nothing of adapters or hashes (lightning 2.6.6).

    Args:
        every: optimizer steps between saves; no more than these are ever lost.
        keep: how many of the newest stay on disk.
        best: how many of the best stay on disk.
        monitor: the metric whose lowest value is the best.
    """

    def __init__(self, every: int = 50, keep: int = 2, best: int = 1, monitor: str = "val/loss") -> None:
        require_ranges("checkpoints", {"every": (every, 1, 10**9), "keep": (keep, 1, 10**6), "best": (best, 1, 10**6)})
        self.every, self.keep, self.keep_best, self.monitor = every, keep, best, monitor
        self.best: float | None = None
        self.best_step = 0
        self.failed_saves = 0
        self._saved_step = 0
        self._due_step = every
        self._bytes = 0
        self._metrics: dict[str, float] = {}
        self._signals = StopSignals()

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_step": self.best_step, "metrics": self._metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.best_step = state_dict["best"], state_dict["best_step"]
        self._metrics = dict(state_dict["metrics"])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses to start where the disk cannot hold what the run will save.

        Raises:
            MachineError: with what is free and what is needed.
        """
        adapter = sum(p.numel() * p.element_size() for p in pl_module.parameters() if p.requires_grad)
        self._bytes = 3 * adapter + 2**20  # weights and AdamW's two moments, at most as wide
        run = RunDirectory(trainer.default_root_dir)
        files = (self.keep + self.keep_best + 1) * self._bytes + 3 * (adapter + TOKENIZER_BYTES) + LOG_BYTES
        there = 0
        if trainer.is_global_zero:
            there = sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file())
        free, there = trainer.strategy.broadcast((shutil.disk_usage(run.path).free, there))
        if free < files - there:
            raise MachineError(
                f"{run.path} has {free / 2**20:,.0f} MiB of free disk space; this run needs "
                f"{(files - there) / 2**20:,.0f} MiB for its checkpoints, adapters and logs",
                where="--run",
                remedy="free some space, choose a --run on another disk, or lower checkpoints.keep",
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._signals.install()
        if self._metrics:
            # Lightning logs a step after this callback has saved it, too late if that was the last it did.
            for logger in trainer.loggers:
                logger.log_metrics(self._metrics, step=trainer.global_step - 1)
        self._go_on(trainer)
        self._due_step = (trainer.global_step // self.every + 1) * self.every
        loop = trainer.fit_loop
        if loop.restarted_mid_epoch and loop.epoch_progress.current.completed == loop.epoch_progress.current.ready:
            # The checkpoint ended its epoch. Lightning (2.6.6) has completed it, but would count the next one as its
            # rest, and a resume from a checkpoint of that one would add up micro-batches in other windows.
            loop.reset_restart_stage()

    def _go_on(self, trainer: Trainer) -> None:
        """Leaves in the run what led to this step alone, and says so where its best is not among that.

        Checkpoints of later steps, on a way that is now left, would be taken for the newest ever after.
        """
        run, step = RunDirectory(trainer.default_root_dir), trainer.global_step
        saved = lost = False
        if trainer.is_global_zero:
            later = drop_after(run, step)
            saved = step_path(run, step).is_file()
            lost = self.best is not None and not step_path(run, self.best_step).is_file()
            lost &= bool(later) or not run.adapter.is_dir()  # else the best is in adapter/, and stays there
        saved, lost = trainer.strategy.broadcast((saved, lost))
        self._saved_step = step if saved else 0
        if lost:
            log.warning(f"the best of step {self.best_step} is not in {run.path}: the best from step {step} on is kept")
            self.best, self.best_step = None, 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.fit_loop._should_accumulate() and not _is_validated_next(trainer):
            self._end_step(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        value = float(trainer.callback_metrics[self.monitor])
        if math.isfinite(value) and (self.best is None or value < self.best):
            before = self.best, self.best_step
            self.best, self.best_step = value, trainer.global_step
            if not self.save(trainer, pl_module, value):
                self.best, self.best_step = before
        elif trainer.strategy.broadcast(self._is_among_best(RunDirectory(trainer.default_root_dir), value)):
            self.save(trainer, pl_module, value)
        self._end_step(trainer, pl_module, value)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step != self._saved_step:
            self.save(trainer, pl_module)
        if self.best is not None:
            self._restore_best(trainer, pl_module)

    def _is_among_best(self, run: RunDirectory, value: float) -> bool:
        best = [seal.value for path in by_value(run)[: self.keep_best] if (seal := read_seal(path))]
        return len(best) < self.keep_best or any(worse is not None and value < worse for worse in best)

    def _end_step(self, trainer: Trainer, pl_module: LightningModule, value: float | None = None) -> None:
        """After a step, and its validation if it had one: saves what is due, and stops if a signal has asked for it."""
        stop = any_signal(trainer, self._signals.received)
        if (stop or trainer.global_step >= self._due_step) and trainer.global_step != self._saved_step:
            self.save(trainer, pl_module, value)
        if stop:
            raise Stopped(stop, self._saved_step)

    def save(self, trainer: Trainer, pl_module: LightningModule, value: float | None = None) -> bool:
        """Saves this step and prunes older ones; whether it can be gone on from.

        Args:
            trainer, pl_module: as callbacks get them.
            value: of the monitored metric at this step.
        """
        run, step = RunDirectory(trainer.default_root_dir), trainer.global_step
        value = value if value is not None and math.isfinite(value) else None
        fault = failure_of(lambda: self._write(trainer, run, value), pl_module.device)
        if fault is not None:
            self.failed_saves += 1
            self._due_step = step + max(1, self.every // 5)
            stands = f"step {self._saved_step} stays the newest" if self._saved_step else "there is none yet"
            log.warning(f"step {step} could not be saved in {run.path}: {fault}; training goes on, {stands}")
            return False
        self._saved_step = step
        self._due_step = (step // self.every + 1) * self.every
        folders = [run.adapter_last, *([run.adapter] if self.best is None or self.best_step == step else [])]
        for folder in folders:
            self._write_adapter(trainer, pl_module, folder)
        if trainer.is_global_zero:  # the others read no folder in training
            prune(run, keep=self.keep, best=self.keep_best)
        return True

    def _write(self, trainer: Trainer, run: RunDirectory, value: float | None) -> None:
        free = trainer.strategy.broadcast(shutil.disk_usage(run.path).free)
        if free < self._bytes + LOG_BYTES:
            raise OSError(f"{free / 2**20:,.0f} MiB are free, {(self._bytes + LOG_BYTES) / 2**20:,.0f} MiB are needed")
        shown = ("train/", "val/") if value is not None else ("train/",)
        self._metrics = {name: float(each) for name, each in trainer.callback_metrics.items() if name.startswith(shown)}
        for logger in trainer.loggers:
            logger.save()  # what TensorBoard holds back, up to two minutes of it
        path = step_path(run, trainer.global_step)
        self._bytes = save_checkpoint(trainer, path, value) or self._bytes

    def _write_adapter(self, trainer: Trainer, pl_module: LightningModule, folder: Path) -> None:
        fault = failure_of(lambda: save_adapter(trainer, pl_module, folder), pl_module.device)
        if fault is not None:
            log.warning(f"{folder} could not be written: {fault}; the checkpoint of this step holds it")

    def _restore_best(self, trainer: Trainer, pl_module: LightningModule) -> None:
        run = RunDirectory(trainer.default_root_dir)
        path = step_path(run, self.best_step)
        fault = trainer.strategy.broadcast(fault_of(path) if path.is_file() else "it is gone")
        if fault is not None:
            log.warning(
                f"the best checkpoint {path} cannot be restored: {fault}; {run.adapter} is as it was saved then"
            )
            return
        best = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        pl_module.load_state_dict(best, strict=False)
        self._write_adapter(trainer, pl_module, run.adapter)


def any_signal(trainer: Trainer, received: signal.Signals | None) -> signal.Signals | None:
    """The signal that any rank has received: all of them stop after the same step."""
    if trainer.world_size == 1:
        return received
    number = torch.tensor(received or 0, device=trainer.strategy.root_device)
    number = trainer.strategy.reduce(number, reduce_op="max")
    return signal.Signals(int(number)) if number else None


def failure_of(write: Callable[[], object], device: torch.device, *, again: bool = True) -> str | None:
    """What kept something from being written; None if nothing did. Out of memory is met by freeing some, once."""
    try:
        write()
    except Exception as fault:  # Lightning, safetensors and tokenizers each raise kinds of their own for a full disk
        if not (again and is_out_of_memory(fault)):
            return first_line(fault)
    else:
        return None
    release_memory(device)
    return failure_of(write, device, again=False)


def _is_validated_next(trainer: Trainer) -> bool:
    """Whether a validation will be run before training goes on (as `Validations` has Lightning's loop decide it)."""
    loop, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return sum(trainer.num_val_batches) > 0 and loop._should_check_val_fx(fetcher)
