"""The options that `plan` reads without `fit` are the ones that `fit` would use."""

from pathlib import Path

import pytest
import yaml

from app.__main__ import main
from app.errors import ConfigError
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


@pytest.mark.parametrize("text", ["- a\n- b\n", "model: [", "\xff"])
def test_a_file_that_is_no_configuration_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(text, "latin-1")
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        read_options([tmp_path / "bad.yaml"], {})
    with pytest.raises(ConfigError, match=r"gone\.yaml"):
        read_options([tmp_path / "gone.yaml"], {})
