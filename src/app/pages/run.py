"""index.html of a run directory: how training goes, in one file without script, made of what the run has written.

It loads itself again while the run goes on, and stands still afterwards. Links are relative, so that
a copied folder keeps them.
"""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from itertools import pairwise
from pathlib import Path
from statistics import median

from app.artifact import Manifest, RunDirectory, write_atomic
from app.pages.charts import Curve, line_chart, number, thin
from app.pages.document import document, section
from app.pages.history import Row, read_rows
from app.pages.run_parts import STYLE, configuration, files, samples

TONES = {"running": "good", "finished": "good", "stopped": "warn", "failed": "bad"}
PLOTS = (
    ("Learning rate", {"learning rate": "lr"}, "", False),
    ("Speed", {"tokens/s": "speed/tokens_per_second"}, "tokens/s", True),
    ("Memory", {"now": "memory/process_gib", "peak": "memory/process_peak_gib"}, "GiB", False),
    ("Gradient norm", {"before clipping": "train/grad_norm"}, "", True),
)
"""Title, name in the legend -> metric, unit, whether it is noisy; the loss has a wide plot of its own."""
RECENT = 50
"""Steps from whose duration the time left is told."""


def page_path(run: RunDirectory) -> Path:
    return run.path / "index.html"


def metrics_path(run: RunDirectory) -> Path:
    return run.logs / "metrics.jsonl"


def samples_path(run: RunDirectory) -> Path:
    return run.logs / "samples.jsonl"


def update_run_page(run: RunDirectory) -> None:
    """Makes a run's page anew from its files, with links to the reports there are now; nothing where it has none."""
    if page_path(run).is_file():
        manifest = run.read_manifest()
        text = run_page(run, manifest, read_rows(metrics_path(run)), read_rows(samples_path(run)))
        write_atomic(page_path(run), text)


def run_page(
    run: RunDirectory, manifest: Manifest, metrics: Sequence[Row], answers: Sequence[Row], *, refresh: float = 10
) -> str:
    """The page as HTML.

    Args:
        run: the run directory.
        manifest: the run's.
        metrics: of ``metrics.jsonl``: ``step``, ``of`` (all steps), ``time`` (seconds since 1970) and logged values.
        answers: of ``samples.jsonl``: ``step``, ``prompt``, ``expected`` (or None) and ``answer``.
        refresh: seconds until a reader's browser loads it again, while the run goes on.
    """
    name = run.path.resolve().name
    body = "".join(
        (
            _head(name, manifest, metrics),
            _cards(metrics),
            _changes(manifest),
            section("Curves, over optimizer steps", _plots(metrics)) if metrics else "",
            section("Answers during training", samples(answers)) if answers else "",
            section("Reports and files", files(run)),
            section("Configuration", configuration(manifest)),
            f"<footer>Written {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC. The same figures are in "
            '<a href="logs/metrics.jsonl">logs/metrics.jsonl</a>, a line for each step.</footer>',
        )
    )
    again = max(1, round(refresh)) if manifest.status == "running" else None
    return document(f"{name}: {manifest.status}", body, style=STYLE, refresh=again)


def curve(metrics: Sequence[Row], name: str) -> Curve:
    """(step, value) of a metric; steps where it was not logged, or was no finite number, are left out."""
    return [(row["step"], row[name]) for row in metrics if row.get(name) is not None]


def clock(seconds: float) -> str:
    """A duration as people say it."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if hours else f"{rest} min"


def seconds_left(metrics: Sequence[Row]) -> float | None:
    """Seconds until the last step, by the median duration of the newest; None while there are too few."""
    steps = [row for row in metrics if "of" in row][-RECENT:]
    durations = [
        (after["time"] - before["time"]) / (after["step"] - before["step"])
        for before, after in pairwise(steps)
        if after["step"] > before["step"]
    ]
    return median(durations) * (steps[-1]["of"] - steps[-1]["step"]) if durations else None


def _head(name: str, manifest: Manifest, metrics: Sequence[Row]) -> str:
    steps = [row for row in metrics if "of" in row]
    done, total = (steps[-1]["step"], steps[-1]["of"]) if steps else (0, 0)
    told = [f"step {done:,} of {total:,}" if total else "before the first step"]
    left = seconds_left(metrics)
    if manifest.status == "running" and left is not None:
        told.append(f"about {clock(left)} left")
    bar = ""
    if manifest.status == "running":
        share = 100 * done / total if total else 0
        bar = (
            f'<div class="progress" role="progressbar" aria-label="steps" aria-valuenow="{share:.0f}" '
            f'aria-valuemin="0" aria-valuemax="100"><span style="width:{share:.2f}%"></span></div>'
        )
    base = manifest.base
    counts = ", ".join(f"{count:,} {split}" for split, count in manifest.data.samples.items() if count)
    bits = "NF4" if base.quantization == "nf4" else "16 bits"
    return (
        f'<header><p class="quiet">Fine-tuning run</p><h1>{escape(name)}</h1>'
        f'<p><span class="verdict {TONES[manifest.status]}">{manifest.status}</span> '
        f'<span class="told">{", ".join(told)}</span></p>{bar}'
        f'<p class="quiet">{escape(Path(base.id).name)} ({escape(base.family)}) in {bits}, trained on '
        f"{escape(Path(manifest.data.source).name)}{f' ({counts})' if counts else ''}, begun "
        f"{escape(manifest.created[:16].replace('T', ' '))} UTC</p></header>"
    )


def _cards(metrics: Sequence[Row]) -> str:
    losses, validations = curve(metrics, "train/loss"), curve(metrics, "val/loss")
    speeds, peaks = curve(metrics, "speed/tokens_per_second"), curve(metrics, "memory/process_peak_gib")
    cards = []
    if losses:
        cards.append(("Training loss", number(losses[-1][1]), f"from {number(losses[0][1])}"))
    if validations:
        step, least = min(validations, key=lambda point: point[1])
        perplexity = f"perplexity {number(math.exp(min(least, 50)))}, step {step:,}"
        cards.append(("Best validation loss", number(least), perplexity))
    if speeds:
        newest = [value for _, value in speeds[-RECENT:]]
        cards.append(("Tokens/s", number(median(newest)), f"median of {len(newest)} steps"))
    if peaks:
        cards.append(("Peak memory", f"{peaks[-1][1]:.2f}", "GiB, the whole process"))
    inner = "".join(
        f'<div class="card"><span>{title}</span><b>{value}</b><small>{note}</small></div>'
        for title, value, note in cards
    )
    return f'<div class="cards">{inner}</div>' if inner else ""


def _changes(manifest: Manifest) -> str:
    """What was changed to keep the run alive."""
    items = "".join(
        f"<li><b>From step {each.step:,}: {escape(each.change)}</b><span>{escape(each.cause)}</span></li>"
        for each in manifest.adaptations
    )
    return f'<ul class="advice">{items}</ul>' if items else ""


def _plots(metrics: Sequence[Row]) -> str:
    loss = {"training": thin(curve(metrics, "train/loss")), "validation": curve(metrics, "val/loss")}
    rest = "".join(
        line_chart(title, {name: thin(curve(metrics, each)) for name, each in curves.items()}, unit=unit, noisy=noisy)
        for title, curves, unit, noisy in PLOTS
    )
    # A plot that is shrunk to a phone's width has letters too small to read: each width has its own.
    large, small = (
        line_chart("Loss, nats per trained token", loss, unit="nats", noisy=True, wide=wide) for wide in (True, False)
    )
    return f'<div class="wide-plot">{large}</div><div class="narrow-plot">{small}</div><div class="plots">{rest}</div>'
