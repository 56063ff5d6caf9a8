"""A run's forward and backward passes, kept within the memory there is."""

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from app.artifact import Adaptation
from app.errors import MachineError, first_line
from app.model.accelerate import Acceleration
from app.model.fast_step import DESKTOP, FastStep
from app.model.ladder import MemorySettings, Phase, Trade, is_out_of_memory, next_rung
from app.model.optimizer import OptimizerName
from app.model.window import Window, pieces, release_memory

if TYPE_CHECKING:
    from lightning.pytorch.strategies import Strategy
    from peft import PeftModel

    from app.model.loss import Batch

log = logging.getLogger(__name__)


def enable_recomputation(model: "PeftModel", *, dropout: bool) -> None:
    """Each decoder layer is computed again in the backward pass; with dropout, with the same random numbers."""
    model.gradient_checkpointing_enable(
        gradient_checkpointing_kwargs={"use_reentrant": False, "preserve_rng_state": dropout}
    )


class Passes:
    """Runs batches through the model; where memory runs out, it climbs `app.model.ladder` and runs them again.

    Args:
        model: with its adapter, on its device.
        summed_loss: (causal_lm, batch) -> summed loss and trained tokens.
        parameters: the trained ones.
        rows: of a micro-batch, as configured.
        acceleration: the fast layers, or None.
        budget: bytes of GPU memory for the fast layers; None is nearly the whole card.
        optimizer: how much memory it takes.
        divisor: what a micro-batch's summed loss is divided by before its gradient is taken.
        recomputes: whether the configuration asks for recomputation already.
        dropout: whether there is any.
        shortest: tokens that rows may be cut to when nothing else helps; None forbids it.
        sharded: whether ranks gather each other's weights in every pass. Then all run equally many, and one that runs
            out of memory cannot try again alone.
        adaptations: the run's; what is changed is added.
        steps: how many optimizer steps are done.
    """

    def __init__(
        self,
        model: "PeftModel",
        summed_loss: "Callable[[Any, Batch], tuple[Tensor, Tensor]]",
        parameters: Sequence[nn.Parameter],
        *,
        rows: int,
        acceleration: Acceleration | None,
        budget: int | None,
        optimizer: OptimizerName,
        divisor: int,
        recomputes: bool,
        dropout: bool,
        shortest: int | None,
        sharded: bool,
        adaptations: list[Adaptation],
        steps: Callable[[], int],
    ) -> None:
        self._model, self._summed_loss, self._parameters = model, summed_loss, list(parameters)
        self._causal_lm = model.get_base_model()
        self._rows = rows
        self._acceleration, self._budget, self._optimizer = acceleration, budget, optimizer
        self._divisor, self._recomputes, self._dropout = divisor, recomputes, dropout
        self._shortest, self._adaptations, self._steps = shortest, adaptations, steps
        self._device = self._parameters[0].device
        self.settings = MemorySettings(**adaptations[-1].memory) if adaptations else MemorySettings()
        self._sharded = sharded
        if sharded:
            self.settings = replace(self.settings, rows=None, evaluation_rows=None)
        self._apply()
        self.window = Window(
            self._run,
            self._parameters,
            settings=lambda: self.settings,
            climb=lambda rows, length, fault: self.climb("training", rows, length, fault),
        )

    def pause(self) -> None:
        """Before an evaluation, which needs the memory of the recorded step: a fit planned for 7,150 MiB took 7,412.

        Recording the step again afterwards takes about a second.
        """
        if self._fast is not None:
            self._fast.release()

    def resume(self) -> None:
        """After an evaluation: what it left in the allocator is given back."""
        if self._fast is not None:
            release_memory(self._device)

    def evaluate(self, batch: "Batch") -> tuple[Tensor, Tensor]:
        """Summed loss and trained tokens; never more rows at a time than training takes.

        Raises:
            MachineError: memory ran out and nothing is left to give up.
        """
        count, length = batch["input_ids"].shape
        while True:
            rows = min(count, self.settings.rows or self._rows, self.settings.evaluation_rows or count)
            rows = count if self._sharded else rows
            cut = min(length, self.settings.length or length)
            try:
                sums = [self._summed_loss(self._causal_lm, piece) for piece in pieces(batch, rows=rows, length=cut)]
                losses, tokens = zip(*sums, strict=True)
                return torch.stack(losses).sum(), torch.stack(tokens).sum()
            except Exception as fault:
                if not is_out_of_memory(fault):
                    raise
                cause = fault.with_traceback(None)  # whose frames hold what was allocated
            release_memory(self._device)
            self.climb("evaluation", rows, cut, cause)

    def climb(self, phase: Phase, rows: int, length: int, fault: BaseException) -> None:
        """Gives up the next thing for memory, says so, and notes it.

        Args:
            phase: in which memory ran out.
            rows, length: of what did not fit.
            fault: as it was raised.

        Raises:
            MachineError: nothing is left to give up.
        """
        cause = f"out of memory in {phase} at {rows} x {length} tokens: {first_line(fault)}"
        if self._sharded:
            raise MachineError(
                f"{cause}; with model.shard_base no GPU can run its rows again while the others wait for it",
                where="data.max_length",
                remedy="take more GPUs, or lower data.max_length, data.batch_size, data.eval_batch_size or model.rank; "
                "then go on with --resume auto",
            )
        # A plan that does not fit the budget will not fit a smaller one.
        trades = () if isinstance(fault, MachineError) else self._trades()
        rung = next_rung(self.settings, phase, rows=rows, length=length, trades=trades, shortest=self._shortest)
        if rung is None:
            tried = "".join(f"\n  - {adaptation.change}" for adaptation in self._adaptations)
            raise MachineError(
                f"{cause}; nothing is left to give up" + (f", after{tried}" if tried else ""),
                where="data.max_length",
                remedy="close what else uses this memory, lower data.max_length or model.rank, or allow shorter rows "
                "by --model.shorten_to TOKENS",
            )
        self.settings, change = rung
        self.note(cause, change)
        self._apply()

    def agree(self, strategy: "Strategy") -> None:
        """Takes over what another rank has given up for memory, at a window's end: a resume is without its error.

        Args:
            strategy: Lightning's, over whose ranks settings are compared.
        """
        codes = torch.tensor(self.settings.encode(), device=self._device)
        tightest = MemorySettings.decode(strategy.reduce(codes, reduce_op="max").tolist())
        if tightest != self.settings:
            self.settings = tightest
            self.note("another rank ran out of memory", "what it has given up is given up here too")
            self._apply()

    def note(self, cause: str, change: str, *, lr_scale: float | None = None) -> None:
        """Logs a change that keeps the run alive and adds it to the run's adaptations."""
        if lr_scale is None:
            lr_scale = self._adaptations[-1].lr_scale if self._adaptations else 1.0
        log.warning(f"{cause}; from here on: {change}")
        self._adaptations.append(
            Adaptation(step=self._steps(), cause=cause, change=change, memory=asdict(self.settings), lr_scale=lr_scale)
        )

    def _trades(self) -> tuple[Trade, ...]:
        if self._acceleration is not None:
            return ("budget",)
        recompute: tuple[Trade, ...] = () if self._recomputes else ("recompute",)
        offload: tuple[Trade, ...] = ("offload",) if self._device.type == "cuda" else ()
        return recompute + offload

    def _apply(self) -> None:
        if self.settings.recompute:
            enable_recomputation(self._model, dropout=self._dropout)
        self._fast: FastStep | None = None
        if self._acceleration is not None:
            budget = self._budget
            if self.settings.tighter:
                budget = budget or torch.cuda.mem_get_info(self._device)[1] - DESKTOP
                budget = int(budget * 0.9**self.settings.tighter)
            self._fast = FastStep(
                self._causal_lm,
                self._acceleration,
                self._parameters,
                budget=budget,
                optimizer=self._optimizer,
                divisor=self._divisor,
            )

    def _run(self, batch: "Batch") -> tuple[Tensor, Tensor]:
        """Forward and backward: adds to the gradients; summed loss (detached) and trained tokens."""
        if self._fast is not None:
            return self._fast(batch, step=self._steps())
        with torch.autograd.graph.save_on_cpu(pin_memory=True) if self.settings.offload else nullcontext():
            loss, tokens = self._summed_loss(self._causal_lm, batch)
        (loss / self._divisor).backward()
        return loss.detach(), tokens
