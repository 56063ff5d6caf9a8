"""When validations run: after every so many optimizer steps, and where training ends."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Validations(Callback):
    """Has the trainer's ``val_check_interval`` count optimizer steps, and the last one validated too.

    Lightning counts micro-batches across epochs (lightning 2.6.6, ``_should_check_val_fx``). An epoch that ends in a
    short accumulation window shifts all validations after it into the middle of one, and what is saved at a validation
    there cannot be gone on from: half a step's gradients are in no checkpoint.

    Without the last one the steps after the last full interval are never judged, and can never be the best. Lightning
    validates at once when a stop is asked for, so one is asked for at the step that would have been the last anyway.

    A resume is told of the validation that its checkpoint was saved after, which Lightning then skips, also where it
    would not be due any more: with more epochs than the run had, Lightning would go on within the one that has ended.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loop, every = trainer.fit_loop, trainer.val_check_interval
        epoch_loop: Any = loop.epoch_loop

        def is_due(_: object) -> bool:
            if epoch_loop.restarting and epoch_loop.restarted_on_last and loop.restarted_mid_epoch:
                return True
            stops = trainer.should_stop and loop._can_stop_early
            at_step = not loop._should_accumulate() and trainer.global_step % every == 0
            return bool(epoch_loop._should_check_val_epoch() and (stops or at_step))

        epoch_loop._should_check_val_fx = is_due  # there is no hook for it

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step >= trainer.estimated_stepping_batches:
            trainer.should_stop = True
