"""The batches of one optimizer step, and a second try with less memory when there was too little of it."""

import gc
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from app.errors import MachineError
from app.model.ladder import MemorySettings, is_out_of_memory

if TYPE_CHECKING:
    from lightning.pytorch.strategies import Strategy

    from app.model.loss import Batch

BY_ROW = ("input_ids", "trained", "attention_mask", "position_ids")


def pieces(batch: "Batch", *, rows: int | None, length: int | None) -> "Iterator[Batch]":
    """The batch in pieces of at most ``rows`` rows, cut to ``length`` tokens; None leaves either as it is."""
    tensors = {name: value for name, value in batch.items() if name in BY_ROW and isinstance(value, Tensor)}
    count, longest = batch["input_ids"].shape
    if length is not None and length < longest:
        tensors = _cut(tensors, length)
    for start in range(0, count, rows or count):
        part = slice(start, start + (rows or count))
        yield cast("Batch", {name: value[part] for name, value in tensors.items()})


def _cut(tensors: dict[str, Tensor], length: int) -> dict[str, Tensor]:
    """Packed rows lose their last documents. Others lose their beginning: the answer, which is trained, ends them.

    Cut at the end, rows of long questions had no trained token left: steps were empty, and a validation loss was NaN.
    """
    if "position_ids" in tensors:
        return {name: value[:, :length] for name, value in tensors.items()}
    columns = torch.arange(tensors["trained"].shape[1], device=tensors["trained"].device)
    end = (tensors["trained"] * (columns + 1)).amax(1, keepdim=True)  # after the last trained token # [B, 1]
    kept = (end - length).clamp(min=0) + columns[:length]
    return {name: value.gather(1, kept) for name, value in tensors.items()}


def release_memory(device: torch.device) -> None:
    """Gives back what a failed pass has left behind: cycles, and torch's cache of freed blocks."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


class Window:
    """Runs batches forward and backward and adds up gradients, losses and trained tokens until `close`.

    Out of memory in the middle of a backward pass leaves half a gradient behind. The window's batches, which are ids
    and take kilobytes, are kept: the whole window is run again from its start, with the random numbers it began with.
    The step is then the one that enough memory would have given, but for rounding.

    Args:
        step: a batch -> its summed loss (detached) and trained tokens; adds to the gradients.
        parameters: the trained ones.
        settings: those in force.
        climb: called with rows and length of what did not fit, and the fault; changes the settings or raises an error.

    Attributes:
        loss: summed over the window, in nats.
        tokens: trained, in the window.
    """

    def __init__(
        self,
        step: "Callable[[Batch], tuple[Tensor, Tensor]]",
        parameters: Sequence[nn.Parameter],
        *,
        settings: Callable[[], MemorySettings],
        climb: Callable[[int, int, Exception], None],
    ) -> None:
        self._step, self._parameters, self._settings, self._climb = step, parameters, settings, climb
        self._devices = [parameters[0].device] if parameters[0].is_cuda else []
        self.close()

    def close(self) -> None:
        """Begins anew, after an optimizer step."""
        self._batches: list[Batch] = []
        self.loss: Tensor | float = 0.0
        self.tokens: Tensor | int = 0

    def add(self, batch: "Batch") -> None:
        """Runs one more batch.

        Raises:
            MachineError: memory ran out and nothing is left to give up.
        """
        if not self._batches:
            self._random = torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in self._devices]
            self._drop_gradients()
        self._batches.append(batch)
        fault = self._run(self._batches[-1:])
        while fault is not None:
            self._drop_gradients()
            release_memory(self._parameters[0].device)
            self._climb(*fault)
            self._begin_again()
            fault = self._run(self._batches)

    def reduce(self, strategy: "Strategy") -> None:
        """Adds the window's gradients up over all ranks, in one message.

        Not while the last backward pass still runs: a rank that runs out of memory runs its whole window again, and a
        recorded step's backward pass is one graph. torch's DistributedDataParallel, given the finished gradients, took
        15 ms for Mistral-7B's 448 of them (two H200s, 2026-11): most of it is work per parameter, on the CPU.

        Args:
            strategy: Lightning's, which knows the ranks.
        """
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in self._parameters]
        total = strategy.reduce(torch.cat([each.flatten() for each in gradients]), reduce_op="sum")
        parts = total.split([each.numel() for each in gradients])
        for parameter, part in zip(self._parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)

    def _run(self, batches: "Sequence[Batch]") -> tuple[int, int, Exception] | None:
        """Rows and length of the piece that did not fit, and the fault; None when all did.

        A MachineError comes from the fast kernels' planner, before it came to the worst.
        """
        settings = self._settings()
        for batch in batches:
            for piece in pieces(batch, rows=settings.rows, length=settings.length):
                try:
                    loss, tokens = self._step(piece)
                except Exception as fault:
                    if not isinstance(fault, MachineError) and not is_out_of_memory(fault):
                        raise
                    rows, length = piece["input_ids"].shape
                    return rows, length, fault.with_traceback(None)  # whose frames hold what was allocated
                self.count(loss, tokens)
        return None

    def count(self, loss: Tensor, tokens: Tensor) -> None:
        """Adds a batch's summed loss and trained tokens."""
        self.loss, self.tokens = self.loss + loss, self.tokens + tokens

    def _begin_again(self) -> None:
        self._drop_gradients()
        self.loss, self.tokens = 0.0, 0
        cpu, cuda = self._random
        torch.set_rng_state(cpu)
        for device, state in zip(self._devices, cuda, strict=True):
            torch.cuda.set_rng_state(state, device)

    def _drop_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None
