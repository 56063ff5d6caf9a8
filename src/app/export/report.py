"""What a check found, as JSON for programs and Markdown for people."""

import dataclasses
import json
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from app.artifact import write_atomic
from app.export.check import Verdict
from app.export.equivalence import Distance, Evidence, Sample

PACKAGES = ("torch", "transformers", "peft", "gguf", "llama-cpp-python", "bitsandbytes")


def write_report(
    folder: Path,
    kind: str,
    verdicts: Sequence[Verdict],
    *,
    source: str,
    samples: Sequence[Sample],
    run: Evidence,
    twin: Evidence | None,
    twin_dtype: str,
) -> Path:
    """Writes ``export-KIND.json`` and ``export-KIND.md`` into ``folder``; returns the latter's path."""
    value = {
        "kind": kind,
        "source": source,
        "twin": twin_dtype or None,
        "versions": _versions(),
        "verdicts": [dataclasses.asdict(verdict) for verdict in verdicts],
    }
    write_atomic(folder / f"export-{kind}.json", json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    path = folder / f"export-{kind}.md"
    write_atomic(path, _markdown(kind, verdicts, source, samples, run, twin, twin_dtype))
    return path


def _markdown(
    kind: str,
    verdicts: Sequence[Verdict],
    source: str,
    samples: Sequence[Sample],
    run: Evidence,
    twin: Evidence | None,
    twin_dtype: str,
) -> str:
    first = verdicts[0].run
    lines = [
        f"# Export {kind}: is it the same model?",
        "",
        f"Compared at {first.positions} answer tokens of {first.conversations} conversations: {source}.",
        "",
        "- **run**: the base as it was quantised for training, with the adapter beside it.",
        f"- **twin**: the export's own kind of base weights with peft's adapter beside them, unmerged, in {twin_dtype}."
        if twin
        else "- **twin**: left out: its weights do not fit into this machine's memory, or it is the run itself.",
        "",
        "KL: divergence from the reference to the export, nats per token. Top-1: share of positions where both would "
        "choose the same token. In brackets: 95 % bootstrap interval over conversations.",
        "",
        "| export | verdict | reference | KL | top-1 | largest logit change | loss change, nats | perplexity | "
        "reference's |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for verdict in verdicts:
        word = "pass" if verdict.passed else "**FAIL**"
        if verdict.twin:
            lines.append(f"| {verdict.name} | {word} | twin | {_cells(verdict.twin)} |")
        lines.append(f"| {verdict.name} | {word} | run | {_cells(verdict.run)} |")
    lines += ["", "| export | KL bound | top-1 bound | bound of loss above the run | texts tokenised as in training |"]
    lines += ["|---|---|---|---|---|"]
    for verdict in verdicts:
        bounds, checked = verdict.bounds, verdict.tokenizer
        lines.append(
            f"| {verdict.name} | {bounds.kl:g} | {bounds.top1:g} | {bounds.loss:g} | "
            f"{checked.strings - len(checked.differing)} of {checked.strings} |"
        )
    for verdict in verdicts:
        if verdict.faults:
            lines += ["", f"## Why {verdict.name} failed", "", *(f"- {fault}" for fault in verdict.faults)]
            lines += [f"- differs: `{text!r}`" for text in verdict.tokenizer.differing[:10]]
    lines += ["", "## Greedy answers side by side", ""]
    for index, answer in enumerate(run.answers):
        lines += [f"### {_inline(samples[index].question)}", "", "| | |", "|---|---|", f"| run | {_inline(answer)} |"]
        if twin:
            lines.append(f"| twin | {_inline(twin.answers[index])} |")
        lines += [f"| {verdict.name} | {_inline(verdict.run.answers[index])} |" for verdict in verdicts]
        lines.append("")
    lines += ["", ", ".join(f"{name} {number}" for name, number in _versions().items()), ""]
    return "\n".join(lines)


def _cells(distance: Distance) -> str:
    return (
        f"{distance.kl:.3g} [{distance.kl_interval[0]:.2g}, {distance.kl_interval[1]:.2g}] | {distance.top1:.4f} | "
        f"{distance.logit:.3g} | "
        f"{distance.loss_change:+.4f} [{distance.loss_interval[0]:+.4f}, {distance.loss_interval[1]:+.4f}] | "
        f"{distance.perplexity:.3f} [{distance.perplexity_interval[0]:.2f}, {distance.perplexity_interval[1]:.2f}] | "
        f"{distance.reference_perplexity:.3f} "
        f"[{distance.reference_interval[0]:.2f}, {distance.reference_interval[1]:.2f}]"
    )


def _inline(text: str) -> str:
    """One line that Markdown does not take apart."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
