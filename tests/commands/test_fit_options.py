"""Options that went wrong only after the first validation, at the first step or at the end, each with a traceback."""

from pathlib import Path

import pytest

from app.__main__ import main
from support.fitting import arguments


def test_all_are_refused_at_once_and_nothing_is_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    options = arguments(
        tmp_path / "no-model", tmp_path / "no-data", run, model__family="smollm2", overwrite=True,
        checkpoints__monitor="val_loss", early_stopping__monitor="nonsense", trainer__fast_dev_run=True,
        trainer__max_epochs=-1,
    )  # fmt: skip
    assert main(["fit", *options]) == 2
    said = capsys.readouterr().err
    assert "checkpoints.monitor is val_loss; there is val/loss, val/perplexity, train/loss" in said
    assert "early_stopping.monitor is nonsense; there is val/loss" in said
    assert "trainer.fast_dev_run would leave no run behind; to try one out take --trainer.max_steps 2" in said
    assert "trainer.max_epochs is -1 and trainer.max_steps too" in said
    assert said.count("error:") == said.count("remedy:") == 1
    assert not run.exists()
