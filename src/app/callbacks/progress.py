"""The progress bar: steps, loss, tokens/s, memory and time left; plain lines where there is no terminal."""

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TaskID, TextColumn

from app.terminal import is_quiet, progress_display


class TrainingProgress(ProgressBar):
    """Counts optimizer steps over the whole run, and batches while a validation or test runs; with --quiet nothing.

    Args:
        refresh_every: on a pipe or in a log file, optimizer steps between lines.
    """

    def __init__(self, refresh_every: int = 10) -> None:
        super().__init__()
        self.refresh_every = refresh_every
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._training: TaskID | None = None
        self._checking: TaskID | None = None
        self._began = (0, 0.0)
        self._printed = 0
        self._enabled = True

    def disable(self) -> None:
        """Lightning's, on every process but the first."""
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    @property
    def is_enabled(self) -> bool:
        return self._enabled and not is_quiet()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = (trainer.global_step, time.monotonic())
        self._printed = trainer.global_step
        if self._begin():
            total = int(trainer.estimated_stepping_batches)
            self._training = self._add("train", total, done=trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        status = _status(trainer)
        if self._bar is not None and self._training is not None:
            self._bar.update(self._training, completed=trainer.global_step, status=status)
        elif self.is_enabled and trainer.global_step >= self._printed + self.refresh_every:
            self._printed = trainer.global_step
            total = int(trainer.estimated_stepping_batches)
            first, since = self._began
            left = (time.monotonic() - since) / (trainer.global_step - first) * (total - trainer.global_step)
            self._console.print(f"step {trainer.global_step}/{total}  {status}  {_clock(left)} left", highlight=False)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        self._begin_check("validate", sum(map(int, batches)))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin_check("test", sum(map(int, trainer.num_test_batches)))

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._advance_check()

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._advance_check()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end_check()
        if self._bar is not None and self._training is not None:
            self._bar.update(self._training, status=_status(trainer))
            return
        loss, while_training = trainer.callback_metrics.get("val/loss"), trainer.state.fn == "fit"
        if loss is not None and self.is_enabled and while_training and not trainer.sanity_checking:
            self._console.print(f"step {trainer.global_step}  validation loss {float(loss):.4f}", highlight=False)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end_check()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _begin(self) -> bool:
        """Shows the display where there is to be one; whether there is."""
        if self._bar is None and self._console.is_interactive and self.is_enabled:
            self._bar = progress_display(MofNCompleteColumn(), TextColumn("{task.fields[status]}"))
            self._bar.start()
        return self._bar is not None

    def _add(self, name: str, total: int, *, done: int = 0) -> TaskID:
        assert self._bar is not None
        return self._bar.add_task(name, total=total, completed=done, status="")

    def _begin_check(self, name: str, total: int) -> None:
        """A second bar while training; the only one otherwise."""
        if self._begin():
            self._checking = self._add(name, total)

    def _advance_check(self) -> None:
        if self._bar is not None and self._checking is not None:
            self._bar.advance(self._checking)

    def _end_check(self) -> None:
        if self._bar is None or self._checking is None:
            return
        if self._training is None:
            self._stop()
        else:
            self._bar.remove_task(self._checking)
            self._checking = None

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._training = self._checking = None


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
