"""The trainer's commands: fit, validate and test, by LightningCLI."""

import gc
import logging
import math
import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, LearningRateMonitor
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, WandbLogger

from app.artifact import RunDirectory
from app.callbacks.checkpoint_files import STEP_FILES, clear, find_checkpoint, tidy
from app.callbacks.checkpoints import Checkpoints
from app.callbacks.curves import Curves
from app.callbacks.divergence import Divergence, RolledBack
from app.callbacks.early_stopping import EarlyStopping
from app.callbacks.first_batch import FirstBatchCheck
from app.callbacks.memory import MemoryMonitor
from app.callbacks.preflight import Preflight
from app.callbacks.progress import TrainingProgress
from app.callbacks.random_state import RandomState
from app.callbacks.ranks import Ranks, gone_message, process_rank, rank_is_gone
from app.callbacks.record import RunRecorder
from app.callbacks.run_page import RunPage
from app.callbacks.stop_signals import NAMES, Stopped, stopping_at_once
from app.callbacks.throughput import Throughput
from app.callbacks.validations import Validations
from app.commands.fit_options import require_sound
from app.commands.options import BriefErrors, add_quiet
from app.data.module import SFTDataModule
from app.errors import AppError, RunError, first_line
from app.model.ladder import is_out_of_memory
from app.model.load import pick_device
from app.model.module import QLoRAModule
from app.terminal import quieted

log = logging.getLogger(__name__)

DEFAULTS = {
    "max_epochs": 3,
    "devices": 1,
    "accumulate_grad_batches": 16,
    "gradient_clip_val": 1.0,
    "log_every_n_steps": 1,
    "num_sanity_val_steps": 1,
    # The data module's sampler is the whole order; Lightning must not wrap it.
    "use_distributed_sampler": False,
}


class Parser(BriefErrors, LightningArgumentParser):
    """LightningCLI's parser with errors of one message."""


class AppCLI(LightningCLI):
    """Options shared by model and data are named once; the default callbacks have YAML sections of their own.

    Args:
        held: where the run directory's lock is kept until the command ends.
        goes_on: whether this attempt follows another one of the same command, and goes on from its checkpoints.
    """

    def __init__(self, *args: Any, held: ExitStack, goes_on: bool, **kwargs: Any) -> None:
        self._held, self._goes_on = held, goes_on
        self._checkpoint: Path | None = None
        super().__init__(*args, **kwargs)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        measuring = {"model", "dataloaders", "datamodule", "verbose"}
        training = {"model", "train_dataloaders", "val_dataloaders", "datamodule"}
        return {"fit": training, "validate": measuring, "test": measuring}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--run", type=str, default="runs/run", help="Run directory: everything fit writes goes here."
        )
        parser.add_argument(
            "--overwrite", type=bool, default=False, help="Start afresh in a run directory that is in use."
        )
        parser.add_argument(
            "--resume",
            type=Literal["auto", "never"],
            default="never",
            help="auto goes on from the run's newest whole checkpoint, if it has one.",
        )
        parser.add_argument(
            "--preflight",
            type=bool,
            default=True,
            help="Try the longest batch, an evaluation and a save before the first step; changes no result.",
        )
        parser.add_argument(
            "--wandb",
            type=Literal["off", "offline", "online"],
            default="off",
            help="Log to Weights & Biases too; offline needs no account, `wandb sync` sends it later.",
        )
        parser.add_argument(
            "--validate_every",
            type=int,
            default=50,
            help="Optimizer steps between validations; the end of training is always validated.",
        )
        add_quiet(parser, stays="where the run is (fit), the losses (validate, test)")
        parser.add_lightning_class_args(EarlyStopping, "early_stopping")
        parser.add_lightning_class_args(Divergence, "divergence")
        parser.add_lightning_class_args(Checkpoints, "checkpoints")
        parser.add_lightning_class_args(RunPage, "run_page")
        parser.set_defaults({"early_stopping.monitor": "val/loss", "early_stopping.patience": 3})
        parser.link_arguments("model.base", "data.base")
        parser.link_arguments("model.family", "data.family")
        parser.link_arguments("model.revision", "data.revision")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)

    def _parse_ckpt_path(self) -> None:
        """Lightning would silently replace options by those a checkpoint holds; a run's options are in its config."""

    def before_instantiate_classes(self) -> None:
        if self.subcommand == "fit":
            require_sound(self.config["fit"])

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config[self.subcommand]
        self._held.enter_context(quieted(config.quiet))
        if config.trainer.accelerator in ("gpu", "cuda"):
            pick_device("cuda", where="--trainer.accelerator")
        run = RunDirectory(config.run)
        if self.subcommand == "fit":
            run.create()
            if not self._goes_on and process_rank() == 0:
                self._held.enter_context(run.locked())
                tidy(run)
            self._checkpoint = self._where_to_begin(run)
        elif config.ckpt_path is not None:
            self._checkpoint = find_checkpoint(run, config.ckpt_path)
        self.config_init[self.subcommand].ckpt_path = self._checkpoint and str(self._checkpoint)
        if not config.preflight:
            defaults = self.trainer_defaults["callbacks"]
            self.trainer_defaults["callbacks"] = [each for each in defaults if not isinstance(each, Preflight)]
        kwargs["val_check_interval"] = config.validate_every  # of optimizer steps, by Validations
        kwargs["check_val_every_n_epoch"] = None
        kwargs["default_root_dir"] = str(run.path)
        kwargs["enable_model_summary"] = False
        if self.subcommand == "fit":
            kwargs["logger"] = self._loggers(run, config.wandb)
        else:
            kwargs["logger"] = False
        trainer = super().instantiate_trainer(**kwargs)
        # LightningCLI puts callbacks with a section before the others; the page shows what those have logged.
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set in Trainer.__init__
        callbacks.sort(key=lambda callback: isinstance(callback, RunPage) + 2 * isinstance(callback, Checkpoint))
        return trainer

    def _where_to_begin(self, run: RunDirectory) -> Path | None:
        """The checkpoint to go on from, which may be another run's; None to begin anew."""
        config = self.config["fit"]
        started = any(run.checkpoints.glob(STEP_FILES))
        if self._goes_on or (config.resume == "auto" and config.ckpt_path is None):
            return find_checkpoint(run, "last") if started else None
        chosen = None if config.ckpt_path is None else find_checkpoint(run, config.ckpt_path)
        if chosen is not None and chosen.resolve().parent == run.checkpoints.resolve():
            return chosen
        if started and not config.overwrite:
            raise RunError(
                f"{run.path} holds the checkpoints of another run",
                where="--run",
                remedy="go on with it by --resume auto (or --ckpt_path last), choose another --run, or start afresh "
                "with --overwrite true",
            )
        if process_rank() == 0:
            clear(run)
        return chosen

    def before_fit(self) -> None:
        """What kept the run alive so far stays in force."""
        run = RunDirectory(self.config["fit"].run)
        if (self._goes_on or self._checkpoint is not None) and run.manifest_path.is_file():
            self.model.adaptations += run.read_manifest().adaptations
        if self._checkpoint is not None:
            log.info(f"going on from {self._checkpoint}")

    def _loggers(self, run: RunDirectory, wandb: str) -> list[Logger]:
        run.logs.mkdir(parents=True, exist_ok=True)
        loggers: list[Logger] = [Curves(run.logs)]
        if wandb != "off":
            # Not by Lightning's `offline`, which is an environment variable: read once, and in force for ever after.
            loggers.append(WandbLogger(name=run.path.name, save_dir=run.logs, project="app", mode=wandb))
            self._held.push(finish_wandb)
        return loggers

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Checkpoints are read with ``weights_only``: nothing is unpickled. Lightning prints no table."""
        silent = {} if subcommand == "fit" else {"verbose": False}
        return {**super()._prepare_subcommand_kwargs(subcommand), "weights_only": True, **silent}


def finish_wandb(kind: type[BaseException] | None, *_: object) -> None:
    """Ends the run at Weights & Biases as the command ends: the next one in this process would go on with it."""
    import wandb

    wandb.finish(exit_code=int(kind is not None))


def default_callbacks(argv: Sequence[str]) -> list[Callback]:
    """What every run has; early stopping and checkpoints, which have options, are added by AppCLI."""
    return [
        FirstBatchCheck(),
        Preflight(),
        Throughput(),
        MemoryMonitor(),
        LearningRateMonitor(logging_interval="step"),
        Validations(),
        RandomState(),
        Ranks(how_to_go_on(argv)),
        TrainingProgress(),
    ]


def main(argv: Sequence[str]) -> int:
    """Runs ``fit``, ``validate`` or ``test``; returns the exit status."""
    quieten()
    try:
        with stopping_at_once(), ExitStack() as held:
            cli = run_attempts(argv, held)
    except AppError as fault:
        print(f"{rank_name()}error: {fault}", file=sys.stderr)
        return fault.exit_code
    except Stopped as stop:
        if process_rank():
            return 0  # rank 0 says it, and Lightning would kill it for another status
        done = f"after step {stop.step}, which is saved" if stop.step else "before there was anything to save"
        print(f"stopped by {NAMES[stop.signal]} {done}; go on with:\n  {resume_command(argv)}", file=sys.stderr)
        return 128 + stop.signal
    except MisconfigurationException as fault:
        print(f"error: {fault}\n  remedy: correct the trainer's options", file=sys.stderr)
        return 2
    except Exception as fault:
        if rank_is_gone(fault):
            if process_rank() == 0:
                print(f"error: {gone_message(how_to_go_on(argv))}", file=sys.stderr)
            return 2
        if not is_out_of_memory(fault):
            raise
        remedy = (
            f"close what else uses this memory, or lower data.batch_size or data.max_length; {resume_command(argv)}"
        )
        print(f"error: out of memory: {first_line(fault)}\n  remedy: {remedy}", file=sys.stderr)
        return 2
    if process_rank():
        return 0
    if cli.subcommand == "fit" and cli.config.fit.quiet:
        print(f"run {cli.trainer.default_root_dir}")
    elif cli.subcommand == "fit":
        report(RunDirectory(cli.trainer.default_root_dir))
    else:
        metrics = cli.trainer.callback_metrics.items()
        print("  ".join(f"{name} {float(value):.4f}" for name, value in metrics))
    return 0


def run_attempts(argv: Sequence[str], held: ExitStack) -> AppCLI:
    """Runs the command; again, from an earlier checkpoint, when a callback says so."""
    goes_on = False
    while True:
        try:
            return AppCLI(
                QLoRAModule,
                SFTDataModule,
                args=list(argv),
                save_config_callback=RunRecorder,
                seed_everything_default=42,
                trainer_defaults={**DEFAULTS, "callbacks": default_callbacks(argv)},
                parser_kwargs={"prog": "python -m app"},
                parser_class=Parser,
                auto_configure_optimizers=False,
                held=held,
                goes_on=goes_on,
            )
        except RolledBack:
            goes_on = True
        gc.collect()  # the model of the attempt before is in cycles


def resume_command(argv: Sequence[str]) -> str:
    """The command that goes on with this one's run."""
    kept, skip = [], False
    for part in argv:
        name, given, _ = part.partition("=")
        if name in ("--resume", "--overwrite", "--ckpt_path"):
            skip = not given
        elif skip:
            skip = False
        else:
            kept.append(part)
    return f"python -m app {shlex.join(kept)} --resume auto"


def rank_name() -> str:
    """Before the messages of every process but the first."""
    return f"rank {process_rank()}: " if process_rank() else ""


def how_to_go_on(argv: Sequence[str]) -> str:
    """After another rank's end."""
    return f"see what it said last (killed? out of memory?), then go on with:\n  {resume_command(argv)}"


def report(run: RunDirectory) -> None:
    """What a finished fit says last: how good, how fast, where, and what to do next."""
    manifest = run.read_manifest()
    result = manifest.result
    if result.get("best_val_loss") is not None:
        loss = result["best_val_loss"]
        print(f"best validation loss {loss:.4f} (perplexity {math.exp(loss):.3f}) at step {result['best_step']}")
    if "tokens_per_second" in result:
        peak = result["peak_memory"]["process"] / 2**30
        print(f"{result['tokens_per_second']:,.0f} tokens/s, peak memory {peak:.2f} GiB, {result['steps']} steps")
    lost = {"steps skipped": result.get("skipped_steps"), "saves failed": result.get("failed_saves")}
    notes = [f"{count} {what}" for what, count in lost.items() if count]
    for note in (*notes, *(f"since step {each.step}: {each.change} ({each.cause})" for each in manifest.adaptations)):
        print(note)
    print(f"run {run.path}, logs {run.logs}")
    print(f"next: python -m app evaluate --run {shlex.quote(str(run.path))}")


def quieten() -> None:
    """Silences what Lightning and its friends say that a user can do nothing about; our own lines are plain."""
    logging.basicConfig(format=f"{rank_name()}%(message)s", level=logging.WARNING)
    logging.getLogger("app").setLevel(logging.WARNING if process_rank() else logging.INFO)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    known = ("does not have many workers", "logging interval", "not resumable", "LightningCLI's args", "LeafSpec")
    for text in (*known, "sync_dist"):  # what is logged at an epoch's end is the same on all ranks already
        warnings.filterwarnings("ignore", message=f".*{text}.*")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("WANDB_SILENT", "true")
