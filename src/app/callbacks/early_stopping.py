"""Early stopping that a resume does not undo, unless it is given more patience."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer, callbacks


class EarlyStopping(callbacks.EarlyStopping):
    """Lightning's, which forgets that it had stopped: a run killed between that and its end would train on (2.6.6)."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Patience is an option, not a state: Lightning would bring back the one that has ended the run."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.wait_count >= self.patience:
            trainer.should_stop = True
