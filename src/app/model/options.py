"""Options that a checkpoint belongs to: a resume with others would ignore them, or take its weights for something else.

Lightning brings back weights, learning rates and moments, and knows nothing of the options they come from. Those that
change no result beyond rounding (kernels, memory) and those that say how long a run goes on are not among them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.errors import RunError, changes, several

if TYPE_CHECKING:
    from app.model.module import QLoRAModule

ADAPTER = ("rank", "alpha", "targets", "rslora", "dora")
"""Without these the adapter's weights are not what was trained."""
TRAINING = (
    *("revision", "quantization", "double_quant", "dropout"),
    *("lr", "weight_decay", "warmup", "schedule", "optimizer"),
)


def options_of(module: "QLoRAModule") -> dict[str, Any]:
    """Option -> value as configured: what a run has changed to stay alive (a lower rate, fewer rows) is not in it."""
    return {
        "model.base": Path(module.base).absolute().name,  # a folder that was moved is still the same model
        "model.family": module.family.name,
        **{f"model.{name}": getattr(module, name) for name in (*ADAPTER, *TRAINING)},
        "model.targets": sorted(module.targets),
        "trainer.gradient_clip_val": module.trainer.gradient_clip_val,
        # On twice the ranks half as many make the same step.
        "trainer.accumulate_grad_batches x devices": module.trainer.accumulate_grad_batches * module.trainer.world_size,
    }


def require_same_options(module: "QLoRAModule", checkpoint: Mapping[str, Any]) -> None:
    """Compares with the checkpoint that is about to be loaded; one from before options were written down passes.

    Raises:
        RunError: some are others: in training any of them, in an evaluation those of the adapter.
    """
    training = module.trainer.state.fn == "fit"
    now = options_of(module)
    checked = now if training else {name: now[name] for name in (f"model.{each}" for each in ADAPTER)}
    faults = changes(checked, checkpoint.get("options", {}))
    if not faults:
        return
    data: Any = module.trainer.datamodule  # type: ignore[attr-defined]  # set by the trainer
    raise RunError(
        several(
            "the checkpoint was trained with other options than these",
            [*faults, *data.changes(checkpoint.get(type(data).__qualname__, {}))],
        ),
        where="--resume" if training else "--ckpt_path",
        remedy="go on without changing them, as config.yaml in the run directory has them"
        + ("; or start a new run with another --run" if training else ""),
    )
