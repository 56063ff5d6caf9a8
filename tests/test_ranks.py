"""Two processes and one: the same curve, each other's checkpoints, and the end of both when one dies."""

from pathlib import Path

import pytest
import torch
import yaml

from app.__main__ import main
from app.artifact import RunDirectory
from app.pages.history import read_rows
from app.pages.run import samples_path
from conftest import ROOT, TinyCheckpoint
from support.faults import with_callback, with_callbacks
from support.fitting import arguments, fit, write_csv
from support.ranks import curve, finish, kill_second, start


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_strategies_parse_beside_a_models_config(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    configs = [ROOT / "configs" / "mistral.yaml", ROOT / "configs" / "strategy" / f"{name}.yaml"]
    with pytest.raises(SystemExit) as ended:
        main(["fit", *(part for config in configs for part in ("--config", str(config))), "--print_config"])
    assert ended.value.code == 0
    parsed = yaml.safe_load(capsys.readouterr().out)
    assert parsed["model"]["shard_base"] is (name == "fsdp") and parsed["model"]["rank"] == 16
    assert parsed["trainer"]["strategy"]["class_path"] == "lightning.pytorch.strategies.DDPStrategy"


@pytest.fixture(scope="module")
def options(tiny: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two epochs of 24 rows, six to a step."""
    data = write_csv(tmp_path_factory.mktemp("ranks") / "rows.csv")
    return arguments(
        tiny("smollm2"),
        data,
        Path("runs"),
        model__family="smollm2",
        model__dtype="float32",
        model__optimizer="adamw",
        trainer__max_epochs=2,
        trainer__accumulate_grad_batches=6,
        data__batch_size=1,
        validate_every=2,
        checkpoints__keep=100,
    )


@pytest.fixture(scope="module")
def alone(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """The run of one process."""
    run = RunDirectory(tmp_path_factory.mktemp("alone") / "run")
    fit(*options, "--run", str(run.path))
    return run


@pytest.mark.slow
def test_shards_train_as_one_process_and_go_on_from_its_checkpoint(
    options: list[str], alone: RunDirectory, tmp_path: Path
) -> None:
    """From a checkpoint of one process, inside an epoch: the same losses and validations on two."""
    run = RunDirectory(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    for name in ("step-000002.ckpt", "step-000002.json"):
        (run.checkpoints / name).write_bytes((alone.checkpoints / name).read_bytes())
    two = ["--run", str(run.path), "--resume", "auto", "--trainer.accumulate_grad_batches", "3"]
    status, said = finish(start([*options, *two], "fsdp"))
    assert status == 0, said
    for name in ("train/loss", "val/loss"):
        want = {step: value for step, value in curve(alone, name).items() if step > 2}
        assert len(want) >= 3
        assert curve(run, name) == pytest.approx(want, rel=1e-5)
    result, wanted = run.read_manifest().result, alone.read_manifest().result
    assert (result["steps"], result["tokens"]) == (wanted["steps"], wanted["tokens"])


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_which_one_process_then_finishes(
    options: list[str], alone: RunDirectory, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "run")
    here = [*options, "--run", str(run.path)]
    process = start([*here, "--trainer.accumulate_grad_batches", "3"])
    kill_second(process, run, step=3)
    status, said = finish(process)
    assert status == 2, said
    assert said.count("error: ") == said.count("another rank of this run has ended") == 1
    assert "--resume auto" in said and "Traceback" not in said
    assert run.read_manifest().status == "failed"
    assert read_rows(samples_path(run))  # answers of the first rank, which change nothing
    fit(*here, "--resume", "auto")
    assert run.read_manifest().status == "finished"
    assert curve(run) == pytest.approx(curve(alone), rel=1e-5)


@pytest.mark.slow
def test_what_befalls_one_rank_is_decided_for_all(tiny: TinyCheckpoint, tmp_path: Path) -> None:
    """The second rank alone is short of memory, in the preflight, and has a loss that is no number. The run goes back
    with a lower rate, stops early, and computes what one process does."""
    runs = [RunDirectory(tmp_path / name) for name in ("one", "two")]
    bad = {"steps": [3], "what": "loss", "until_rate_falls": True}
    for run, window in zip(runs, (6, 3), strict=True):
        options = arguments(
            tiny("smollm2"), write_csv(tmp_path / "rows.csv"), run.path, model__family="smollm2",
            model__dtype="float32", model__optimizer="adamw", data__batch_size=2, trainer__max_epochs=8,
            trainer__accumulate_grad_batches=window, divergence__patience=1, early_stopping__min_delta=10,
            early_stopping__patience=3, run_page__samples_every=0,
        )  # fmt: skip
        if window == 6:
            fit(*with_callback(tmp_path, "NotANumber", **bad), *options)
        else:
            faults = {"NotANumber": {**bad, "rank": 1}, "TooLittleMemory": {"training": 200, "rank": 1}}
            status, said = finish(start([*with_callbacks(tmp_path, faults), *options]))
            assert status == 0, said
    one, two = (run.read_manifest() for run in runs)
    assert one.status == two.status == "finished"
    assert two.result["steps"] == one.result["steps"] == 8  # of 16: validated at 2, and three times no better
    changes = [adaptation.change for adaptation in two.adaptations]
    assert [change.split(",")[0] for change in changes] == [
        "what it has given up is given up here too",
        "back to before them",
    ]
    assert two.adaptations[-1].memory["rows"] == 1
    assert curve(runs[1]) == pytest.approx(curve(runs[0]), rel=1e-5)
    assert curve(runs[1], "val/loss") == pytest.approx(curve(runs[0], "val/loss"), rel=1e-5)


@pytest.mark.slow
def test_shards_end_where_one_rank_runs_out_of_memory(options: list[str], alone: RunDirectory, tmp_path: Path) -> None:
    """It cannot try again while the others wait for its share of the weights. One process finishes the run."""
    run = RunDirectory(tmp_path / "run")
    fault = with_callback(tmp_path, "TooLittleMemory", training=140, rank=0)
    here = [*options, "--run", str(run.path), "--preflight", "false"]
    status, said = finish(start([*fault, *here, "--trainer.accumulate_grad_batches", "3"], "fsdp"))
    assert status == 2, said
    assert said.count("error: ") == said.count("out of memory in training at 1 x 147 tokens") == 1
    assert "with model.shard_base no GPU can run its rows again" in said and "Traceback" not in said
    assert run.read_manifest().status == "failed"
    assert list(run.checkpoints.glob("step-*.ckpt"))
    fit(*here, "--resume", "auto")
    assert run.read_manifest().status == "finished"
    assert curve(run) == pytest.approx(curve(alone), rel=1e-5)


@pytest.mark.slow
def test_the_real_model_learns_the_same_on_packed_rows(smollm2: Path, tmp_path: Path) -> None:
    """SmolLM2 on packed rows: four micro-batches a step on one process, two on each of two."""
    runs = [RunDirectory(tmp_path / name) for name in ("one", "two")]
    data = write_csv(tmp_path / "rows.csv")
    for run, window in zip(runs, (4, 2), strict=True):
        options = arguments(
            smollm2, data, run.path, model__family="smollm2", model__optimizer="adamw", data__packing="true",
            data__max_length=128, trainer__max_steps=2, trainer__accumulate_grad_batches=window, validate_every=2,
            preflight="false", run_page__samples_every=0, checkpoints__every=2, model__gradient_checkpointing="false",
        )  # fmt: skip
        if window == 4:
            fit(*options)
        else:
            status, said = finish(start(options))
            assert status == 0, said
    one, two = map(curve, runs)
    assert len(one) == 2 and two == pytest.approx(one, rel=2e-3)  # bfloat16 where the processor has it
    validated = [curve(run, "val/loss") for run in runs]
    assert validated[0] and validated[1] == pytest.approx(validated[0], rel=2e-3)
    assert torch.isfinite(torch.tensor(list(two.values()))).all()
