"""The final figures, to TensorBoard and Weights & Biases, beside the run's training curves."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from app.artifact import RunDirectory


def track(run: Path, report: Mapping[str, Any], *, wandb: Literal["auto", "off", "offline", "online"]) -> None:
    """Logs base and tuned value of every metric, at the step the run ended with.

    Args:
        run: the run directory; TensorBoard's files go to ``logs/evaluation``.
        report: of the evaluation.
        wandb: whether to log to Weights & Biases; "auto" does as the run did. "offline" needs no network.
    """
    from torch.utils.tensorboard import SummaryWriter

    directory = RunDirectory(run)
    step = int(report["run"]["result"].get("steps", 0))
    values = metric_values(report)
    with SummaryWriter(str(directory.logs / "evaluation")) as writer:
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.add_text("evaluation/headline", f"{report['headline']['verdict']}: {report['headline']['text']}", step)
    mode = report["configuration"].get("wandb", "off") if wandb == "auto" else wandb
    if mode == "off":
        return
    import wandb as weights_and_biases

    with weights_and_biases.init(
        project="app",
        name=f"{directory.path.name}-evaluation",
        dir=str(directory.logs),
        mode="offline" if mode == "offline" else "online",
        job_type="evaluation",
        reinit="create_new",  # not the run of whoever calls this
        config={"run": report["run"], "fingerprints": report["fingerprints"]},
    ) as tracked:
        tracked.summary.update(values)
        tracked.summary["headline"] = json.dumps(report["headline"])


def metric_values(report: Mapping[str, Any]) -> dict[str, float]:
    """ "evaluation/METRIC/MODEL" -> value, where there is one."""
    values = {
        f"evaluation/{metric['name']}/{model}": metric[model]["value"]
        for metric in report["metrics"]
        for model in ("base", "tuned")
    }
    if report["forgetting"]:
        values["evaluation/forgetting"] = report["forgetting"]["value"]
    return {name: value for name, value in values.items() if value is not None}
