"""Which rows belong together: near-duplicates, the same question, the same group; over the whole set at once.

Rows are numbers 0 … N-1 in input order. A labelling [N] gives each row the lowest number of its component.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.data.sketch import BANDS, PERMUTATIONS
from app.data.workers import Workers

Numbers = NDArray[np.int64]
_CHUNK = 65_536


@dataclass(frozen=True, kw_only=True, slots=True)
class Similar:
    """Near-duplicates.

    Attributes:
        labels: [N] components of rows linked by similarity.
        partner: [N] an earlier row this one is nearly the same as, or -1.
        similarity: [N] of the two, estimated.
    """

    labels: Numbers
    partner: NDArray[np.int32]
    similarity: NDArray[np.float32]


def merge(labels: Numbers, one: Numbers, other: Numbers) -> None:
    """Joins the components of each pair, in place (hook the higher root below the lower, then compress paths)."""
    while len(one):
        first, second = labels[one], labels[other]
        apart = first != second
        if not apart.any():
            return
        one, other, first, second = one[apart], other[apart], first[apart], second[apart]
        np.minimum.at(labels, np.maximum(first, second), np.minimum(first, second))
        while True:
            above = labels[labels]
            if np.array_equal(above, labels):
                break
            labels[:] = above


def same(values: NDArray[np.generic], among: NDArray[np.bool_] | None = None) -> tuple[Numbers, Numbers]:
    """Pairs (first row with a value, later row with it), of the rows ``among``."""
    rows = np.arange(len(values)) if among is None else np.flatnonzero(among)
    order = rows[np.argsort(values[rows], kind="stable")]
    ordered = values[order]
    starts = np.ones(len(order), dtype=bool)
    starts[1:] = ordered[1:] != ordered[:-1]
    first = order[np.maximum.accumulate(np.where(starts, np.arange(len(order)), 0))]
    return first[~starts], order[~starts]


def near_duplicates(
    sketches: Path, bands: Path, count: int, *, threshold: float, among: NDArray[np.bool_], workers: Workers
) -> Iterator[Similar]:
    """Finds rows whose texts share at least ``threshold`` of their words and word pairs (Jaccard, estimated).

    Yields its state after each band, for a progress bar; the last one is the result. Workers sort the next bands and
    compare sketches; pairs are joined here, in order, so that their number changes nothing. Only a few bands' pairs
    and the sketches of those being compared are in memory.

    Args:
        sketches: file of [count, PERMUTATIONS] uint32.
        bands: folder of one file of [count] uint64 a band.
        count: of rows.
        threshold: between 0 and 1.
        among: [count] rows to compare (those that are no exact duplicates).
        workers: to compare in.
    """
    labels = np.arange(count)
    partner = np.full(count, -1, dtype=np.int32)
    similarity = np.zeros(count, dtype=np.float32)
    files = [bands / str(band) for band in range(BANDS)]
    for first, other in workers.map(partial(_candidates, among=among), files):
        apart = labels[first] != labels[other]
        first, other = first[apart], other[apart]
        pairs = [(first[at : at + _CHUNK], other[at : at + _CHUNK]) for at in range(0, len(first), _CHUNK)]
        for (one, two), shared in zip(pairs, workers.map(partial(_shared, sketches), pairs), strict=True):
            alike = shared >= threshold
            one, two, shared = one[alike], two[alike], shared[alike]
            new = partner[two] < 0
            partner[two[new]], similarity[two[new]] = one[new], shared[new]
            merge(labels, one, two)
        yield Similar(labels=labels, partner=partner, similarity=similarity)


def _candidates(band: Path, among: NDArray[np.bool_]) -> tuple[Numbers, Numbers]:
    """Pairs with an equal hash: each row with the first of them and with the one before it, the lower row first."""
    first, other = same(np.fromfile(band, dtype=np.uint64), among)
    before = np.empty_like(first)
    if len(first):
        before[1:] = other[:-1]
        starts = np.ones(len(first), dtype=bool)
        starts[1:] = first[1:] != first[:-1]
        before[starts] = first[starts]
    chained = before != first
    return np.concatenate([first, before[chained]]), np.concatenate([other, other[chained]])


def _shared(sketches: Path, pairs: tuple[Numbers, Numbers]) -> NDArray[np.float32]:
    """Share of equal places in the sketches of each pair."""
    with sketches.open("rb") as file:
        one, other = (_read(file, rows) for rows in pairs)
    shares: NDArray[np.float32] = (one == other).mean(axis=1, dtype=np.float32)
    return shares


def _read(file: object, rows: Numbers) -> NDArray[np.uint32]:
    """Sketches of some rows, in the order asked for.

    Read, not mapped: pages of a mapped file would count as this process's memory.
    """
    wanted, back = np.unique(rows, return_inverse=True)
    out = np.empty((len(wanted), PERMUTATIONS), dtype=np.uint32)
    width = PERMUTATIONS * 4
    # Neighbouring rows in one read: candidates of appended copies lie close together.
    breaks = np.flatnonzero(np.diff(wanted) > 16) + 1
    at = 0
    for run in np.split(wanted, breaks):
        file.seek(int(run[0]) * width)  # type: ignore[attr-defined]
        block = file.read((int(run[-1]) - int(run[0]) + 1) * width)  # type: ignore[attr-defined]
        whole = np.frombuffer(block, dtype=np.uint32).reshape(-1, PERMUTATIONS)
        out[at : at + len(run)] = whole[run - run[0]]
        at += len(run)
    return out[back]


def contradictions(prompts: NDArray[np.uint64], answers: NDArray[np.uint64], among: NDArray[np.bool_]) -> Numbers:
    """For each row an earlier one that asks the same and is answered otherwise, or -1."""
    partner = np.full(len(prompts), -1, dtype=np.int64)
    first, other = same(prompts, among)
    differs = answers[first] != answers[other]
    partner[other[differs]] = first[differs]
    return partner
