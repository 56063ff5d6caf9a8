"""Writes down what a run is: configuration, versions, commit and data, to the loggers and the manifest."""

import dataclasses
import logging
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from app import __version__
from app.artifact import Adaptation, Manifest, RunDirectory, Status, write_atomic
from app.callbacks.checkpoints import Checkpoints
from app.callbacks.divergence import Divergence, RolledBack
from app.callbacks.memory import MemoryMonitor
from app.callbacks.throughput import Throughput
from app.card import write_adapter_card
from app.data.tokenize import golden_encoding

log = logging.getLogger(__name__)

PACKAGES = (
    "torch",
    "lightning",
    "transformers",
    "peft",
    "bitsandbytes",
    "datasets",
    "tokenizers",
    "accelerate",
    "torchmetrics",
    "jsonargparse",
)

ONCE = {"overwrite": False, "resume": "never", "ckpt_path": None}
"""Options of one command, not of the run: config.yaml holds their defaults, or it would wipe the run it stands in."""


def package_versions() -> dict[str, str]:
    """Version of each package that decides what a run computes; those not installed are left out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit this application runs from, with "+changes" when files differ from it; None outside a checkout."""
    where = Path(__file__).parent
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"],
            cwd=where,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() or None if run.returncode == 0 else None


class RunRecorder(SaveConfigCallback):
    """Saves config.yaml, logs everything to TensorBoard and W&B at run start, and keeps the manifest.

    LightningCLI makes it with the parser and the parsed configuration.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "save_to_log_dir": False})
        self.config = self.config.clone()
        for name, value in ONCE.items():
            self.config[name] = value
        self._manifest: Manifest | None = None
        self._adaptations: list[Adaptation] = []
        self._before: Mapping[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing: Lightning saves the configuration here, before it is known to go with the checkpoint."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        run = RunDirectory(trainer.default_root_dir)
        write_atomic(run.config_path, self.parser.dump(self.config, skip_none=False))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        self.save_config(trainer, pl_module, "fit")
        module: Any = pl_module
        data: Any = trainer.datamodule  # type: ignore[attr-defined]  # set by Trainer.fit
        config = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        self._manifest = Manifest(
            status="running",
            base=module.describe_base(),
            golden=golden_encoding(data.tokenizer, data.family),
            data=data.fingerprint,
            max_length=data.max_length,
            seed=data.seed,
            config=config,
            versions=package_versions(),
            git_commit=git_commit(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            app_version=__version__,
        )
        self._adaptations = module.adaptations
        run = RunDirectory(trainer.default_root_dir)
        if trainer.ckpt_path is not None and run.manifest_path.is_file():
            self._before = run.read_manifest().result
        self._write("running", trainer)
        record = {
            "config": config,
            "versions": dict(self._manifest.versions),
            "git_commit": self._manifest.git_commit,
            "data": dataclasses.asdict(data.fingerprint),
        }
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                text = yaml.safe_dump(record, sort_keys=False, allow_unicode=True)
                logger.experiment.add_text("run", f"```yaml\n{text}\n```", global_step=0)
            elif isinstance(logger, WandbLogger):
                logger.experiment.config.update(record, allow_val_change=True)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """What keeps a run alive is written down at once: a resume needs it."""
        if self._manifest is not None and len(self._manifest.adaptations) < len(self._adaptations):
            self._write("running", trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write("finished", trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The adapters' cards were written when they were saved, and knew no result then."""
        run = RunDirectory(trainer.default_root_dir)
        for folder in (run.adapter, run.adapter_last):
            if trainer.is_global_zero and (folder / "adapter_config.json").is_file():
                try:
                    write_adapter_card(run, folder)
                except OSError as fault:
                    log.warning(f"the model card in {folder} could not be written: {fault.strerror}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._write(status_after(exception), trainer)

    def _write(self, status: Status, trainer: Trainer) -> None:
        if self._manifest is None or not trainer.is_global_zero:
            return
        self._manifest = dataclasses.replace(
            self._manifest,
            status=status,
            result={**self._before, **_result(trainer)},
            adaptations=tuple(self._adaptations),
        )
        try:
            RunDirectory(trainer.default_root_dir).write_manifest(self._manifest)
        except OSError as fault:
            log.warning(f"the manifest could not be written: {fault.strerror}; the one before it stands")


def status_after(exception: BaseException) -> Status:
    """What a run is once this was raised in it: one that goes back to an earlier step is running still."""
    if isinstance(exception, RolledBack):
        return "running"
    return "stopped" if isinstance(exception, KeyboardInterrupt | SystemExit) else "failed"


def _result(trainer: Trainer) -> dict[str, Any]:
    """What training measured so far: steps, losses, tokens and seconds of training alone, peaks in bytes."""
    result: dict[str, Any] = {"steps": trainer.global_step, "epochs": trainer.current_epoch}
    for name in ("train/loss", "val/loss"):
        if name in trainer.callback_metrics:
            result[name.replace("/", "_")] = float(trainer.callback_metrics[name])
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set in Trainer.__init__
        if isinstance(callback, Checkpoints):
            loss = callback.best if callback.monitor == "val/loss" else None  # another metric's best is no loss
            result |= {"best_val_loss": loss, "best_step": callback.best_step}
            result["failed_saves"] = callback.failed_saves
        elif isinstance(callback, Divergence):
            result |= {"skipped_steps": callback.skipped, "spikes": callback.spikes}
        elif isinstance(callback, MemoryMonitor) and callback.peak.process:
            result["peak_memory"] = dataclasses.asdict(callback.peak)
        elif isinstance(callback, Throughput) and callback.seconds:
            result |= {
                "tokens": callback.tokens,
                "samples": callback.samples,
                "seconds": callback.seconds,
                "tokens_per_second": callback.tokens / callback.seconds,
            }
    return result
