"""Memory during training: what is allocated, what is reserved, and what the driver says."""

from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from app.model.memory import MemoryReading, read_memory


class MemoryMonitor(Callback):
    """Logs ``memory/*_gib`` at every optimizer step and keeps the peaks.

    ``memory/process_gib`` is the driver's figure for the process, the one that must fit the card: torch's own leave
    out the CUDA context. On a CPU all are the resident set. 1 GiB = 2**30 bytes. Peaks are those of all parts of a run
    that was resumed.
    """

    def __init__(self) -> None:
        self.peak = MemoryReading(allocated=0, reserved=0, process=0)

    def state_dict(self) -> dict[str, Any]:
        return asdict(self.peak)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.peak = MemoryReading(**state_dict)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.fit_loop._should_accumulate():
            return
        now = read_memory(pl_module.device)
        allocated, reserved = now.allocated, now.reserved
        if pl_module.device.type == "cuda":
            # What is taken and given back between two readings counts as well.
            allocated = torch.cuda.max_memory_allocated(pl_module.device)
            reserved = torch.cuda.max_memory_reserved(pl_module.device)
        self.peak = MemoryReading(
            allocated=max(self.peak.allocated, allocated),
            reserved=max(self.peak.reserved, reserved),
            process=max(self.peak.process, now.process + reserved - now.reserved),
        )
        gib = {
            "memory/allocated_gib": now.allocated / 2**30,
            "memory/reserved_gib": now.reserved / 2**30,
            "memory/process_gib": now.process / 2**30,
            "memory/process_peak_gib": self.peak.process / 2**30,
        }
        pl_module.log_dict(gib)
