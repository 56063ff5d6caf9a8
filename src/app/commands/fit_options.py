"""Options of `fit` that parse and go wrong only later: after the first validation, at the first step, at the end."""

from typing import Any

from app.errors import ConfigError, require_ranges, several
from app.plan.options import endless_faults

METRICS = ("val/loss", "val/perplexity", "train/loss")
"""What can be monitored: it is there at every validation, and less of it is better."""


def require_sound(config: Any) -> None:
    """Looks at the parsed options of `fit` before anything is made of them.

    Raises:
        ConfigError: a line per fault.
    """
    trainer, faults = config.trainer, []
    counts = {
        "validate_every": config.validate_every,
        "trainer.accumulate_grad_batches": trainer.accumulate_grad_batches,
    }
    require_ranges("", {name: (count, 1, 10**9) for name, count in counts.items()})
    if not trainer.callbacks:  # those of the user's own may log more
        monitors = {each: config[each].monitor for each in ("checkpoints", "early_stopping")}
        faults = [
            f"{section}.monitor is {name}; there is {', '.join(METRICS)}"
            for section, name in monitors.items()
            if name not in METRICS
        ]
    if trainer.fast_dev_run:
        faults.append("trainer.fast_dev_run would leave no run behind; to try one out take --trainer.max_steps 2")
    faults += endless_faults(trainer)
    if faults:
        raise ConfigError(
            several("options that fit cannot work with", faults),
            remedy="correct them in the YAML or on the command line",
        )
