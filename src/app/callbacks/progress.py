"""The progress bar: steps, loss, tokens/s, memory and time left; plain lines where there is no terminal."""

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class TrainingProgress(ProgressBar):
    """Counts optimizer steps over the whole run, and validation batches while a validation runs.

    Args:
        refresh_every: on a pipe or in a log file, optimizer steps between lines.
    """

    def __init__(self, refresh_every: int = 10) -> None:
        super().__init__()
        self.refresh_every = refresh_every
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._task: Any = None
        self._began = (0, 0.0)
        self._printed = 0
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = (trainer.global_step, time.monotonic())
        self._printed = trainer.global_step
        if not self._enabled or not self._console.is_terminal:
            return
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
        )
        total = int(trainer.estimated_stepping_batches)
        self._task = self._bar.add_task("train", total=total, completed=trainer.global_step, status="")
        self._bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        status = _status(trainer)
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.global_step, status=status)
        elif self._enabled and trainer.global_step >= self._printed + self.refresh_every:
            self._printed = trainer.global_step
            total = int(trainer.estimated_stepping_batches)
            first, since = self._began
            left = (time.monotonic() - since) / (trainer.global_step - first) * (total - trainer.global_step)
            self._console.print(f"step {trainer.global_step}/{total}  {status}  {_clock(left)} left", highlight=False)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description="validate")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description="train", status=_status(trainer))
        elif self._enabled and not trainer.sanity_checking and "val/loss" in trainer.callback_metrics:
            loss = float(trainer.callback_metrics["val/loss"])
            self._console.print(f"step {trainer.global_step}  validation loss {loss:.4f}", highlight=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _status(trainer: Trainer) -> str:
    metrics = trainer.callback_metrics
    parts = (
        ("train/loss", "loss {:.3f}"),
        ("val/loss", "val {:.3f}"),
        ("speed/tokens_per_second", "{:,.0f} tokens/s"),
        ("memory/process_peak_gib", "{:.2f} GiB"),
    )
    return "  ".join(form.format(float(metrics[name])) for name, form in parts if name in metrics)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
