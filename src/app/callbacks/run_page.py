"""index.html in the run directory, while the run goes on."""

import dataclasses
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from app.artifact import RunDirectory, Status, write_atomic
from app.callbacks.record import status_after
from app.callbacks.samples import Question, answer, pick_questions
from app.errors import first_line, require_ranges
from app.pages.history import History
from app.pages.run import metrics_path, page_path, run_page, samples_path

METRICS = (
    "train/loss",
    "train/grad_norm",
    "lr",
    "speed/tokens_per_second",
    "memory/process_gib",
    "memory/process_peak_gib",
)
"""What is kept of each optimizer step; of a validation its loss."""
log = logging.getLogger(__name__)


class RunPage(Callback):
    """Shows losses, learning rate, speed, memory, answers during training, configuration and reports on one page.

    The training computed is bit for bit the one without it. Figures come from the trainer, a line a step goes to
    ``logs/metrics.jsonl``; a resume goes on in that file. Answers are written at a validation's end, when the memory of
    the training step is free; where it is short all the same, they are left out with a notice. Rank 0 writes the page
    and the answers, while others wait.

    Args:
        enabled: write the page.
        prompts: questions that are answered during training; by default some of the validation split.
        questions: how many of the validation split, where no prompts are given.
        samples_every: validations between two answers to them; 0: they are never answered.
        max_tokens: of each answer.
        interval: seconds, at least, between two versions of the page; a browser loads it again as often.
    """

    def __init__(
        self,
        enabled: bool = True,
        prompts: list[str] | None = None,
        questions: int = 3,
        samples_every: int = 1,
        max_tokens: int = 64,
        interval: float = 10.0,
    ) -> None:
        require_ranges(
            "run_page",
            {
                "questions": (questions, 1, 16),
                "samples_every": (samples_every, 0, 10**9),
                "max_tokens": (max_tokens, 1, 512),
                "interval": (interval, 0, 86400),
            },
        )
        self.enabled, self.prompts, self.questions = enabled, prompts or [], questions
        self.samples_every, self.max_tokens, self.interval = samples_every, max_tokens, interval
        self._validations = 0
        self._run: RunDirectory | None = None
        self._asked: list[Question] = []
        self._written = 0.0
        self._told: set[str] = set()

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validations = state_dict["validations"]

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer)
        self._write()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._run is None or trainer.fit_loop._should_accumulate():
            return
        row = {"step": trainer.global_step, "of": int(trainer.estimated_stepping_batches), "time": time.time()}
        logged = trainer.callback_metrics
        self._add(self._metrics, row | {name: _finite(logged[name]) for name in METRICS if name in logged})
        if time.monotonic() >= self._written + self.interval:
            self._write()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The model is in eval mode, and what is done here does not count as training's time."""
        if self._run is None or trainer.state.fn != "fit":
            return
        self._validations += not trainer.sanity_checking
        if self._asked and self._validations % self.samples_every == 0:
            self._ask(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._run is None or trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        loss = _finite(trainer.callback_metrics["val/loss"])
        self._add(self._metrics, {"step": trainer.global_step, "time": time.time(), "val/loss": loss})
        self._write()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The manifest says by now how it ended."""
        self._write()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._write(status_after(exception))

    def _begin(self, trainer: Trainer) -> None:
        """Once, before the first evaluation: an attempt that resumes keeps what led to its first step, no more."""
        if self._run is not None or not self.enabled or not trainer.is_global_zero:
            return
        self._run = run = RunDirectory(trainer.default_root_dir)
        self._metrics, self._samples = History(metrics_path(run)), History(samples_path(run))
        for history in (self._metrics, self._samples):
            with self._disk_faults():
                history.go_on_from(trainer.global_step if trainer.ckpt_path else -1)
        module: Any = trainer.lightning_module
        if self.samples_every and not module.sharded:  # rank 0 alone cannot run through others' weights
            data: Any = trainer.datamodule  # type: ignore[attr-defined]  # set by Trainer.fit
            self._asked = pick_questions(data, self.prompts, self.questions)

    def _ask(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        try:
            texts = answer(pl_module, data.tokenizer, data.family, self._asked, max_tokens=self.max_tokens)
        except Exception as fault:  # whatever it is: no run of hours may end for the sake of its page
            self._tell(f"answers during training are left out at step {trainer.global_step}: {first_line(fault)}")
            return
        for asked, text in zip(self._asked, texts, strict=True):
            row = {"step": trainer.global_step, "prompt": asked.text, "expected": asked.expected, "answer": text}
            self._add(self._samples, row)

    def _add(self, history: History, row: dict[str, Any]) -> None:
        with self._disk_faults():
            history.add(row)

    def _write(self, status: Status | None = None) -> None:
        if self._run is None:
            return
        manifest = self._run.read_manifest()
        if status is not None:
            manifest = dataclasses.replace(manifest, status=status)
        text = run_page(self._run, manifest, self._metrics.rows, self._samples.rows, refresh=self.interval)
        with self._disk_faults():
            write_atomic(page_path(self._run), text)
        self._written = time.monotonic()

    @contextmanager
    def _disk_faults(self) -> Iterator[None]:
        """A full disk leaves a gap in the page and does not end the run."""
        try:
            yield
        except OSError as fault:
            self._tell(f"the run's page cannot be kept up: {fault.strerror}; training goes on")

    def _tell(self, notice: str) -> None:
        """Once of a kind."""
        kind = notice.split(":")[0].split(" at step")[0]
        if kind not in self._told:
            self._told.add(kind)
            log.warning(notice)


def _finite(value: Any) -> float | None:
    """JSON knows no infinity and no NaN."""
    number = float(value)
    return number if math.isfinite(number) else None
