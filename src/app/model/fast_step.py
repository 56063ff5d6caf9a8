"""The accelerated training step: fast layers, a memory plan that fits the budget, forward and backward as one graph."""

import logging
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from app.errors import ConfigError
from app.kernels.linear_cross_entropy import linear_cross_entropy
from app.model.accelerate import Acceleration
from app.model.budget import fit_to_budget, offload_embeddings
from app.model.memory_plan import describe_plans
from app.model.optimizer import OptimizerName
from app.model.step_graph import StepGraph

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from app.model.loss import Batch

STATE_BYTES: dict[OptimizerName, int] = {"adamw": 8, "adamw_8bit": 2, "paged_adamw_8bit": 2}
"""Bytes of optimizer state per trained parameter: two moments in 32 or 8 bits."""
DESKTOP = 256 * 2**20
log = logging.getLogger(__name__)


def parse_budget(value: str) -> int | None:
    """``7150MiB`` (or ``7GiB``) as bytes; None for ``auto``.

    Raises:
        ConfigError: it is neither.
    """
    if value == "auto":
        return None
    for unit, factor in (("MiB", 2**20), ("GiB", 2**30)):
        number = value.removesuffix(unit)
        if number != value and number.strip().replace(".", "", 1).isdigit():
            return int(float(number) * factor)
    raise ConfigError(
        f"model.memory_budget is {value!r}", where="model.memory_budget", remedy="write it as 7150MiB, 7GiB or auto"
    )


class FastStep:
    """Runs micro-batches forward and backward and adds their gradients to the parameters'.

    The memory plan is made for the first micro-batch's shape, and again if a larger one comes.

    Args:
        causal_lm: with peft's layers inside; its decoder's layers are swapped.
        acceleration: from `app.model.accelerate.accelerate`.
        parameters: the trained ones.
        budget: bytes of GPU memory; None is the whole card but 256 MiB for the desktop.
        optimizer: how much memory it will take.
        divisor: what a micro-batch's summed loss is divided by before its gradient is taken.
    """

    def __init__(
        self,
        causal_lm: "PreTrainedModel",
        acceleration: Acceleration,
        parameters: list[nn.Parameter],
        *,
        budget: int | None,
        optimizer: OptimizerName,
        divisor: int,
    ) -> None:
        self._causal_lm, self._acceleration, self._parameters = causal_lm, acceleration, parameters
        self._budget, self._divisor = budget, divisor
        self._state_bytes = STATE_BYTES[optimizer] * sum(parameter.numel() for parameter in parameters)
        self._device = parameters[0].device
        if self._device.type == "cuda":
            offload_embeddings(causal_lm)
        self._begin()
        self._planned = (0, 0)

    def __call__(self, batch: "Batch", *, step: int) -> tuple[Tensor, Tensor]:
        """The summed loss of a micro-batch in nats (detached) and its trained tokens, as `summed_loss` gives them.

        Args:
            batch: padded or packed rows.
            step: number of the optimizer step that it belongs to.
        """
        self._acceleration.begin_step(step)
        rows, length = batch["input_ids"].shape
        if self._device.type == "cuda" and rows * length > self._planned[0] * self._planned[1]:
            self._plan(rows, length)
        # Padding stands behind the tokens that see it, so a causal model needs no mask for it.
        names = ("input_ids", "trained", "position_ids")
        inputs = {name: value for name, value in batch.items() if name in names and isinstance(value, Tensor)}
        # Rows that are not packed differ in length; a graph of one length would hold memory that all others need too.
        return self._graph(inputs, record="position_ids" in inputs) * self._divisor, batch["trained"][:, 1:].sum()

    def release(self) -> None:
        """Gives the step's memory to what comes between two steps."""
        self._graph.release()

    def _begin(self) -> None:
        """A new graph; first a failed pass gives its memory back, which would stand in the way of all further tries."""
        self._acceleration.store.begin()
        self._graph = StepGraph(self._loss, self._parameters)

    def _plan(self, rows: int, length: int) -> None:
        self._begin()  # a graph of smaller shapes gives its memory back before what is in use is counted
        plans = fit_to_budget(
            self._causal_lm,
            self._acceleration,
            rows=rows,
            length=length,
            budget=self._budget or torch.cuda.mem_get_info(self._device)[1] - DESKTOP,
            state_bytes=self._state_bytes,
            device=self._device,
        )
        self._planned = rows, length
        precision = "FP8" if self._acceleration.fp8 else "bf16"
        log.info("%s kernels, %d x %d tokens, %s", precision, rows, length, describe_plans(plans))

    def _loss(self, input_ids: Tensor, trained: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """The head is applied at every position: which are trained is a value, and a graph has fixed shapes."""
        states = self._causal_lm.get_decoder()(
            input_ids=input_ids, position_ids=position_ids, use_cache=False
        ).last_hidden_state
        targets = input_ids[:, 1:].masked_fill(~trained[:, 1:], -100)
        targets = functional.pad(targets, (0, 1), value=-100)
        head: Tensor = self._causal_lm.get_output_embeddings().weight
        return linear_cross_entropy(states.flatten(0, 1), head, targets.flatten()) / self._divisor
