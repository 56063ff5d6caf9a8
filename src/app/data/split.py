"""Which split a sample belongs to: a seeded hash of its group, so that adding rows moves none of the old ones."""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "val", "test")
LARGEST_COMPONENT = 0.1
"""Share of the set that rows linked by likeness may make up. A larger one (every row follows one pattern) cannot be
kept on one side without emptying the others: it is split by its groups alone, and the report says so."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """The splits of rows 0 … N-1.

    Attributes:
        split: [N] index into SPLITS.
        moved: [N] the row's own hash says otherwise: it follows the rows it is linked to.
        torn: rows linked by likeness that were separated after all (see LARGEST_COMPONENT).
    """

    split: NDArray[np.int8]
    moved: NDArray[np.bool_]
    torn: int


def position(key: str, *, seed: int) -> float:
    """Where a key lies in [0, 1): uniform over keys, the same on every machine (first 53 bits of BLAKE2b)."""
    digest = hashlib.blake2b(f"{seed}\0{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return float((int.from_bytes(digest, "big") >> 11) / 2**53)


def assign(
    positions: NDArray[np.float64],
    groups: NDArray[np.int64],
    linked: NDArray[np.int64],
    among: NDArray[np.bool_],
    *,
    val_fraction: float,
    test_fraction: float,
    strata: NDArray[np.int32] | None = None,
) -> Assignment:
    """Splits rows by component; the component's first row decides for all of it.

    The lowest positions are test, the next val, the rest train. Rows appended later come after the old ones and follow
    them, so an old row moves only if a new one links two components that were apart.

    Args:
        positions: [N] where each row's group lies in [0, 1).
        groups: [N] components that must never be cut (groups).
        linked: [N] components that should not be cut (groups, likeness, the same question).
        among: [N] the rows to split; the others get train.
        val_fraction, test_fraction: shares of the rows.
        strata: [N] class of each row: shares then hold in each class exactly, by rank instead of by value; adding rows
            can move those at the border.
    """
    count = max(1, int(among.sum()))
    labels = linked
    sizes = np.bincount(linked[among], minlength=len(linked))
    parts = np.unique(np.stack([linked[among], groups[among]]), axis=1)  # a component that is one group stays whole
    too_large = (sizes > max(10, LARGEST_COMPONENT * count)) & (np.bincount(parts[0], minlength=len(linked)) > 1)
    torn = int(sizes[too_large].sum())
    if torn:
        labels = np.where(too_large[linked], groups, linked)
    roots = np.unique(labels[among])
    at = positions[roots]
    split = np.full(len(positions), 0, dtype=np.int8)
    chosen = np.zeros(len(positions), dtype=np.int8)
    filled = np.zeros(len(positions), dtype=np.bool_)
    if strata is None:
        chosen[roots] = _by_value(at, val_fraction, test_fraction)
        filled[_fill_empty(chosen, roots, at, val_fraction, test_fraction)] = True
    else:
        weights = np.bincount(labels[among], minlength=len(labels))[roots]
        for stratum in np.unique(strata[roots]):
            inside = strata[roots] == stratum
            chosen[roots[inside]] = _by_rank(at[inside], weights[inside], val_fraction, test_fraction)
    split[among] = chosen[labels[among]]
    own = _by_value(positions, val_fraction, test_fraction)
    moved = among & (own != split) & (labels != np.arange(len(labels))) & ~filled[labels] & (strata is None)
    return Assignment(split=split, moved=moved, torn=torn)


def _by_value(at: NDArray[np.float64], val_fraction: float, test_fraction: float) -> NDArray[np.int8]:
    return np.select([at < test_fraction, at < test_fraction + val_fraction], [2, 1], 0).astype(np.int8)


def _by_rank(
    at: NDArray[np.float64], weights: NDArray[np.int64], val_fraction: float, test_fraction: float
) -> NDArray[np.int8]:
    order = np.argsort(at, kind="stable")
    before = np.cumsum(weights[order]) - weights[order] / 2
    chosen = np.empty(len(at), dtype=np.int8)
    chosen[order] = _by_value(before / weights.sum(), val_fraction, test_fraction)
    return chosen


def _fill_empty(
    chosen: NDArray[np.int8], roots: NDArray[np.int64], at: NDArray[np.float64], val: float, test: float
) -> list[np.int64]:
    """Gives a split that chance left empty the component nearest to its range, if train keeps one; returns these."""
    given = []
    order = roots[np.argsort(at, kind="stable")]
    for number, wanted in ((2, test), (1, val)):
        if wanted > 0 and not (chosen[roots] == number).any():
            candidates = order[chosen[order] == 0]
            if len(candidates) > 1:
                chosen[candidates[0]] = number
                given.append(candidates[0])
    return given
