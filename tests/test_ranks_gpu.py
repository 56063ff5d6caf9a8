"""Two GPUs and one, over NCCL: fast layers with their graph under DDP, shards, and the death of a rank."""

from pathlib import Path

import pytest
import torch

from app.artifact import RunDirectory
from conftest import TinyCheckpoint
from support.fitting import arguments, fit, write_csv
from support.ranks import Strategy, curve, finish, kill_second, start

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")]


@pytest.fixture(scope="module")
def options(tiny: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three epochs of packed rows, four to a step on one GPU."""
    data = write_csv(tmp_path_factory.mktemp("ranks") / "rows.csv")
    return arguments(
        tiny("mistral"),
        data,
        Path("runs"),
        model__family="mistral",
        trainer__accelerator="gpu",
        trainer__max_epochs=3,
        trainer__accumulate_grad_batches=4,
        data__packing="true",
        data__max_length=256,
        data__batch_size=1,
        checkpoints__keep=100,
        run_page__samples_every=0,
    )


@pytest.fixture(scope="module")
def alone(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """The run of one GPU, with the fast layers."""
    run = RunDirectory(tmp_path_factory.mktemp("alone") / "run")
    fit(*options, "--run", str(run.path), "--model.kernels", "bf16")
    return run


@pytest.mark.parametrize(("strategy", "kernels"), [("ddp", "bf16"), ("ddp", "none"), ("fsdp", "none")])
def test_two_gpus_train_as_one(
    strategy: Strategy, kernels: str, options: list[str], alone: RunDirectory, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "run")
    here = ["--run", str(run.path), "--model.kernels", kernels, "--trainer.accumulate_grad_batches", "2"]
    status, said = finish(start([*options, *here], strategy))
    assert status == 0, said
    for name in ("train/loss", "val/loss"):
        want = curve(alone, name)
        assert len(want) >= 3
        assert curve(run, name) == pytest.approx(want, rel=1e-2)


def test_a_killed_rank_ends_the_run_which_one_gpu_then_finishes(options: list[str], tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    long = ["--model.kernels", "bf16", "--trainer.max_epochs", "60", "--validate_every", "100"]
    here = [*options, "--run", str(run.path), *long]
    process = start([*here, "--trainer.accumulate_grad_batches", "2"])
    kill_second(process, run, step=3)
    status, said = finish(process)
    assert status == 2, said
    assert said.count("error: ") == said.count("another rank of this run has ended") == 1
    assert run.read_manifest().status == "failed"
    fit(*here, "--resume", "auto", "--checkpoints.every", "50")
    assert run.read_manifest().status == "finished"
