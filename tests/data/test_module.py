"""`fit` on packed rows: the whole command, in every family."""

import json
import logging
from pathlib import Path

import pytest

from app.families import Family
from conftest import ROOT, TinyCheckpoint
from support.fitting import arguments, fit, write_csv


def test_fit_trains_on_packed_rows(
    family: Family, tiny: TinyCheckpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = "quickstart" if family.name == "smollm2" else family.name
    run = tmp_path / "run"
    options = arguments(
        tiny(family.name), write_csv(tmp_path / "rows.csv"), run, ROOT / "configs" / f"{name}.yaml",
        data__packing="true", trainer__max_steps=2, trainer__accumulate_grad_batches=1,
    )  # fmt: skip
    with caplog.at_level(logging.INFO, logger="app"):
        fit(*options)
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["status"] == "finished" and manifest["config"]["data"]["packing"] is True
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
    assert manifest["data"]["samples"]["train"] > 15
    assert "packed: " in caplog.text and "% of them used" in caplog.text
