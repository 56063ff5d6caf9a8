"""Early stopping that a resume does not undo."""

from lightning.pytorch import LightningModule, Trainer, callbacks


class EarlyStopping(callbacks.EarlyStopping):
    """Lightning's, which forgets that it had stopped: a run killed between that and its end would train on (2.6.6)."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.wait_count >= self.patience:
            trainer.should_stop = True
