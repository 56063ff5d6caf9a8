"""Kills a real training run at random points and checks that nothing is lost: a run that cannot be lost, proven.

    python scripts/kill_test.py     # SmolLM2 on the quickstart's data, 20 kills: about 8 minutes on 2 cores
    python scripts/kill_test.py --kills 5 --seed 7

One run is left alone. The same run is then killed by SIGKILL again and again, while it starts, trains, validates or
saves, each time started again by the same command with `--resume auto`, and at last left to end. Every micro-batch
that any of the attempts trained on must be the one that the undisturbed run trained on at that place, with the same
loss and gradient norm to the bit; in the end so must weights, optimizer, schedule and early stopping. Exit status 1 if
anything differs.
"""

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parents[1]


class Journal(Callback):
    """Appends a line of JSON for every start, micro-batch and validation; a line written is in the system's hands."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def write(self, **entry: Any) -> None:
        with self.path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(entry) + "\n")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.write(began=trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        module: Any = pl_module
        entry = {
            "batch": trainer.fit_loop.total_batch_idx,
            "rows": sha256(batch["input_ids"].numpy().tobytes()).hexdigest()[:16],
            "step": trainer.global_step,
        }
        if not trainer.fit_loop._should_accumulate():
            entry |= {"loss": module.step_loss.hex(), "norm": module.step_norm.hex()}
        self.write(**entry)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.write(validated=trainer.global_step, loss=float(trainer.callback_metrics["val/loss"]).hex())


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One of them.

    Attributes:
        at: "start", or what the run did last before it was killed.
        step: optimizer steps done when it was killed.
        resumed: the step that the next attempt went on from.
        equal: whether all that the next attempt did was what the undisturbed run had done there.
    """

    at: str
    step: int
    resumed: int
    equal: bool


class Experiment:
    """Runs `fit` in processes of its own, in a scratch folder.

    Args:
        folder: the scratch folder.
        base, data: what is trained, on what.
        steps: optimizer steps of the run, in two epochs.
        every: between checkpoints.
        max_length: tokens per row.
        seed: of the moments of the kills.
    """

    def __init__(
        self, folder: Path, *, base: Path, data: Path, steps: int, every: int, max_length: int, seed: int
    ) -> None:
        self.folder, self.steps, self.every, self.random = folder, steps, every, random.Random(seed)
        self.step_seconds = 0.0
        self.options = {
            "model": {"base": str(base), "family": "smollm2", "rank": 4, "dropout": 0.05, "optimizer": "adamw"},
            "data": {"path": str(data), "max_length": max_length, "batch_size": 2, "eval_batch_size": 2},
            "checkpoints": {"every": every},
            "early_stopping": {"patience": 1000},
            "validate_every": 2 * every + 1,
        }
        self.trainer = {
            "accelerator": "cpu",
            "max_epochs": 2,
            "limit_train_batches": steps,  # micro-batches an epoch, two to a step
            "limit_val_batches": 4,
            "accumulate_grad_batches": 2,
        }

    def start(self, name: str) -> subprocess.Popen[bytes]:
        journal = {"class_path": "kill_test.Journal", "init_args": {"path": str(self.folder / f"{name}.jsonl")}}
        config = self.folder / f"{name}.yaml"
        trainer = {**self.trainer, "callbacks": [journal]}
        config.write_text(yaml.safe_dump({**self.options, "run": str(self.folder / name), "trainer": trainer}))
        command = [sys.executable, "-m", "app", "fit", "--config", str(config), "--resume", "auto"]
        path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": path})

    def finish(self, name: str) -> None:
        if self.start(name).wait() != 0:
            raise SystemExit((self.folder / f"{name}.log").read_text()[-3000:])

    def journal(self, name: str) -> list[dict[str, Any]]:
        """Its whole lines: the last one may have been cut by the kill."""
        path = self.folder / f"{name}.jsonl"
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def kill_once(self, name: str, point: float, start_seconds: float) -> str:
        """Starts the run and kills it when it comes to ``point``, in steps; one time in six while it still starts."""
        before = len(self.journal(name))
        process = self.start(name)
        starting = self.random.random() < 1 / 6
        end = time.monotonic() + (self.random.uniform(0, start_seconds) if starting else math.inf)
        while process.poll() is None and time.monotonic() < end and not self.has_reached(name, before, int(point)):
            time.sleep(0.01)
        time.sleep(point % 1 * self.step_seconds)
        if process.poll() is not None:
            raise SystemExit(f"it ended with {process.returncode} before it was killed: {self.folder / name}.log")
        process.kill()
        process.wait()
        new = self.journal(name)[before:]
        return next(kind for kind in ("validated", "batch", "began") if kind in new[-1]) if new else "start"

    def has_reached(self, name: str, before: int, step: int) -> bool:
        """Whether the attempt whose journal begins at line ``before`` trains, and has done so many steps."""
        new = self.journal(name)[before:]
        return bool(new) and max(entry.get("step", entry.get("began", 0)) for entry in new) >= step


def attempts(journal: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The journal cut where training began anew."""
    starts = [number for number, entry in enumerate(journal) if "began" in entry]
    for start, end in zip(starts, [*starts[1:], len(journal)], strict=True):
        yield journal[start:end]


def key(entry: dict[str, Any]) -> tuple[str, int]:
    kind = "batch" if "batch" in entry else "validated"
    return kind, entry[kind]


def last_checkpoint(run: Path) -> dict[str, Any]:
    """The parts of a run's last checkpoint in which two equal runs are equal."""
    checkpoint = torch.load(max((run / "checkpoints").glob("step-*.ckpt")), weights_only=True)
    for measured in ("Throughput", "MemoryMonitor"):  # wall time and peaks: no two runs have the same
        checkpoint["callbacks"].pop(measured)
    names = ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "SFTDataModule", "global_step")
    return {name: checkpoint[name] for name in names}


def curves(run: Path) -> dict[tuple[str, int], float]:
    """Every logged loss and gradient norm, by name and step."""
    events = EventAccumulator(str(run / "logs" / "tensorboard"))
    events.Reload()
    names = ("train/loss", "train/grad_norm", "val/loss")
    return {(name, scalar.step): scalar.value for name in names for scalar in events.Scalars(name)}


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(value, b[name]) for name, value in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def run(experiment: Experiment, kills: int) -> tuple[list[Kill], dict[str, bool]]:
    """The undisturbed run, the killed one, and what came of it: each kill, and each claim about the whole."""
    began = time.monotonic()
    experiment.finish("whole")
    whole = experiment.journal("whole")
    steps = max(entry.get("step", 0) for entry in whole)
    if steps < experiment.steps:
        raise SystemExit(f"the data lasts for {steps} steps only; allow longer rows by --max_length")
    experiment.step_seconds = (time.monotonic() - began) / (steps + 20)  # to start takes as long as some 20 steps
    moments, reached = [], []
    for number in range(kills):  # one in each of as many parts of the run
        point = (number + experiment.random.random()) * (steps - 2) / kills
        moments.append(experiment.kill_once("killed", point, 20 * experiment.step_seconds))
        journal = experiment.journal("killed")
        reached.append((len(journal), max((entry.get("step", 0) for entry in journal), default=0)))
        print(f"kill {len(reached)} of {kills} ({moments[-1]}), step {reached[-1][1]} of {steps}", file=sys.stderr)
    experiment.finish("killed")

    truth = {key(entry): entry for entry in whole if "began" not in entry}
    killed = experiment.journal("killed")
    table = []
    for moment, (line, step) in zip(moments, reached, strict=True):
        after = next(part for part in attempts(killed[line:]))
        done = all(truth.get(key(entry)) == entry for entry in after[1:])
        table.append(Kill(at=moment, step=step, resumed=after[0]["began"], equal=done))
    seen = [key(entry) for entry in killed if "began" not in entry]
    claims = {
        "every micro-batch and validation took place, and no other": set(seen) == set(truth),
        "weights, optimizer, schedule, random states, early stopping and place in the data are equal to the bit": equal(
            last_checkpoint(experiment.folder / "whole"), last_checkpoint(experiment.folder / "killed")
        ),
        "the logged curves are equal to the bit, without a gap": curves(experiment.folder / "whole")
        == curves(experiment.folder / "killed"),
        f"at most {experiment.every} steps were lost by a kill": all(
            kill.step - kill.resumed <= experiment.every for kill in table
        ),
    }
    return table, claims


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps of the run")
    parser.add_argument("--every", type=int, default=3, help="steps between checkpoints")
    parser.add_argument("--base", type=Path, default=ROOT / "models" / "SmolLM2-135M-Instruct")
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "stdlib" / "functions.csv")
    parser.add_argument("--max_length", type=int, default=96)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="kill-test-") as folder:
        experiment = Experiment(
            Path(folder), base=args.base, data=args.data, steps=args.steps, every=args.every,
            max_length=args.max_length, seed=args.seed,
        )  # fmt: skip
        table, claims = run(experiment, args.kills)
    print("| kill | while | at step | went on from | lost | bit-equal |\n|---|---|---|---|---|---|")
    for number, kill in enumerate(table, start=1):
        doing = {"start": "it started", "began": "in its first step", "batch": "training", "validated": "validating"}
        lost = kill.step - kill.resumed
        print(
            f"| {number} | {doing[kill.at]} | {kill.step} | {kill.resumed} | {lost} | {'yes' if kill.equal else 'NO'} |"
        )
    print(f"\n{sum(kill.equal for kill in table)} of {len(table)} bit-equal")
    for claim, holds in claims.items():
        print(f"{'yes' if holds else 'NO '}  {claim}")
    return 0 if all(claims.values()) and all(kill.equal for kill in table) else 1


if __name__ == "__main__":
    raise SystemExit(main())
