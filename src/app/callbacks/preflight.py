"""Before epoch 0: the longest batch, the longest evaluation and a save, so that none of them fails at hour three."""

import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psutil
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from app.artifact import RunDirectory
from app.callbacks.checkpoint_files import save_checkpoint
from app.errors import MachineError, first_line
from app.model.ladder import is_out_of_memory
from app.model.memory import read_memory
from app.model.passes import Passes
from app.model.window import release_memory
from app.terminal import progress_bars

log = logging.getLogger(__name__)


class Preflight(Callback):
    """Runs each of them once and says what memory they took; where it is too little, the ladder is climbed here.

    Nothing of it stays: gradients of zero and a learning rate of zero leave weights and moments as they are, and random
    numbers are put back. The run is bit for bit the one without.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """
        Raises:
            MachineError: there is too little memory whatever is given up, or nothing can be saved.
        """
        module: Any = pl_module
        data: Any = trainer.datamodule  # type: ignore[attr-defined]  # set by Trainer.fit
        device = module.device
        did = []
        with ExitStack() as stack:
            display = stack.enter_context(progress_bars())
            task = display.add_task("preflight", total=3)
            stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
            training = trainer.strategy.batch_to_device(data.longest_batch("train"))
            with trainer.precision_plugin.train_step_context():
                self._step(trainer.optimizers[0], module.passes, training)
            did.append(f"a step of {_shape(training)}: {_gib(peak_memory(device))}")
            display.advance(task)
            evaluation = data.longest_batch("val")
            if evaluation is not None:
                with torch.no_grad(), evaluating(module.peft_model), trainer.precision_plugin.val_step_context():
                    module.passes.evaluate(trainer.strategy.batch_to_device(evaluation))
                did.append(f"evaluation of {_shape(evaluation)}: {_gib(peak_memory(device))}")
            display.advance(task)
            size = self._save(trainer)
            display.advance(task)
        peak = peak_memory(device)
        did.append(f"a save of {size / 2**20:,.0f} MiB: {_gib(peak)}")
        log.info(f"preflight: {', '.join(did)}; peak memory {_gib(peak)} of {_gib(memory_budget(module, device))}")

    def _step(self, optimizer: torch.optim.Optimizer, passes: Passes, batch: Any) -> None:
        """Forward, backward, and the optimizer step, in which the optimizer's state is made."""
        rows, length = batch["input_ids"].shape
        while True:
            passes.window.add(batch)
            passes.window.close()
            try:
                step_in_place(optimizer)
                return
            except Exception as fault:
                if not is_out_of_memory(fault):
                    raise
                cause = fault.with_traceback(None)  # whose frames hold what was allocated
            release_memory(batch["input_ids"].device)
            passes.climb("training", min(passes.settings.rows or rows, rows), length, cause)

    def _save(self, trainer: Trainer) -> int:
        path = RunDirectory(trainer.default_root_dir).checkpoints / "preflight.ckpt"
        try:
            return save_checkpoint(trainer, path)
        except Exception as fault:  # Lightning and torch raise kinds of their own for a full disk
            raise MachineError(
                f"a checkpoint cannot be saved in {path.parent}: {first_line(fault)}",
                where="--run",
                remedy="free some disk space or memory, or choose another --run",
            ) from fault
        finally:
            path.unlink(missing_ok=True)
            path.with_suffix(".json").unlink(missing_ok=True)


def step_in_place(optimizer: torch.optim.Optimizer) -> None:
    """Clips and applies the gradients without effect: the optimizer's state is made, all zero, and nothing changes.

    A resumed run has its state already, and moments that even a gradient of zero would change: it only clips.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    if not optimizer.state:
        rates = [group["lr"] for group in optimizer.param_groups]
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.zero_()
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        optimizer.step()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        for values in optimizer.state.values():
            steps = values["step"]
            values["step"] = torch.zeros_like(steps) if isinstance(steps, torch.Tensor) else 0
    optimizer.zero_grad(set_to_none=True)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Eval mode, and back to training: without dropout, with nothing recomputed."""
    model.eval()
    try:
        yield
    finally:
        model.train()


def memory_budget(module: Any, device: torch.device) -> int:
    """Bytes that this run may take: model.memory_budget, else what the card or the machine has."""
    if module.memory_budget is not None:
        return int(module.memory_budget)
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().available + psutil.Process().memory_info().rss)


def peak_memory(device: torch.device) -> int:
    """Bytes at the process's peak: on a GPU what the driver counts, for torch's allocator gives nothing back."""
    if device.type == "cuda":
        return read_memory(device).process
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _shape(batch: Any) -> str:
    rows, length = batch["input_ids"].shape
    return f"{rows} x {length} tokens"


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
