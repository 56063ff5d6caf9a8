"""Random states in the checkpoint, so that a resumed run draws what the uninterrupted one would have drawn."""

import random
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class RandomState(Callback):
    """Saves Python's, NumPy's and torch's generators, and restores them when training begins.

    Of GPUs the process's own alone: a resume may see fewer.

    Plain numbers and tensors only: the checkpoint is read with ``weights_only=True``.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        kind, keys, position, has_gauss, gauss = cast(tuple[Any, ...], np.random.get_state(legacy=True))
        return {
            "python": random.getstate(),
            "numpy": [str(kind), keys.tolist(), int(position), int(has_gauss), float(gauss)],
            "torch": torch.get_rng_state(),
            "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._loaded is None:
            return
        version, internal, gauss = self._loaded["python"]
        random.setstate((version, tuple(internal), gauss))
        kind, keys, position, has_gauss, cached = self._loaded["numpy"]
        np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
        torch.set_rng_state(self._loaded["torch"])
        if self._loaded["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state(self._loaded["cuda"][0])
        self._loaded = None
