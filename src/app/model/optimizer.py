"""Optimizers and the learning-rate schedule."""

import logging
import math
from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import nn

log = logging.getLogger(__name__)

OptimizerName = Literal["paged_adamw_8bit", "adamw_8bit", "adamw"]
Schedule = Literal["cosine", "linear", "constant"]


def build_optimizer(
    name: OptimizerName, parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float, device: torch.device
) -> torch.optim.Optimizer:
    """AdamW over the adapters.

    The paged 8-bit form keeps its two moments in 8 bits and lets the driver move them to RAM when the card is full
    (QLoRA, section 3). It exists on CUDA only: elsewhere torch's AdamW takes its place, with one warning.

    A step over Mistral-7B's adapters takes 17 ms paged, 15 in 8 bits and 1.4 in 32, fused (H200, 2026-11,
    scripts/bench/optimizers.py); the state takes 80 MiB or 320. The default is for 8 GB: 16 ms are 0.04 % of the 40 s
    that a laptop needs for a window of 16 rows, and 240 MiB hold longer rows, or results that need not be computed
    again. A card with memory to spare does better with ``adamw``.
    """
    if name != "adamw" and device.type == "cuda":
        from bitsandbytes import optim

        chosen = optim.PagedAdamW8bit if name == "paged_adamw_8bit" else optim.AdamW8bit
        eight_bit: torch.optim.Optimizer = chosen(parameters, lr=lr, weight_decay=weight_decay)
        return eight_bit
    if name != "adamw":
        log.warning("model.optimizer %s needs CUDA; on this %s AdamW in 32 bits is used", name, device.type.upper())
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=device.type == "cuda")


def schedule_factor(schedule: Schedule, *, warmup_steps: int, total_steps: int) -> Callable[[int], float]:
    """Step -> factor on the learning rate: linear warm-up, then the schedule down to 0 at ``total_steps``.

    Step 0 already learns: it gets 1 / warmup_steps, not 0.
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        if schedule == "constant":
            return 1.0
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        return 0.5 * (1 + math.cos(math.pi * progress)) if schedule == "cosine" else 1 - progress

    return factor
