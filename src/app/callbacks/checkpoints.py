"""Checkpoints: every 50 optimizer steps, the best by validation loss, and the end. Megabytes, never the base."""

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from app.artifact import RunDirectory
from app.errors import RunError, first_line, require_ranges

STEP_FILES = "step-*.ckpt"


class Checkpoints(Checkpoint):
    """Saves what a resume needs and, beside it, the adapter as plain peft loads it.

    ``checkpoints/step-000050.ckpt`` (the newest ``keep`` stay) with ``adapter-last/``, and ``checkpoints/best.ckpt``
    with ``adapter/``. Without a validation split ``adapter/`` follows the last step.

    Lightning's ModelCheckpoint is not used: it cannot save the last step of a run that does not divide by the
    interval, leaves a stale ``last.ckpt`` beside a versioned one after a resume, and knows nothing of adapters
    (lightning 2.6.6).

    Args:
        every: optimizer steps between saves.
        keep: how many of these stay on disk.
        monitor: the metric whose lowest value is the best.
    """

    def __init__(self, every: int = 50, keep: int = 2, monitor: str = "val/loss") -> None:
        require_ranges("checkpoints", {"every": (every, 1, 10**9), "keep": (keep, 1, 10**6)})
        self.every, self.keep, self.monitor = every, keep, monitor
        self.best: float | None = None
        self.best_step = 0
        self._saved_step = 0

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.best_step = state_dict["best"], state_dict["best_step"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % self.every == 0 and trainer.global_step != self._saved_step:
            self.save_last(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        value = float(trainer.callback_metrics[self.monitor])
        if self.best is None or value < self.best:
            self.best, self.best_step = value, trainer.global_step
            run = RunDirectory(trainer.default_root_dir)
            save_checkpoint(trainer, run.checkpoints / "best.ckpt")
            save_adapter(trainer, pl_module, run.adapter)
        if trainer.global_step == self._saved_step:
            # The file was written before this validation; a resume must know its outcome (best, early stopping).
            self.save_last(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step != self._saved_step:
            self.save_last(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Saves the last whole step; in the middle of an accumulation window the save before it stands."""
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress
        whole = progress.current.processed % trainer.accumulate_grad_batches == 0
        if trainer.state.fn == "fit" and whole and trainer.global_step > self._saved_step:
            self.save_last(trainer, pl_module)

    def save_last(self, trainer: Trainer, pl_module: LightningModule) -> None:
        run = RunDirectory(trainer.default_root_dir)
        self._saved_step = trainer.global_step
        save_checkpoint(trainer, run.checkpoints / f"step-{trainer.global_step:06d}.ckpt")
        save_adapter(trainer, pl_module, run.adapter_last)
        if self.best is None:
            save_adapter(trainer, pl_module, run.adapter)
        if trainer.is_global_zero:
            for old in sorted(run.checkpoints.glob(STEP_FILES))[: -self.keep]:
                old.unlink(missing_ok=True)


def save_checkpoint(trainer: Trainer, path: Path) -> None:
    """Lightning's checkpoint, whole or not at all: written beside, flushed to disk, renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    trainer.save_checkpoint(part, weights_only=False)
    if trainer.is_global_zero:
        with part.open("rb+") as written:
            os.fsync(written.fileno())
        part.replace(path)


def save_adapter(trainer: Trainer, pl_module: LightningModule, folder: Path) -> None:
    """The adapter and its tokenizer in peft's own layout; each file is replaced whole."""
    if not trainer.is_global_zero:
        return
    model: Any = pl_module.peft_model
    data: Any = trainer.datamodule  # type: ignore[attr-defined]  # set by Trainer.fit
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".adapter-") as part:
        # False: peft would ask the hub for the base's config to see whether its vocabulary was changed.
        model.save_pretrained(part, save_embedding_layers=False)
        data.tokenizer.save_pretrained(part)
        for file in Path(part).iterdir():
            file.replace(folder / file.name)


def find_checkpoint(run: RunDirectory, name: str) -> Path:
    """The file that ``--ckpt_path`` means: "last", "best", or a path.

    Raises:
        RunError: there is none, or it is damaged.
    """
    if name == "last":
        steps = sorted(run.checkpoints.glob(STEP_FILES))
        if not steps:
            raise RunError(
                f"{run.path} holds no checkpoint to go on from",
                where="--ckpt_path last",
                remedy="start without --ckpt_path; the first checkpoint is written after checkpoints.every steps",
            )
        path = steps[-1]
    else:
        path = run.checkpoints / "best.ckpt" if name == "best" else Path(name)
    if not path.is_file():
        raise RunError(
            f"there is no checkpoint {path}", where="--ckpt_path", remedy="use last, best, or the path of a .ckpt file"
        )
    try:
        torch.load(path, map_location="meta", weights_only=True, mmap=True)
    except Exception as fault:  # torch raises half a dozen kinds for a damaged archive
        raise RunError(
            f"the checkpoint {path} is damaged: {first_line(fault)}",
            where="--ckpt_path",
            remedy="use the one before it: --ckpt_path FILE",
        ) from fault
    return path
