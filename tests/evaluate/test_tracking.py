"""Final figures in TensorBoard and, offline, in Weights & Biases."""

import copy
from pathlib import Path
from typing import Any

import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from app.evaluate.tracking import metric_values, track

REPORT: dict[str, Any] = {
    "run": {"path": "run", "result": {"steps": 12}},
    "headline": {"level": "good", "verdict": "better than its base", "text": "8 before, 4 after"},
    "metrics": [{"name": "perplexity", "base": {"value": 8.0}, "tuned": {"value": 4.0}},
                {"name": "exact_match", "base": {"value": None}, "tuned": {"value": None}}],
    "forgetting": {"value": 0.03},
    "fingerprints": {},
    "configuration": {"wandb": "off"},
}  # fmt: skip


def test_figures_reach_tensorboard_at_the_last_step(tmp_path: Path) -> None:
    track(tmp_path, REPORT, wandb="auto")
    assert not (tmp_path / "logs" / "wandb").exists()  # as the run was configured
    events = EventAccumulator(str(tmp_path / "logs" / "evaluation"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(metric_values(REPORT)) == {
        "evaluation/perplexity/base", "evaluation/perplexity/tuned", "evaluation/forgetting"
    }  # fmt: skip
    (event,) = events.Scalars("evaluation/perplexity/tuned")
    assert (event.step, event.value) == (12, 4.0)


def test_a_run_that_logged_to_wandb_offline_is_logged_there_again(tmp_path: Path) -> None:
    report = copy.deepcopy(REPORT)
    report["configuration"]["wandb"] = "offline"
    track(tmp_path, report, wandb="auto")
    wandb.teardown()  # as at a process's end: its service writes the file and stops
    (stored,) = (tmp_path / "logs" / "wandb").glob("offline-run-*/run-*.wandb")
    content = stored.read_bytes()
    assert b"evaluation/perplexity/tuned" in content


def test_the_caller_s_own_run_is_left_alone(tmp_path: Path) -> None:
    own = wandb.init(mode="offline", dir=tmp_path)
    track(tmp_path / "run", REPORT, wandb="offline")
    assert wandb.run is own
    own.finish()
    assert list((tmp_path / "run" / "logs" / "wandb").glob("offline-run-*"))
