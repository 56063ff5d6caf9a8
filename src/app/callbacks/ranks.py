"""Several processes of one run: where each begins after a resume, and what becomes of the others when one dies."""

import dataclasses
import logging
import os
import subprocess
import threading
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from app.artifact import RunDirectory
from app.callbacks.divergence import RolledBack
from app.errors import RunError

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
GRACE_SECONDS = 10.0
"""That a process gets to end by itself once another has failed."""
_STARTED: list[subprocess.Popen[bytes]] = []
"""The other ranks, where this process has started them. They outlive an attempt that is rolled back."""


class Ranks(Callback):
    """Counts a resume's position in this run's ranks; ends the run when a rank has died.

    Under gloo a partner's death is an error in the next collective. Under NCCL it is a wait until the process group's
    timeout, and Lightning's observer would kill the first rank without a word (2.6.6). So each rank watches: the first
    those it has started, the others their parent. Who finds one dead, and is not told otherwise in time, says so and
    ends; the first marks the run as failed and ends the others. Checkpoints are whole at any time.

    Args:
        remedy: what the user is told to do then.
    """

    def __init__(self, remedy: str) -> None:
        self.remedy = remedy
        self._ended = threading.Event()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Lightning counts each rank's batches, the data module those of all ranks: the former follows the latter."""
        position = checkpoint["SFTDataModule"]
        if trainer.state.fn != "fit" or position.get("ranks", 1) == trainer.world_size:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]  # set by Trainer.fit
        per_epoch, limit = len(data.train_dataloader()), trainer.limit_train_batches
        if limit is not None:
            per_epoch = min(per_epoch, limit) if isinstance(limit, int) else int(per_epoch * limit)
        current = min(-(-position["batch"] // trainer.world_size), per_epoch)
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        done = {"current": current, "total": position["epoch"] * per_epoch + current}
        for scope, count in done.items():
            # What has begun and is not completed says where in its loop Lightning saved.
            shift = count - progress[scope]["processed"]
            progress[scope] = {name: value + shift for name, value in progress[scope].items()}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size == 1:
            return
        # Emptied: Lightning's observer, which holds the same list, has nothing left to do.
        processes = getattr(trainer.strategy.launcher, "procs", [])
        _STARTED.extend(processes)
        processes.clear()
        run = RunDirectory(trainer.default_root_dir) if trainer.is_global_zero else None
        threading.Thread(target=self._watch, args=(run,), name="ranks", daemon=True).start()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ended.set()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """This rank ends by itself, with a message of its own; the others, which may wait for it, get some seconds."""
        self._ended.set()
        if not isinstance(exception, RolledBack):
            end_others(GRACE_SECONDS)

    def _watch(self, run: RunDirectory | None) -> None:
        parent = os.getppid()
        while not self._ended.wait(POLL_SECONDS):
            orphaned = run is None and os.getppid() != parent  # the first rank may well outlive its shell
            if orphaned or any(process.poll() for process in _STARTED):
                break
        if self._ended.wait(GRACE_SECONDS):  # in a collective that fails at once the error has its way
            return
        log.error(f"error: {gone_message(self.remedy)}")
        end_others(0.0)
        if run is not None:
            mark_failed(run)
        os._exit(2)


def process_rank() -> int:
    """Which of the run's processes this one is, known before they have met: 0 for the one that a user has started."""
    known: Any = rank_zero_only
    return int(known.rank)


def gone_message(remedy: str) -> str:
    """What is said when another process of the run has died or failed."""
    return f"another rank of this run has ended, and none can go on alone\n  remedy: {remedy}"


def rank_is_gone(fault: BaseException) -> bool:
    """Whether an exception says that a partner in a collective is dead, or silent beyond the timeout."""
    if isinstance(fault, torch.distributed.DistError):
        return True
    signs = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting", "Broken pipe")
    return isinstance(fault, RuntimeError) and any(sign in str(fault) for sign in signs)


def end_others(grace: float) -> None:
    """Ends the ranks this process has started, if they do not end by themselves within ``grace`` seconds."""
    for process in _STARTED:
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            process.kill()
    _STARTED.clear()


def mark_failed(run: RunDirectory) -> None:
    try:
        run.write_manifest(dataclasses.replace(run.read_manifest(), status="failed"))
    except (OSError, RunError):
        return  # nothing more can be done, and checkpoints do not need it
