"""A last validation where training ends, also when the interval does not divide the number of steps."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class FinalValidation(Callback):
    """Without it the steps after the last full interval are never judged, and can never be the best.

    Lightning validates at once when a stop is asked for (lightning 2.6.6, ``_should_check_val_fx``), so one is asked
    for at the step that would have been the last anyway.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step >= trainer.estimated_stepping_batches:
            trainer.should_stop = True
