"""What training logged: losses, learning rate, speed and memory over steps, from the run's TensorBoard files."""

from pathlib import Path

from app.pages.charts import Curve, thin

CURVES = {
    "train/loss": "training loss",
    "val/loss": "validation loss",
    "lr": "learning rate",
    "speed/tokens_per_second": "tokens/s",
    "memory/process_gib": "memory, GiB",
}
"""TensorBoard tag -> what it is."""


def read_curves(logs: Path) -> dict[str, Curve]:
    """(step, value) of every curve that was logged, thinned; {} where there are no logs.

    A run that was resumed logged some steps twice: the later value counts, as it belongs to the adapter that was kept.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folders = sorted({file.parent for file in logs.rglob("events.out.tfevents.*")})
    found: dict[str, dict[int, tuple[float, float]]] = {}
    for folder in folders:
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        events.Reload()
        for tag in set(events.Tags()["scalars"]) & set(CURVES):
            values = found.setdefault(tag, {})
            for event in events.Scalars(tag):
                if event.wall_time >= values.get(event.step, (0.0, 0.0))[0]:
                    values[event.step] = (event.wall_time, event.value)
    return {
        tag: thin([(step, value) for step, (_, value) in sorted(found[tag].items())]) for tag in CURVES if tag in found
    }
