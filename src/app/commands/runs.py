"""``python -m app runs``: the runs there are, one of them, the best of them, or one less."""

import difflib
import json
import math
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from app.artifact import Manifest, RunDirectory, try_lock
from app.commands import run_command
from app.errors import AppError, ConfigError, RunError, several
from app.terminal import is_quiet, make_table

if TYPE_CHECKING:
    from rich.console import Console

State = Literal["finished", "running", "stopped", "failed", "dead"]
Metric = Literal["val_loss", "train_loss", "tokens_per_second", "peak_memory"]
COLOURS = {"finished": "green", "running": "cyan", "stopped": "yellow", "failed": "red", "dead": "red"}
HIGHEST = ("tokens_per_second",)
"""Metrics of which more is better."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run directory, read.

    Attributes:
        path: of it.
        manifest: what it says of itself.
        state: dead: it says "running", but no process holds its lock.
        steps: optimizer steps done, or saved where it did not end by itself.
        val_loss: the best, in nats per trained token; None without a validation that gave a finite one.
        bytes: on disk.
    """

    path: Path
    manifest: Manifest
    state: State
    steps: int
    val_loss: float | None
    bytes: int

    def metric(self, name: Metric) -> float | None:
        """One figure; None where the run has none that is finite."""
        value = self.val_loss if name == "val_loss" else self.manifest.result.get(name)
        value = value.get("process") if isinstance(value, dict) else value
        return None if value is None or not math.isfinite(value) else float(value)


def read_run(path: Path) -> Run:
    """A run directory.

    Raises:
        RunError: it is none, or its manifest is damaged.
    """
    run = RunDirectory(path)
    manifest = run.read_manifest()
    result = manifest.result
    seals = [_json(file) for file in run.checkpoints.glob("step-*.json")]
    losses = [seal["value"] for seal in seals if isinstance(seal.get("value"), float) and math.isfinite(seal["value"])]
    best = result.get("best_val_loss")
    return Run(
        path=path,
        manifest=manifest,
        state=("running" if _held(run) else "dead") if manifest.status == "running" else manifest.status,
        steps=max([result.get("steps") or 0, *(seal.get("step", 0) for seal in seals)]),
        val_loss=best if best is not None and math.isfinite(best) else min(losses, default=None),
        bytes=sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
    )


def _json(file: Path) -> dict[str, Any]:
    """What a checkpoint's seal says; nothing where it is being written or damaged."""
    try:
        value = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _held(run: RunDirectory) -> bool:
    """Whether a process writes to the run now."""
    if not run.lock_path.is_file():
        return False
    with run.lock_path.open("r+", encoding="utf-8") as file:
        return not try_lock(file)


def find_runs(folder: Path) -> tuple[list[Run], list[str]]:
    """The runs in a folder, newest first, and what is wrong with those that cannot be read."""
    found, faults = [], []
    for manifest in folder.glob("*/manifest.json") if folder.is_dir() else ():
        try:
            found.append(read_run(manifest.parent))
        except RunError as fault:
            faults.append(fault.what)
    return sorted(found, key=lambda run: run.manifest.created, reverse=True), faults


def list_runs(folder: Path = Path("runs")) -> int:
    """Lists the runs of a folder, the newest first.

    Args:
        folder: that holds run directories.
    """
    found, faults = find_runs(folder)
    if is_quiet():
        print("\n".join(str(run.path) for run in found))
    elif found:
        _console().print(_table(found))
    else:
        print(f"no runs in {folder}; python -m app fit starts one")
    if faults:
        print(several("these cannot be read", faults), file=sys.stderr)
    return 0


def show_run(run: list[str], folder: Path = Path("runs")) -> int:
    """Shows runs in full.

    Args:
        run: names in the folder, or paths.
        folder: that holds run directories.
    """
    from rich.markup import escape

    console = _console()
    for one in _named(run, folder):
        table = make_table("", "", title=escape(str(one.path)), head=False)
        for name, value in _facts(one):
            table.add_row(name, escape(value))
        console.print(table)
    return 0


def remove_runs(run: list[str], folder: Path = Path("runs"), yes: bool = False) -> int:
    """Deletes runs for good, after asking.

    Args:
        run: names in the folder, or paths.
        folder: that holds run directories.
        yes: do not ask.
    """
    chosen = _named(run, folder)
    if links := [f"{one.path} leads to {one.path.resolve()}" for one in chosen if one.path.is_symlink()]:
        raise RunError(several("links are not followed", links), remedy="name the run itself; delete the link by hand")
    if busy := [str(one.path) for one in chosen if one.state == "running"]:
        raise RunError(several("a process writes to", busy), remedy="stop it first (ctrl-C), then remove the run")
    size = _size(sum(one.bytes for one in chosen))
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError("there is nobody to ask", where="runs rm", remedy="add --yes to delete without asking")
        names = ", ".join(str(one.path) for one in chosen)
        if input(f"delete {names} ({size}) for good? [y/N] ").strip().lower() not in ("y", "yes"):
            print("nothing was deleted")
            return 1
    for one in chosen:
        shutil.rmtree(one.path)
    print(f"deleted {len(chosen)} {'run' if len(chosen) == 1 else 'runs'}, {size}")
    return 0


def best_run(metric: Metric = "val_loss", folder: Path = Path("runs")) -> int:
    """Names the best run of a folder.

    Losses of runs with other data or another family cannot be compared; it says so where they differ.

    Args:
        metric: val_loss, train_loss and peak_memory: the lowest; tokens_per_second: the highest.
        folder: that holds run directories.
    """
    measured = [(value, run) for run in find_runs(folder)[0] if (value := run.metric(metric)) is not None]
    if not measured:
        raise RunError(f"no run in {folder} has {metric}", where="--metric", remedy="choose another metric or folder")
    ranked = sorted(measured, key=lambda pair: pair[0], reverse=metric in HIGHEST)
    if is_quiet():
        print(ranked[0][1].path)
        return 0
    _console().print(_table([run for _, run in ranked[:5]]))
    print(f"best by {metric}: {ranked[0][1].path}")
    kinds = {(run.manifest.base.family, str(run.manifest.data.sha256.get("val"))) for _, run in ranked}
    if "loss" in metric and len(kinds) > 1:
        print("these runs differ in family or validation data: their losses do not compare", file=sys.stderr)
    return 0


KINDS: dict[str, Callable[..., int]] = {"list": list_runs, "show": show_run, "rm": remove_runs, "best": best_run}
"""What can be done -> its function."""
STAYS = {
    "list": "paths",
    "show": "the facts that were asked for",
    "rm": "the question, and what was deleted",
    "best": "the path",
}
"""What can be done -> what it prints with --quiet."""


def main(argv: Sequence[str]) -> int:
    """Exit status 0: done; 1: nothing was deleted; 2: a fault the message explains."""
    if argv and argv[0] in ("-h", "--help"):
        lines = [f"  {kind:<5} {(function.__doc__ or '').splitlines()[0]}" for kind, function in KINDS.items()]
        print("\n".join(["usage: python -m app runs [list|show|rm|best] [options]", "", *lines, ""]))
        print("python -m app runs KIND --help lists a kind's options and defaults.")
        return 0
    kind, rest = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else ("list", argv)
    if kind not in KINDS:
        close = difflib.get_close_matches(kind, KINDS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        print(f"error: runs cannot {kind!r}{hint}\n  remedy: use one of {', '.join(KINDS)}", file=sys.stderr)
        return 2
    return run_command(KINDS[kind], rest, name=f"runs {kind}", stays=STAYS[kind])


def _named(names: Sequence[str], folder: Path) -> list[Run]:
    """The runs that are meant, each once, all faults at once."""
    chosen: dict[Path, Run] = {}
    faults = []
    for name in dict.fromkeys(names):
        path = folder / name if (folder / name / "manifest.json").is_file() else Path(name)
        try:
            chosen.setdefault(path.resolve(), read_run(path))
        except AppError as fault:
            close = difflib.get_close_matches(name, [p.name for p in folder.glob("*")] if folder.is_dir() else [], n=1)
            faults.append(fault.what + (f"; did you mean {close[0]}?" if close else ""))
    if faults:
        raise RunError(several("no such runs", faults), remedy="python -m app runs lists those there are")
    return list(chosen.values())


def _table(found: Sequence[Run]) -> Any:
    from rich.markup import escape

    figures = ("steps", "val loss", "perplexity", "size", "age")
    table = make_table("run", "status", "base", *figures, right=figures)
    for run in found:
        loss = "–" if run.val_loss is None else f"{run.val_loss:.4f}"
        perplexity = "–" if run.val_loss is None else f"{math.exp(run.val_loss):.3f}"
        state = f"[{COLOURS[run.state]}]{run.state}[/]"
        base = escape(run.manifest.base.id.rsplit("/", 1)[-1])
        table.add_row(
            escape(str(run.path)), state, base, f"{run.steps:,}", loss, perplexity, _size(run.bytes), _age(run)
        )
    return table


def _facts(run: Run) -> list[tuple[str, str]]:
    manifest, result = run.manifest, run.manifest.result
    facts = [
        ("status", run.state),
        ("base", f"{manifest.base.id} ({manifest.base.family}, {manifest.base.quantization})"),
        (
            "data",
            f"{manifest.data.source}: " + ", ".join(f"{n:,} {split}" for split, n in manifest.data.samples.items()),
        ),
        ("steps", f"{run.steps:,}"),
    ]
    if run.val_loss is not None:
        where = f" at step {result['best_step']}" if result.get("best_step") else ""
        facts.append(("best val loss", f"{run.val_loss:.4f}, perplexity {math.exp(run.val_loss):.3f}{where}"))
    if result.get("tokens_per_second"):
        facts.append(("speed", f"{result['tokens_per_second']:,.0f} tokens/s"))
    if "peak_memory" in result:
        facts.append(("peak memory", f"{result['peak_memory']['process'] / 2**20:,.0f} MiB"))
    facts += [(f"changed at step {one.step}", f"{one.change} ({one.cause})") for one in manifest.adaptations]
    reports = sorted(str(path) for path in RunDirectory(run.path).reports.glob("*") if path.is_file())
    return [
        *facts,
        *[("report", path) for path in reports],
        ("started", f"{manifest.created} ({_age(run)} ago), commit {manifest.git_commit or 'unknown'}"),
        ("size", _size(run.bytes)),
        *(
            [("go on", f"python -m app fit --config {shlex.quote(str(run.path / 'config.yaml'))} --ckpt_path last")]
            if run.state in ("dead", "stopped")
            else []
        ),
    ]


def _size(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def _age(run: Run) -> str:
    """Since the run began."""
    seconds = time.time() - datetime.fromisoformat(run.manifest.created).astimezone(UTC).timestamp()
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


def _console() -> "Console":
    from rich.console import Console

    return Console(highlight=False)
