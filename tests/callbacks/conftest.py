"""One undisturbed run for all tests of this folder: what survives a fault must equal it."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from app.artifact import RunDirectory
from conftest import TinyCheckpoint
from support.fitting import arguments, fit, write_csv


def curve(run: RunDirectory, name: str) -> dict[int, float]:
    """Optimizer step -> logged value; where several attempts logged a step, the last one's."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.logs / "tensorboard"))
    events.Reload()
    (tag,) = [tag for tag in events.Tags()["scalars"] if tag == name or tag.startswith(f"{name}-")]
    return {scalar.step + 1: scalar.value for scalar in events.Scalars(tag)}


@dataclass(frozen=True, kw_only=True)
class Undisturbed:
    """A run with dropout over two epochs, steps of two micro-batches of three rows, validated every second step."""

    base: Path
    data: Path
    run: RunDirectory

    def options(self, run: RunDirectory, **changes: object) -> list[str]:
        """The same run in another directory."""
        return arguments(
            self.base,
            self.data,
            run.path,
            **{  # type: ignore[arg-type]
                "model__family": "smollm2",
                "model__dropout": 0.1,
                "model__gradient_checkpointing": False,
                "trainer__max_epochs": 2,
                "data__batch_size": 3,
                **changes,
            },
        )

    def is_equal(self, run: RunDirectory) -> bool:
        """Whether another run's last adapter is this one's to the bit, with the same best step, steps and curves."""
        for name in ("train/loss", "train/grad_norm", "val/loss", "lr"):
            if not curve(run, name).items() <= curve(self.run, name).items():
                return False
        mine, its = (load_file(each.adapter_last / "adapter_model.safetensors") for each in (self.run, run))
        results = [each.read_manifest().result for each in (self.run, run)]
        same = [[result[name] for name in ("steps", "best_step", "best_val_loss", "val_loss")] for result in results]
        return all(torch.equal(its[name], value) for name, value in mine.items()) and same[0] == same[1]


@pytest.fixture(scope="package")
def undisturbed(tiny: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    done = Undisturbed(
        base=tiny("smollm2"), data=write_csv(folder / "questions.csv"), run=RunDirectory(folder / "whole")
    )
    fit(*done.options(done.run))
    return done


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


@pytest.fixture
def copied(undisturbed: Undisturbed, run: RunDirectory) -> RunDirectory:
    """The undisturbed run's checkpoints: its two newest and its best."""
    shutil.copytree(undisturbed.run.checkpoints, run.checkpoints)
    return run
