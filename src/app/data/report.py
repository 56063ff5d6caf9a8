"""report.json: what was read, found and written; and whether the data is fit for training."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app import __version__
from app.data.findings import Findings
from app.data.finish import Finished
from app.data.packing import best_fit_decreasing, efficiency
from app.data.sources import Source
from app.data.split import SPLITS

LENGTHS = (512, 1024, 2048, 4096)
PACKED = 100_000
"""Samples that packing is tried on: with more, rows only get fuller."""
FEW = 1000
"""Samples below which fine-tuning tends to learn form but not content: a warning."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """The report as JSON, and an even sample of the prepared lines."""

    value: dict[str, Any]
    samples: Sequence[str]

    def write(self, folder: Path) -> None:
        """Writes report.json and report.html."""
        from app.data.page import page

        (folder / "report.json").write_text(json.dumps(self.value, indent=2, ensure_ascii=False) + "\n", "utf-8")
        (folder / "report.html").write_text(page(self.value), "utf-8")


def summarise(
    done: Finished,
    findings: Findings,
    *,
    sources: Sequence[Source],
    inputs: Sequence[str],
    weights: Sequence[float] | None,
    seed: int,
    val_fraction: float,
    test_fraction: float,
    stratify: bool,
    dropped: frozenset[str],
    redacted: bool,
    similarity: float,
    family: str | None,
) -> Report:
    """All figures of the report."""
    tokens = done.numbers["tokens"]
    rows, kept = sum(done.rows.values()), int(done.kept.sum())
    rejected = sum(done.rejected.values())
    splits = {name: _split(done, number) for number, name in enumerate(SPLITS)}
    value: dict[str, Any] = {
        "app_version": __version__,
        "counts": {"rows_in": rows, "rows_kept": kept, "rows_rejected": rejected},
        "splits": splits,
        "split_rule": {
            "seed": seed, "val_fraction": val_fraction, "test_fraction": test_fraction, "stratified": stratify,
            "stable": not stratify, "rows_moved": done.moved, "rows_torn": done.torn,
            "text": _rule(stratify=stratify, similarity=similarity),
        },
        "sources": _sources(done, sources, inputs, weights),
        "shapes": dict(done.shapes.most_common()),
        "tokens": {
            "counted": "with the tokenizer, rendered as " + family if family else "estimated from characters",
            "all": _lengths(tokens[done.kept]),
            "histogram": _histogram(tokens[done.kept]),
            "over": {str(limit): int((tokens[done.kept] > limit).sum()) for limit in LENGTHS},
            "packed": {str(limit): _packed(tokens[done.kept], limit) for limit in LENGTHS},
        },
        "languages": {"sample": sum(done.languages.values()), "rows": dict(done.languages.most_common())},
        "labels": _labels(done),
        "redacted": redacted,
        "findings": findings.to_json(dropped=dropped),
    }  # fmt: skip
    value["advice"] = _advice(value)
    faults = [a["text"] for a in value["advice"] if a["level"] == "error"]
    value["fit"] = not faults
    return Report(value=value, samples=done.samples)


def _split(done: Finished, number: int) -> dict[str, int]:
    inside = done.kept & (done.split == number)
    copies = done.copies[inside]
    return {
        "rows": int(inside.sum()),
        "samples": int(copies.sum()),
        "tokens": int((done.numbers["tokens"][inside] * copies).sum()),
    }


def _rule(*, stratify: bool, similarity: float) -> str:
    rule = (
        "A seeded hash of each row's group (or of its text, where there is no group column) decides its split. Rows of "
        f"one group, with the same question, or at least {similarity:.0%} alike go to one side: where the first of "
        "them, in the order of the input, belongs. "
    )
    if stratify:
        return rule + "Shares hold in each class by rank, so added rows can move old ones at the border."
    return rule + "Rows appended later move no old row, unless they link two that were apart."


def _sources(
    done: Finished, sources: Sequence[Source], inputs: Sequence[str], weights: Sequence[float] | None
) -> list[dict[str, Any]]:
    numbers = {key: number for number, key in enumerate(done.file_names)}
    total = max(1, int(done.copies[done.split == 0].sum()))
    values = []
    for source in sources:
        number = numbers.get((source.number, source.name), -1)
        mine = done.files == number
        train = int(done.copies[mine & (done.split == 0)].sum())
        values.append(
            {
                "input": inputs[source.number], "file": source.name, "found": list(source.notes),
                "weight": weights[source.number] if weights else 1.0, "rows": done.rows[number],
                "kept": int(done.kept[mine].sum()), "rejected": done.rejected[number], "train_samples": train,
                "train_share": round(train / total, 4),
            }
        )  # fmt: skip
    return values


def _lengths(tokens: NDArray[np.int32]) -> dict[str, float]:
    if not len(tokens):
        return {}
    marks = {"median": 50, "p90": 90, "p99": 99}
    return {
        "sum": int(tokens.sum(dtype=np.int64)),
        "mean": round(float(tokens.mean()), 1),
        **{name: float(np.percentile(tokens, mark)) for name, mark in marks.items()},
        "max": int(tokens.max()),
    }


def _packed(tokens: NDArray[np.int32], limit: int) -> float:
    """How full rows of ``limit`` tokens are when samples that fit are packed, of at most PACKED of them."""
    fitting = tokens[tokens <= limit][:PACKED].tolist()
    return round(efficiency(fitting, best_fit_decreasing(fitting, limit), limit), 4)


def _histogram(tokens: NDArray[np.int32]) -> dict[str, list[int]]:
    """Rows by length, in about 30 equal bins up to the 99th percentile and one for the rest."""
    if not len(tokens):
        return {"edges": [], "rows": []}
    top = max(8, int(np.percentile(tokens, 99)))
    step = max(1, -(-top // 30))
    edges = np.arange(0, top + step, step)
    rows, _ = np.histogram(np.minimum(tokens, edges[-1] - 1), bins=edges)
    rest = int((tokens >= edges[-1]).sum())
    rows[-1] -= rest
    return {"edges": [int(e) for e in edges], "rows": [int(r) for r in rows], "longer": [rest]}


def _labels(done: Finished) -> dict[str, int]:
    codes = done.numbers["label"][done.kept]
    counts = np.bincount(codes[codes >= 0], minlength=len(done.labels))
    order = np.argsort(-counts, kind="stable")
    return {done.labels[int(code)]: int(counts[code]) for code in order}


def _advice(value: dict[str, Any]) -> list[dict[str, str]]:
    """Judgements on the whole set: errors make the data unfit (``--check`` exits 1), warnings do not."""
    advice: list[dict[str, str]] = []

    def say(level: str, text: str, remedy: str) -> None:
        advice.append({"level": level, "text": text, "remedy": remedy})

    counts, splits = value["counts"], value["splits"]
    if not counts["rows_kept"]:
        say("error", f"none of {counts['rows_in']:,} rows can be used", "see the reasons in rejected.jsonl")
    elif counts["rows_rejected"]:
        text = f"{counts['rows_rejected']:,} of {counts['rows_in']:,} rows are rejected"
        say("error", text, "correct them at the source, or train on the rest: they are set aside in rejected.jsonl")
    for name, fraction in (("val", "val_fraction"), ("test", "test_fraction")):
        if counts["rows_kept"] and value["split_rule"][fraction] > 0 and not splits[name]["rows"]:
            say("error", f"the {name} split is empty", "add rows of other groups, or raise its fraction")
    if counts["rows_kept"] and not splits["train"]["samples"]:
        say("error", "the train split is empty", "lower the other splits' fractions, or add rows of other groups")
    if value["split_rule"]["rows_torn"]:
        text = f"{value['split_rule']['rows_torn']:,} rows are so alike that keeping them on one side is impossible"
        say("warning", text, "validation will look better than it is: drop near-duplicates, or give a group column")
    for source in value["sources"]:
        if source["rows"] and not source["kept"]:
            say("error", f"nothing of {source['file']} is left", "see rejected.jsonl for the reasons")
        elif len(value["sources"]) > 1 and source["train_share"] < 0.05:
            text = f"{source['file']} is {source['train_share']:.1%} of the training samples"
            say("warning", text, "raise its weight if it is what the model should learn: --weights")
    if 0 < counts["rows_kept"] < FEW:
        text = f"{counts['rows_kept']:,} samples: fewer than {FEW:,}"
        say("warning", text, "expect the form to be learnt, not the content; collect more, or mix in a general set")
    known = {k: v for k, v in value["languages"]["rows"].items() if k != "unknown"}
    if len(known) > 1 and sum(known.values()) >= 50:
        main, rows = next(iter(known.items()))
        share = 1 - rows / sum(known.values())
        if share > 0.1:
            say("warning", f"{share:.0%} of the rows are not in the main language ({main})", "check that this is meant")
    labels = list(value["labels"].values())
    if len(labels) > 1 and labels[0] > 10 * max(1, labels[-1]):
        text = f"classes are uneven: {labels[0]:,} rows of the largest, {labels[-1]:,} of the smallest"
        say("warning", text, "add rows of the small classes, and use --stratify")
    return advice
