"""Callbacks that do to a run what a laptop does to it; given to `fit` by a configuration file, as a user's own are."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer


def with_callback(folder: Path, name: str, **init_args: Any) -> list[str]:
    """Options of `fit` that add ``support.faults.NAME`` to its callbacks."""
    return with_callbacks(folder, {name: init_args})


def with_callbacks(folder: Path, faults: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The same for several: name -> its arguments."""
    config = folder / f"{'-'.join(faults)}.yaml"
    callbacks = [{"class_path": f"support.faults.{name}", "init_args": dict(given)} for name, given in faults.items()]
    config.write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
    return ["--config", str(config)]


class SendSignal(Callback):
    """Sends this process a signal in the middle of the step after ``step``: after the first of its micro-batches."""

    def __init__(self, step: int, number: int = signal.SIGINT) -> None:
        self.step, self.number = step, number

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and trainer.fit_loop._should_accumulate():
            os.kill(os.getpid(), self.number)


class NotANumber(Callback):
    """Spoils the gradient, or the loss, of some steps; or of all from one on, for as long as the rate is the first.

    On every rank, or on one; there the loss, which has still to be added up over them.
    """

    def __init__(
        self, steps: list[int], what: str = "gradient", until_rate_falls: bool = False, rank: int | None = None
    ) -> None:
        self.steps, self.what, self.until_rate_falls, self.rank = steps, what, until_rate_falls, rank
        self._window: list[str] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._window += trainer.datamodule.tokenizer.batch_decode(batch["input_ids"])  # type: ignore[attr-defined]

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        rows, self._window = self._window, []
        module: Any = pl_module
        step = trainer.global_step + 1
        fallen = any(adaptation.lr_scale < 1 for adaptation in module.adaptations)
        if step not in self.steps or (self.until_rate_falls and fallen):
            return
        if self.rank not in (None, trainer.global_rank):
            return
        SPOILT.append((step, rows))
        if self.what == "loss":
            module.passes.window.loss = torch.tensor(float("inf"))
        else:
            next(p for p in module.parameters() if p.grad is not None).grad.view(-1)[0] = float("nan")


SPOILT: list[tuple[int, list[str]]] = []
"""What `NotANumber` did: step, and the text of its rows. Tests empty it first."""


class TooLittleMemory(Callback):
    """Memory that ends at so many tokens a pass: the model's forward raises what torch's allocator would.

    On every rank, or on one.
    """

    def __init__(self, training: int = 10**9, evaluation: int = 10**9, rank: int | None = None) -> None:
        self.training, self.evaluation, self.rank = training, evaluation, rank

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.rank not in (None, trainer.global_rank):
            return
        module: Any = pl_module

        def refuse(decoder: torch.nn.Module, args: Any, kwargs: Any, states: Any) -> None:
            limit = self.training if decoder.training else self.evaluation
            if kwargs["input_ids"].numel() > limit:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than there is")

        module.causal_lm.get_decoder().register_forward_hook(refuse, with_kwargs=True)


class LimitMemory(Callback):
    """Really limits this process's memory to what it uses when training begins, and some mebibytes."""

    def __init__(self, mebibytes: int) -> None:
        self.mebibytes = mebibytes

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        import ctypes
        import gc
        import resource

        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what earlier tests have freed must not help
        lines = Path("/proc/self/status").read_text().splitlines()
        used = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))
        self.before = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (used + self.mebibytes * 2**20, self.before[1]))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, self.before)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")


class LimitGPU(Callback):
    """Limits torch's allocator to what it has reserved when the model is loaded, and some mebibytes."""

    def __init__(self, mebibytes: int) -> None:
        self.mebibytes = mebibytes

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        import gc

        gc.collect()  # an earlier run's model, freed later, would be memory beyond the limit
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(pl_module.device).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + self.mebibytes * 2**20) / total)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        torch.cuda.set_per_process_memory_fraction(1.0)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")


class FillDisk(Callback):
    """Fills the run's disk to the last byte after one step, and frees it after another."""

    def __init__(self, full: int, free: int) -> None:
        self.full, self.free = full, free

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        filler = Path(trainer.default_root_dir).parent / "filler"
        if trainer.global_step == self.full and not filler.exists():
            with filler.open("wb", buffering=0) as out:
                try:
                    while True:
                        out.write(bytes(2**16))
                except OSError:
                    return
        if trainer.global_step == self.free:
            filler.unlink(missing_ok=True)


class SignalAtStart(Callback):
    """Sends this process a signal before training: while the model is set up, or in the hook of another name."""

    def __init__(self, number: int = signal.SIGINT, hook: str = "on_fit_start") -> None:
        setattr(self, hook, lambda *_: os.kill(os.getpid(), number))


class SignalTwice(Callback):
    """Ctrl-C twice within the first step."""

    def on_train_batch_end(self, *_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
