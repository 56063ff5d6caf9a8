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
from app.data.judgement import Judgement
from app.data.language import SAMPLE, languages
from app.data.links import merge, same
from app.data.progress import Progress
from app.data.split import SPLITS, assign
from app.data.spool import Spool
from app.data.workers import Workers


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
    rows = Judgement(numbers, files, [name for _, name in names], findings)
    rows.find_copies()
    rows.find_near_copies(
        spool, similarity=similarity, leave_out="near-duplicate" in drop, workers=workers, progress=progress
    )
    rows.find_contradictions(leave_out="contradiction" in drop)
    rows.find_equal_lengths()

    groups, linked = np.arange(len(numbers)), rows.linked
    merge(groups, *same(numbers["unit"], rows.kept & numbers["grouped"]))
    merge(linked, groups[rows.kept], np.flatnonzero(rows.kept))
    merge(linked, *same(numbers["prompt"], rows.kept))
    result = assign(
        numbers["unit"], groups, linked, rows.kept, val_fraction=val_fraction, test_fraction=test_fraction,
        strata=numbers["label"] if stratify else None,
    )  # fmt: skip
    rows.note("leak", np.flatnonzero(result.moved))
    wanted = None if weights is None else np.array([weights[number] for number, _ in names], dtype=np.float64)[files]
    copies = rows.repeat(wanted, result.split == 0)

    sampled = _write(spool, folder, rows, result.split, copies, redact=redact, progress=progress)
    rejected = Counter(spool.refused)
    rejected.update(files[~rows.kept].tolist())
    assert sum(spool.rows.values()) == int(rows.kept.sum()) + sum(rejected.values()), "a row was lost"
    return Finished(
        numbers=numbers, files=files, file_names=names, kept=rows.kept, split=result.split, copies=copies,
        moved=int(result.moved.sum()), torn=result.torn, rows=spool.rows, rejected=rejected,
        labels=list(spool.labels), samples=sampled, languages=languages(sampled), shapes=spool.shapes,
    )  # fmt: skip


def _write(
    spool: Spool,
    folder: Path,
    rows: Judgement,
    split: NDArray[np.int8],
    copies: NDArray[np.int64],
    *,
    redact: bool,
    progress: Progress,
) -> list[str]:
    """Writes every row to its file; returns an even sample of those kept."""
    count = len(copies)
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
                    (file, number), (kind, detail) = rows.where(row), rows.reason(row)
                    written = json.loads(line)
                    spool.reject(
                        rejected_line(file=file, line=number, kind=kind, detail=detail, row=written, redact=redact)
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
