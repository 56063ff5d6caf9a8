"""The second pass: copies and near-copies found over the whole set, rows split, and written out."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.data.examine import rejected_line
from app.data.findings import Findings
from app.data.language import SAMPLE, languages
from app.data.links import contradictions, merge, near_duplicates, same
from app.data.progress import Progress
from app.data.sketch import BANDS
from app.data.split import SPLITS, assign
from app.data.spool import Spool
from app.data.workers import Workers

REASONS = ("", "duplicate", "near-duplicate", "contradiction", "unweighted")


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """What was written.

    Attributes:
        numbers: NUMBERS of all rows accepted by themselves.
        files: [N] number of each row's file; names are in ``file_names`` as (input number, name).
        kept: [N] rows that were written.
        split: [N] index into SPLITS.
        copies: [N] how often a row was written.
        moved, torn: see `Assignment`.
        rows, rejected: of each file.
        labels: the label table.
        samples: an even sample of the written lines.
        languages: language -> rows of ``samples``.
        shapes: how often each shape was met.
    """

    numbers: NDArray[Any]
    files: NDArray[np.uint16]
    file_names: Sequence[tuple[int, str]]
    kept: NDArray[np.bool_]
    split: NDArray[np.int8]
    copies: NDArray[np.int64]
    moved: int
    torn: int
    rows: Counter[int]
    rejected: Counter[int]
    labels: Sequence[str]
    samples: Sequence[str]
    languages: Counter[str]
    shapes: Counter[str]


def finish(
    spool: Spool,
    findings: Findings,
    folder: Path,
    *,
    weights: Sequence[float] | None,
    seed: int,
    val_fraction: float,
    test_fraction: float,
    stratify: bool,
    drop: frozenset[str],
    redact: bool,
    similarity: float,
    workers: Workers,
    progress: Progress,
) -> Finished:
    """Judges the spooled rows as a set and writes the splits and rejected rows into ``folder``; see `prepare`."""
    numbers, files = spool.finish()
    names = list(spool.files)
    count = len(numbers)
    reason = np.zeros(count, dtype=np.int8)
    partner = np.full(count, -1, dtype=np.int64)
    alike = np.zeros(count, dtype=np.float32)

    def where(row: int) -> tuple[str, int]:
        return names[files[row]][1], int(numbers["line"][row])

    def note(kind: str, rows: NDArray[Any], text: str) -> None:
        for row in rows.tolist():
            file, line = where(row)
            other = "{}:{}".format(*where(int(partner[row]))) if partner[row] >= 0 else ""
            findings.add(kind, file=file, line=line, detail=text.format(other=other, alike=float(alike[row])))

    first, again = same(numbers["key"])
    reason[again], partner[again] = 1, first
    note("duplicate", np.sort(again), "the same as {other}")
    among = reason == 0

    linked = np.arange(count)
    stages = near_duplicates(
        spool.sketches_path, spool.bands_path, count, threshold=similarity, among=among, workers=workers
    )
    for stage, similar in enumerate(stages, start=1):
        progress("find near-duplicates", stage, BANDS)
        near, linked = similar.partner, similar.labels
        alike[near >= 0] = similar.similarity[near >= 0]
    rows = np.flatnonzero(near >= 0)
    partner[rows] = near[rows]
    note("near-duplicate", rows, "{alike:.0%} the same as {other}")
    if "near-duplicate" in drop:
        reason[rows] = 2
        among &= reason == 0

    opposed = contradictions(numbers["prompt"], numbers["answer"], among)
    rows = np.flatnonzero(opposed >= 0)
    before = partner[rows].copy()
    partner[rows] = opposed[rows]
    note("contradiction", rows, "answered otherwise in {other}")
    if "contradiction" in drop:
        reason[rows] = 3
        among &= reason == 0
    else:
        partner[rows] = before
    _note_equal_lengths(numbers, among, where, findings)

    groups = np.arange(count)
    merge(groups, *same(numbers["unit"], among & numbers["grouped"]))
    merge(linked, groups[among], np.flatnonzero(among))
    merge(linked, *same(numbers["prompt"], among))
    result = assign(
        numbers["unit"], groups, linked, among, val_fraction=val_fraction, test_fraction=test_fraction,
        strata=numbers["label"] if stratify else None,
    )  # fmt: skip
    note("leak", np.flatnonzero(result.moved), "follows the rows it resembles")

    copies = among.astype(np.int64)
    if weights is not None:
        wanted = np.array([weights[number] for number, _ in names], dtype=np.float64)[files]
        chance = numbers["key"].astype(np.float64) / 2.0**64
        repeats = (np.floor(wanted) + (chance < wanted % 1)).astype(np.int64)
        copies = np.where(among & (result.split == 0), repeats, copies)
        left_out = among & (copies == 0)
        reason[left_out] = 4
        note("unweighted", np.flatnonzero(left_out), "left out: its input's weight is below 1")
    kept = copies > 0

    sampled = _write(
        spool, folder, numbers, reason, partner, alike, result.split, copies, where, redact=redact, progress=progress
    )
    rejected = Counter(spool.refused)
    rejected.update(files[~kept].tolist())
    assert sum(spool.rows.values()) == int(kept.sum()) + sum(rejected.values()), "a row was lost"
    return Finished(
        numbers=numbers, files=files, file_names=names, kept=kept, split=result.split, copies=copies,
        moved=int(result.moved.sum()), torn=result.torn, rows=spool.rows, rejected=rejected,
        labels=list(spool.labels), samples=sampled, languages=languages(sampled), shapes=spool.shapes,
    )  # fmt: skip


def _note_equal_lengths(numbers: NDArray[Any], among: NDArray[np.bool_], where: Any, findings: Findings) -> None:
    """A limit in the export shows as many answers of exactly the greatest length."""
    if not among.any():
        return
    lengths = numbers["answer_chars"]
    longest = int(lengths[among].max())
    rows = np.flatnonzero(among & (lengths == longest))
    if longest < 100 or len(rows) < max(5, 0.01 * among.sum()):
        return
    for row in rows.tolist():
        file, line = where(row)
        detail = f"{longest} characters, exactly as {len(rows) - 1} others, and none is longer"
        findings.add("same-length", file=file, line=line, detail=detail)


def _write(
    spool: Spool,
    folder: Path,
    numbers: NDArray[Any],
    reason: NDArray[np.int8],
    partner: NDArray[np.int64],
    alike: NDArray[np.float32],
    split: NDArray[np.int8],
    copies: NDArray[np.int64],
    where: Any,
    *,
    redact: bool,
    progress: Progress,
) -> list[str]:
    """Writes every row to its file; returns an even sample of those kept."""
    count = len(numbers)
    every = max(1, int((copies > 0).sum()) // SAMPLE)
    sampled: list[str] = []
    outputs = [(folder / f"{name}.jsonl").open("wb") for name in SPLITS]
    try:
        with spool.records_path.open("rb") as records:
            seen = 0
            for row, (line, times, to) in enumerate(zip(records, copies.tolist(), split.tolist(), strict=True)):
                if times:
                    outputs[to].write(line * times)
                    seen += 1
                    if seen % every == 0 and len(sampled) < SAMPLE:
                        sampled.append(line.decode())
                else:
                    kind = REASONS[reason[row]]
                    file, number = where(row)
                    detail = "left out: its input's weight is below 1"
                    if partner[row] >= 0 and kind != "unweighted":
                        verb = {"duplicate": "the same as", "contradiction": "answered otherwise in"}
                        share = f"{alike[row]:.0%} the same as"
                        detail = "{} {}:{}".format(verb.get(kind, share), *where(int(partner[row])))
                    spool.reject(
                        rejected_line(
                            file=file, line=number, kind=kind, detail=detail, row=json.loads(line), redact=redact
                        )
                    )
                if row % 10_000 == 0:
                    progress("write", row, count)
        progress("write", count, count)
    finally:
        for output in outputs:
            output.close()
    spool.close()
    spool.rejected_path.rename(folder / "rejected.jsonl")
    return sampled
