"""Numbers that are none: steps without them, what follows when they do not come back, and warnings before it."""

import logging
import math
from collections import deque
from statistics import fmean, pstdev
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from app.artifact import RunDirectory
from app.callbacks.checkpoint_files import drop_after
from app.errors import DataError, require_ranges, several

WINDOW = 50
"""Steps that a loss and a gradient norm are compared with."""
log = logging.getLogger(__name__)


class RolledBack(Exception):  # noqa: N818  # not an error: the run begins again at an earlier step
    """The run is to go on from before the steps whose numbers were not finite.

    Attributes:
        step: the last one that was.
    """

    def __init__(self, step: int) -> None:
        super().__init__(f"back to step {step}")
        self.step = step


class Divergence(Callback):
    """Counts skipped steps, goes back once, then stops; and watches the loss and the gradient's norm.

    `QLoRAModule` skips a step whose loss or gradient is not finite: weights and moments stay what they were. After
    ``patience`` of them in a row the run goes back to the last checkpoint before them with a lower learning rate. If
    that has happened already it stops and names the rows it cannot train on.

    Logs ``train/skipped_steps`` and ``train/spikes``; the norm itself is logged with the loss.

    Args:
        patience: steps in a row that may be skipped.
        lr_factor: on the learning rate, when the run goes back.
        spike: standard deviations above the mean of the last 50 steps from which a loss or a norm is a spike; each is
            logged, nothing is done about it.
    """

    def __init__(self, patience: int = 5, lr_factor: float = 0.5, spike: float = 6.0) -> None:
        require_ranges(
            "divergence",
            {"patience": (patience, 1, 10**6), "lr_factor": (lr_factor, 1e-6, 1), "spike": (spike, 1, 10**6)},
        )
        self.patience, self.lr_factor, self.spike = patience, lr_factor, spike
        self.skipped = self.spikes = 0
        self._in_a_row: list[int] = []
        self._recent: dict[str, deque[float]] = {name: deque(maxlen=WINDOW) for name in ("loss", "gradient norm")}

    def state_dict(self) -> dict[str, Any]:
        return {
            "skipped": self.skipped,
            "spikes": self.spikes,
            "in_a_row": self._in_a_row,
            "recent": {name: list(values) for name, values in self._recent.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped, self.spikes = state_dict["skipped"], state_dict["spikes"]
        self._in_a_row = list(state_dict["in_a_row"])
        for name, values in state_dict["recent"].items():
            self._recent[name].extend(values)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A lower learning rate holds from the first step on: the checkpoint brought back the one before."""
        for config in trainer.lr_scheduler_configs:
            scheduler: Any = config.scheduler
            for group, base, factor in zip(
                scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
            ):
                group["lr"] = base * factor(scheduler.last_epoch)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Judges a whole step.

        Raises:
            RolledBack: too many steps in a row were skipped, for the first time.
            DataError: for the second time.
        """
        if trainer.fit_loop._should_accumulate():
            return
        module: Any = pl_module
        numbers = {"loss": module.step_loss, "gradient norm": module.step_norm}
        if all(map(math.isfinite, numbers.values())):
            self._in_a_row = []
            self._watch(trainer.global_step, numbers)
        else:
            self._skip(trainer, module, numbers)
        pl_module.log_dict({"train/skipped_steps": float(self.skipped), "train/spikes": float(self.spikes)})

    def _skip(self, trainer: Trainer, module: Any, numbers: dict[str, float]) -> None:
        step = trainer.global_step
        self.skipped += 1
        self._in_a_row.append(step)
        said = ", ".join(f"{name} {value}" for name, value in numbers.items())
        log.warning(f"step {step} is skipped: {said}; {len(self._in_a_row)} in a row, {self.skipped} in all")
        if len(self._in_a_row) < self.patience:
            return
        cause = f"{self.patience} steps in a row, from step {self._in_a_row[0]} on, had no finite loss or gradient"
        scale = module.adaptations[-1].lr_scale if module.adaptations else 1.0
        good = self._in_a_row[0] - 1
        if trainer.is_global_zero:
            drop_after(RunDirectory(trainer.default_root_dir), good)
        trainer.strategy.barrier("the checkpoints after it are gone")
        if scale == 1:
            change = f"back to before them, with {self.lr_factor:g} times the learning rate"
            module.passes.note(cause, change, lr_scale=self.lr_factor)
            raise RolledBack(good)
        raise DataError(
            several(f"{cause}, also with {scale:g} times the learning rate", self._rows(trainer)),
            where="data.path",
            remedy="look at these rows; mend or remove them, or lower model.lr, and start again with --overwrite true",
        )

    def _rows(self, trainer: Trainer) -> list[str]:
        """The rows of the skipped steps, by file and line."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]  # set by Trainer.fit
        window = trainer.accumulate_grad_batches * trainer.world_size
        per_epoch = int(trainer.num_training_batches) * trainer.world_size
        steps_per_epoch = -(-per_epoch // window)
        named = []
        for step in self._in_a_row:
            epoch, inside = divmod(step - 1, steps_per_epoch)
            batches = range(inside * window, min((inside + 1) * window, per_epoch))
            for row in data.samples_of(epoch, batches):
                named.append(f"step {step}: {row.file} line {row.line} ({row.id})")
        return named

    def _watch(self, step: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            recent = self._recent[name]
            if len(recent) == recent.maxlen:
                mean, spread = fmean(recent), pstdev(recent)
                if value > mean + self.spike * spread and spread > 0:
                    self.spikes += 1
                    log.warning(f"step {step}: {name} {value:.4g} is a spike; of the last {WINDOW} it was {mean:.4g}")
            recent.append(value)
