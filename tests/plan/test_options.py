"""The options that `plan` reads without `fit` are the ones that `fit` would use."""

from pathlib import Path

import pytest
import yaml

from app.__main__ import main
from app.errors import ConfigError
from app.model.module import QLoRAModule
from app.plan.options import read_options
from conftest import ROOT

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_equal_to_what_fit_resolves(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(config), "--model.rank", "8", "--data.packing", "true", "--print_config"])
    resolved = yaml.safe_load(capsys.readouterr().out)
    options = read_options([config], {"model.rank": 8, "data.packing": True})
    assert {**options.model, "targets": list(options.model["targets"])} == resolved["model"]
    # fit fills these in from the model's section and the seed.
    assert dict(options.data) == {name: resolved["data"].get(name, 42) for name in options.data}
    assert dict(options.checkpoints) == resolved["checkpoints"]
    assert options.run == resolved["run"]
    for name in ("max_epochs", "accumulate_grad_batches", "limit_train_batches"):
        assert options.trainer.get(name) == resolved["trainer"][name]


def test_later_files_win_and_numbers_may_be_written_as_2e_4(tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text("model: {rank: 4, lr: 2e-4}\ndata: {max_length: 512}\n")
    options = read_options([ROOT / "configs" / "mistral.yaml", tmp_path / "more.yaml"], {})
    assert (options.model["rank"], options.model["lr"], options.model["family"]) == (4, 2e-4, "mistral")
    assert options.micro_batch == (1, 512)


def test_all_faults_are_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("model: {rnak: 4, rank: many, double_quant: 1}\ndata: {batch_size: 1}\n")
    with pytest.raises(ConfigError) as fault:
        read_options([tmp_path / "bad.yaml"], {"data.max_lenght": 3})
    for text in (
        "there is no model.rnak; did you mean model.rank?",
        "model.rank is 'many', not int",
        "model.double_quant is 1, not bool",
        "there is no data.max_lenght; did you mean data.max_length?",
        "model.base is required",
        "data.path is required",
    ):
        assert text in str(fault.value)


WRONG_KINDS = {
    "model.optimizer": "sgd",
    "model.kernels": "foo",
    "model.quantization": "int8",
    "model.targets": "q_proj",
    "model.shorten_to": "none",
    "model.rank": "null",
    "data.too_long": "cut",
    "data.batch_size": "1.5",
    "checkpoints.keep": "many",
    "trainer.max_epochs": "three",
    "trainer.limit_train_batches": "half",
    "trainer.max_epcohs": "3",
}


@pytest.mark.parametrize("option", WRONG_KINDS)
def test_what_fits_parser_refuses_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = ROOT / "configs" / "mistral.yaml"
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", str(config), f"--{option}", WRONG_KINDS[option], "--print_config"])
    assert ended.value.code == 2 and option in capsys.readouterr().err
    with pytest.raises(ConfigError, match=option):
        read_options([config], {option: WRONG_KINDS[option]})


def test_a_choice_is_refused_with_what_there_is_to_choose() -> None:
    with pytest.raises(ConfigError, match=r"model\.quantization is 'int8', not one of nf4, none"):
        read_options([ROOT / "configs" / "mistral.yaml"], {"model.quantization": "int8"})


def test_ranges_are_those_of_fits_own_classes() -> None:
    changes = {
        "model.rank": -5, "model.lr": 7, "model.shorten_to": 1, "data.batch_size": 0, "data.val_fraction": 1,
        "checkpoints.best": 0, "trainer.accumulate_grad_batches": 0, "trainer.limit_train_batches": 1.5,
        "trainer.max_steps": -2,
    }  # fmt: skip
    with pytest.raises(ConfigError) as fault:
        read_options([ROOT / "configs" / "mistral.yaml"], changes)
    for option in changes:
        assert f"{option} is " in str(fault.value)
    own = {name: value for option, value in changes.items() if (name := option.removeprefix("model.")) != option}
    with pytest.raises(ConfigError) as fits:
        QLoRAModule("base", "mistral", **own)
    for line in fits.value.what.splitlines()[1:]:
        assert line in str(fault.value)


def test_training_without_an_end_is_refused() -> None:
    with pytest.raises(ConfigError, match="never end"):
        read_options([ROOT / "configs" / "mistral.yaml"], {"trainer.max_epochs": -1})


def test_options_are_read_as_fit_reads_a_command_line() -> None:
    given = {
        "data.path": "2024", "model.revision": "1234567", "model.rank": "8", "model.targets": "[q_proj]",
        "model.shorten_to": "null", "trainer.limit_train_batches": "0.5", "trainer.strategy.class_path": "X",
    }  # fmt: skip
    options = read_options([ROOT / "configs" / "mistral.yaml"], given)
    assert (options.data["path"], options.model["revision"], options.model["rank"]) == ("2024", "1234567", 8)
    assert (options.model["targets"], options.model["shorten_to"]) == (["q_proj"], None)
    assert options.trainer["limit_train_batches"] == 0.5


@pytest.mark.parametrize("text", ["- a\n- b\n", "model: [", "\xff"])
def test_a_file_that_is_no_configuration_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(text, "latin-1")
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        read_options([tmp_path / "bad.yaml"], {})
    with pytest.raises(ConfigError, match=r"gone\.yaml"):
        read_options([tmp_path / "gone.yaml"], {})
