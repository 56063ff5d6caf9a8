"""The trainer's commands as users run them, for every family, on tiny checkpoints of its real architecture."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from app.__main__ import main
from app.artifact import RunDirectory
from app.callbacks.checkpoint_files import find_checkpoint
from app.cli import report
from app.data.records import prompt
from app.families import Family
from app.generate.engine import Engine
from app.generate.sampling import Sampling
from app.generate.session import open_run
from conftest import ROOT, TinyCheckpoint
from support.fitting import arguments, fit, write_csv

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(tmp_path_factory.mktemp("data") / "questions.csv")


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_parses_and_is_complete(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", str(config), "--print_config"])
    assert ended.value.code == 0
    parsed = yaml.safe_load(capsys.readouterr().out)
    assert parsed["seed_everything"] == 42
    assert (parsed["model"]["rank"], parsed["model"]["targets"]) == (16, ["all"])
    assert (parsed["model"]["quantization"], parsed["model"]["double_quant"]) == ("nf4", True)
    assert parsed["early_stopping"]["patience"] == 3
    if config.stem != "quickstart":
        assert parsed["data"]["max_length"] == 2048
        assert (parsed["data"]["batch_size"], parsed["trainer"]["accumulate_grad_batches"]) == (1, 16)
        assert parsed["model"]["optimizer"] == "paged_adamw_8bit"
        assert parsed["trainer"]["max_epochs"] == 3
        assert parsed["checkpoints"]["every"] == 50


def test_every_family_has_a_config_of_its_first_base_model(family: Family) -> None:
    name = "quickstart" if family.name == "smollm2" else family.name
    config = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
    assert config["model"]["family"] == family.name
    if name != "quickstart":
        assert config["model"]["base"] == family.base_models[0]


def test_whole_path_of_every_family(family: Family, tiny: TinyCheckpoint, data: Path, tmp_path: Path) -> None:
    """Fit three steps from the family's own config, validate, save, load in plain peft, reopen, generate."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    name = "quickstart" if family.name == "smollm2" else family.name
    run = RunDirectory(tmp_path / "run")
    options = arguments(
        tiny(family.name),
        data,
        run.path,
        ROOT / "configs" / f"{name}.yaml",
        trainer__limit_train_batches=6,
        data__batch_size=1,
    )
    fit(*options)

    manifest = run.read_manifest()
    assert manifest.status == "finished"
    assert manifest.base.family == family.name
    assert manifest.base.quantization == "nf4"
    assert manifest.result["steps"] == 3
    assert manifest.config["model"]["rank"] == 16
    assert manifest.result["best_val_loss"] > 0
    assert manifest.result["peak_memory"]["process"] > 0
    assert manifest.result["tokens"] > 0
    assert list((run.logs / "tensorboard").glob("events.*"))
    assert max(path.stat().st_size for path in run.checkpoints.iterdir()) < 20 * 2**20

    # Trained, and readable by people who only have peft.
    weights = load_file(run.adapter / "adapter_model.safetensors")
    assert len(weights) == 2 * len(family.lora_targets) * 2  # A and B for each target in both layers
    assert any(value.abs().max() > 0 for key, value in weights.items() if "lora_B" in key)
    plain = AutoModelForCausalLM.from_pretrained(tiny(family.name), dtype=torch.float32)
    PeftModel.from_pretrained(plain, run.adapter)

    assert main(["validate", *options, "--ckpt_path", "best"]) == 0
    assert main(["test", *options, "--ckpt_path", "last"]) == 0

    session = open_run(run.path, device="cpu")
    answer = Engine(session).generate([prompt("What is 2 plus 6?")], Sampling(temperature=0, max_tokens=5))[0]
    assert 1 <= len(answer.token_ids) <= 5


@pytest.fixture(scope="module")
def finished(
    tiny: TinyCheckpoint, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunDirectory, list[str]]:
    """A run over two epochs, with dropout, that kept the checkpoint of every step; and its options."""
    run = RunDirectory(tmp_path_factory.mktemp("finished") / "run")
    options = arguments(
        tiny("smollm2"),
        data,
        run.path,
        model__family="smollm2",
        model__dropout=0.1,
        model__gradient_checkpointing=False,
        trainer__max_epochs=2,
        checkpoints__keep=1000,
        data__batch_size=3,
    )
    fit(*options)
    return run, options


def test_resumed_run_equals_uninterrupted_run(finished: tuple[RunDirectory, list[str]], tmp_path: Path) -> None:
    """From a checkpoint inside an epoch, on its border, and one before the end: the same weights to the bit."""
    whole, options = finished
    steps = sorted(whole.checkpoints.glob("step-*.ckpt"))
    per_epoch = len(steps) // 2
    assert len(steps) == whole.read_manifest().result["steps"] >= 6
    wanted = load_file(whole.adapter_last / "adapter_model.safetensors")
    for step in {1, per_epoch, per_epoch + 1, len(steps) - 1}:
        run = RunDirectory(tmp_path / f"resumed-{step}")
        run.checkpoints.mkdir(parents=True)
        shutil.copy(steps[step - 1], run.checkpoints)
        fit(*[str(run.path) if value == str(whole.path) else value for value in options], "--ckpt_path", "last")
        got = load_file(run.adapter_last / "adapter_model.safetensors")
        assert all(torch.equal(got[name], value) for name, value in wanted.items()), f"differs after step {step}"
        result, original = run.read_manifest().result, whole.read_manifest().result
        assert result["best_val_loss"] == original["best_val_loss"]
        assert result["steps"] == original["steps"]


def test_checkpoints_hold_the_adapter_and_no_base(finished: tuple[RunDirectory, list[str]]) -> None:
    run, _ = finished
    checkpoint = torch.load(find_checkpoint(run, "best"), weights_only=True)
    assert checkpoint["state_dict"]
    assert all("lora_" in name for name in checkpoint["state_dict"])
    assert checkpoint["optimizer_states"]
    assert checkpoint["lr_schedulers"]
    assert "RandomState" in checkpoint["callbacks"]
    assert checkpoint["SFTDataModule"].keys() == {"epoch", "batch", "ranks", "order"}


def test_best_adapter_is_that_of_the_lowest_validation_loss(finished: tuple[RunDirectory, list[str]]) -> None:
    run, _ = finished
    result = run.read_manifest().result
    at_best = torch.load(run.checkpoints / f"step-{result['best_step']:06d}.ckpt", weights_only=True)["state_dict"]
    saved = load_file(run.adapter / "adapter_model.safetensors")
    by_name = {name.replace(".default", "").removeprefix("model."): value for name, value in at_best.items()}
    assert all(torch.equal(saved[name], value) for name, value in by_name.items())


def test_second_run_in_one_directory_is_refused(
    finished: tuple[RunDirectory, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    run, options = finished
    before = run.manifest_path.read_text()
    assert main(["fit", *options]) == 2
    assert "--resume auto" in capsys.readouterr().err
    assert run.manifest_path.read_text() == before


def test_early_stopping_after_three_validations_without_progress(
    tiny: TinyCheckpoint, data: Path, tmp_path: Path
) -> None:
    """With a learning rate of almost nothing the loss does not move, so validations two to four do not improve."""
    run = RunDirectory(tmp_path / "run")
    fit(
        *arguments(
            tiny("smollm2"),
            data,
            run.path,
            model__family="smollm2",
            model__lr=1e-12,
            trainer__max_epochs=50,
            validate_every=1,
            early_stopping__min_delta=0.01,
        )
    )
    assert run.read_manifest().result["steps"] == 4


def test_wandb_offline_by_one_option(tiny: TinyCheckpoint, data: Path, tmp_path: Path) -> None:
    import wandb

    run = RunDirectory(tmp_path / "run")
    fit(
        *arguments(
            tiny("smollm2"), data, run.path, model__family="smollm2", wandb="offline", trainer__limit_train_batches=2
        )
    )
    assert list((run.logs / "wandb").glob("offline-run-*/*.wandb"))
    assert wandb.run is None  # it has ended, and takes nothing of what this process does next


def test_tensorboard_holds_configuration_and_every_curve(finished: tuple[RunDirectory, list[str]]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, _ = finished
    events = EventAccumulator(str(run.logs / "tensorboard"))
    events.Reload()
    steps = run.read_manifest().result["steps"]
    scalars = set(events.Tags()["scalars"])
    wanted = {"train/loss", "val/loss", "val/perplexity", "speed/tokens_per_second", "memory/process_gib"}
    assert wanted <= scalars
    assert any(name.startswith("lr") for name in scalars)
    assert len(events.Scalars("train/loss")) == steps
    text = events.Tensors("run/text_summary")[0].tensor_proto.string_val[0].decode()
    for part in ("model:", "rank: 16", "versions:", "torch:", "git_commit:", "sha256:"):
        assert part in text


def test_config_of_a_run_starts_the_same_run(finished: tuple[RunDirectory, list[str]], tmp_path: Path) -> None:
    run, _ = finished
    again = RunDirectory(tmp_path / "again")
    fit("--config", str(run.config_path), "--run", str(again.path), "--trainer.limit_train_batches", "2")
    assert json.loads(again.manifest_path.read_text())["config"]["data"]["batch_size"] == 3


def test_config_of_a_run_never_wipes_that_run(
    tiny: TinyCheckpoint, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not even where it was made with --overwrite true, or by going on: those are said anew each time."""
    run = RunDirectory(tmp_path / "run")
    options = arguments(tiny("smollm2"), data, run.path, model__family="smollm2", trainer__max_steps=1)
    for once in (("--overwrite", "true"), ("--resume", "auto"), ("--ckpt_path", "last")):
        fit(*options, *once)
        for config in (yaml.safe_load(run.config_path.read_text()), run.read_manifest().config):
            assert (config["overwrite"], config["resume"], config["ckpt_path"]) == (False, "never", None)
        checkpoints = {path: path.read_bytes() for path in run.checkpoints.iterdir()}
        assert main(["fit", "--config", str(run.config_path)]) == 2
        assert "holds the checkpoints of another run" in capsys.readouterr().err
        assert {path: path.read_bytes() for path in run.checkpoints.iterdir()} == checkpoints


def test_the_last_line_of_fit_can_be_pasted(
    finished: tuple[RunDirectory, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(finished[0].path, tmp_path / "my run")
    report(RunDirectory(folder))
    assert f"next: python -m app evaluate --run '{folder}'\n" in capsys.readouterr().out


def test_without_a_validation_split_the_adapter_follows_the_last_step(
    tiny: TinyCheckpoint, data: Path, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "run")
    fit(
        *arguments(
            tiny("smollm2"), data, run.path, model__family="smollm2", data__val_fraction=0, data__test_fraction=0
        )
    )
    best, last = (load_file(folder / "adapter_model.safetensors") for folder in (run.adapter, run.adapter_last))
    assert all(torch.equal(best[name], value) for name, value in last.items())
    assert run.read_manifest().result["best_val_loss"] is None
