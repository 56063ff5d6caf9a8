"""What is given up when memory runs out: time first; parts of rows last, and only where that is allowed."""

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

TIGHTEST = 5
"""How often the fast kernels' memory budget is lowered by a tenth: after five times 59 % of it are left."""
UNLIMITED = 2**31

Phase = Literal["training", "evaluation"]
Trade = Literal["budget", "recompute", "offload"]


@dataclass(frozen=True, kw_only=True)
class MemorySettings:
    """What a run trades for memory. All but ``length`` leave its results what they were, but for rounding.

    Attributes:
        rows: that go through the model together in training; None is the whole micro-batch.
        recompute: every layer in the backward pass, also where the configuration does not ask for it.
        offload: what the backward pass needs waits in CPU memory.
        tighter: how often the fast kernels' budget was lowered by a tenth; they recompute and offload to keep it.
        evaluation_rows: that go through the model together in evaluation; None is as many as in training.
        length: tokens to which rows are cut; None is not at all.
    """

    rows: int | None = None
    recompute: bool = False
    offload: bool = False
    tighter: int = 0
    evaluation_rows: int | None = None
    length: int | None = None

    def encode(self) -> list[int]:
        """Numbers of which the largest is what saves most memory: those of several ranks are joined by a maximum."""
        limits = (self.rows, self.evaluation_rows, self.length)
        return [*(-(limit or UNLIMITED) for limit in limits), self.recompute, self.offload, self.tighter]

    @classmethod
    def decode(cls, codes: Sequence[int]) -> "MemorySettings":
        """The settings that ``encode`` gave, or the tightest of several."""
        rows, evaluation_rows, length = (None if code == -UNLIMITED else -code for code in codes[:3])
        recompute, offload, tighter = codes[3:]
        return cls(
            rows=rows,
            evaluation_rows=evaluation_rows,
            length=length,
            recompute=bool(recompute),
            offload=bool(offload),
            tighter=tighter,
        )


def next_rung(
    settings: MemorySettings, phase: Phase, *, rows: int, length: int, trades: Container[Trade], shortest: int | None
) -> tuple[MemorySettings, str] | None:
    """The next settings to try and what they change, in words; None where nothing is left to give up.

    Args:
        settings: those that ran out of memory.
        phase: in which they did.
        rows, length: of the piece that did.
        trades: what time can be traded for here.
        shortest: the length that rows may be cut to; None forbids it.
    """
    if rows > 1:
        half = -(-rows // 2)
        if phase == "evaluation":
            return replace(settings, evaluation_rows=half), f"evaluation takes {half} of {rows} rows at a time"
        change = f"training takes {half} of {rows} rows at a time, twice as often: the step stays the same"
        return replace(settings, rows=half), change
    if phase == "training" and "budget" in trades and settings.tighter < TIGHTEST:
        changed = replace(settings, tighter=settings.tighter + 1)
        return changed, "a tenth less memory for saved results: more of them are recomputed or offloaded"
    if phase == "training" and "recompute" in trades and not settings.recompute:
        return replace(settings, recompute=True), "each layer is recomputed in the backward pass"
    if phase == "training" and "offload" in trades and not settings.offload:
        return replace(settings, offload=True), "what the backward pass needs waits in CPU memory"
    if shortest is not None and length > shortest:
        cut = max(shortest, 3 * length // 4)
        change = f"rows are CUT to {cut} tokens: longer ones lose their beginning, packed ones their end"
        return replace(settings, length=cut), change
    return None


def is_out_of_memory(fault: BaseException) -> bool:
    """Whether an exception says that memory ran out: torch has a kind for its CUDA allocator alone."""
    if isinstance(fault, torch.OutOfMemoryError | MemoryError):
        return True
    signs = (
        "can't allocate memory",  # torch's CPU allocator, Linux
        "not enough memory",  # the same on Windows
        "CUDA error: out of memory",
        "CUDA out of memory",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "std::bad_alloc",
    )
    return isinstance(fault, RuntimeError) and any(sign in str(fault) for sign in signs)
