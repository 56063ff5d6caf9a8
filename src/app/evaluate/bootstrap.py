"""How sure a figure is: bootstrap intervals, paired tests, and the correction for many of them.

What is resampled is the *group* (a document, a module: what a split keeps together), because rows of one group are
alike and would make every interval too narrow if they were taken for independent. Where each row is its own group
this is the ordinary bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 6 and 13).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from app.evaluate.metric import Metric, Part, as_sums

RESAMPLES = 10_000
CONFIDENCE = 0.95
# Elements of a chunk of resamples worked on at a time: 16 MB of float64.
_CHUNK = 2_000_000


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A metric's value for one model.

    Attributes:
        value: None where no sample was counted.
        low, high: percentile bootstrap interval of 95 %; None for fewer than two groups.
        n: samples counted.
        groups: groups they are from, which were resampled.
        excluded: samples the metric leaves out.
        denominator: the sum below the line.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    groups: int
    excluded: int
    denominator: float


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Two models on the same samples: second minus first.

    Attributes:
        difference: of the metric's values.
        low, high: paired percentile bootstrap interval of 95 %.
        p: two-sided; 1 where the models answer alike.
        test: "bootstrap" (paired, over groups) or "McNemar" (exact binomial, binary metrics of independent rows).
        n: samples counted for both.
        groups: groups they are from.
    """

    difference: float
    low: float
    high: float
    p: float
    test: str
    n: int
    groups: int


def estimate(metric: Metric, parts: Sequence[Part], groups: Sequence[str], *, seed: int) -> Estimate:
    """The metric over all samples with its interval.

    Args:
        metric: which one.
        parts: what each sample adds.
        groups: of each sample.
        seed: of the resampling.
    """
    sums = as_sums(parts)
    counted = [group for group, part in zip(groups, parts, strict=True) if part is not None]
    value = float(metric.value(sums.sum(axis=0)))
    distinct = len(set(counted))
    low = high = None
    if distinct > 1:
        low, high = interval(metric.value(resample(sums, groups, seed=seed))) or (None, None)
    return Estimate(
        value=value if math.isfinite(value) else None,
        low=low,
        high=high,
        n=len(counted),
        groups=distinct,
        excluded=len(parts) - len(counted),
        denominator=float(sums[:, 1].sum()),
    )


def compare(
    metric: Metric, first: Sequence[Part], second: Sequence[Part], groups: Sequence[str], *, seed: int
) -> Difference | None:
    """Is the second model different from the first? None where fewer than two groups were counted for both, or where a
    loss is not a finite number.

    Args:
        metric: which one.
        first, second: what each sample adds, in the same order.
        groups: of each sample.
        seed: of the resampling.
    """
    pairs = [(a, b, g) for a, b, g in zip(first, second, groups, strict=True) if a is not None and b is not None]
    names = [group for _, _, group in pairs]
    distinct = len(set(names))
    if distinct < 2:
        return None
    before, after = as_sums([a for a, _, _ in pairs]), as_sums([b for _, b, _ in pairs])
    both = resample(np.concatenate([before, after], axis=1), names, seed=seed)  # [R, 4]
    differences = metric.value(both[:, 2:]) - metric.value(both[:, :2])
    between = interval(differences)
    if between is None:
        return None
    low, high = between
    independent = distinct == len(pairs)
    if metric.binary and independent:
        won = int(((after[:, 0] == 1) & (before[:, 0] == 0)).sum())
        lost = int(((after[:, 0] == 0) & (before[:, 0] == 1)).sum())
        p, test = mcnemar(won, lost), "McNemar"
    else:
        # Resamples of few groups vary too little: with two of them half of all differences by chance had p < 0.003. No
        # test can say more than that all groups agree, which signs drawn at random do once in 2 ** (groups - 1).
        p, test = max(two_sided(differences), 2.0 ** (1 - distinct)), "bootstrap"
    return Difference(
        difference=float(metric.value(after.sum(axis=0)) - metric.value(before.sum(axis=0))),
        low=low,
        high=high,
        p=p,
        test=test,
        n=len(pairs),
        groups=distinct,
    )


def resample(
    columns: NDArray[np.float64], groups: Sequence[str], *, seed: int, resamples: int = RESAMPLES
) -> NDArray[np.float64]:
    """Sums of the columns over groups drawn with replacement. # [N, C] -> [R, C]"""
    names = {name: index for index, name in enumerate(dict.fromkeys(groups))}
    sums = np.zeros((len(names), columns.shape[1]))
    np.add.at(sums, [names[group] for group in groups], columns)  # [G, C]
    drawn = _draws(len(names), seed, resamples)
    step = max(1, _CHUNK // len(names))
    return np.concatenate(
        [drawn[start : start + step].astype(np.float64) @ sums for start in range(0, resamples, step)]
    )


@lru_cache(maxsize=2)
def _draws(size: int, seed: int, resamples: int) -> NDArray[np.uint8]:
    """How often each of ``size`` groups comes in each resample; the same ones serve all metrics of the same rows.

    Counts are spread as Poisson's with mean 1: a byte is enough. # [R, G]
    """
    generator = np.random.default_rng(seed)
    counts = np.empty((resamples, size), dtype=np.uint8)
    step = max(1, _CHUNK // size)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = generator.integers(0, size, (rows, size)) + size * np.arange(rows)[:, None]
        counts[start : start + rows] = np.bincount(drawn.ravel(), minlength=rows * size).reshape(rows, size)
    return counts


def interval(values: NDArray[np.float64]) -> tuple[float, float] | None:
    """Percentile interval; resamples in which nothing was counted are passed over. None where no value is finite."""
    tail, finite = (1 - CONFIDENCE) / 2, values[np.isfinite(values)]
    if not len(finite):
        return None
    low, high = np.quantile(finite, [tail, 1 - tail])
    return float(low), float(high)


def two_sided(differences: NDArray[np.float64]) -> float:
    """Twice the smaller share of resampled differences on one side of zero, zero included on both sides.

    One is added above and below (Davison and Hinkley, Bootstrap Methods, 1997, section 4.2), so p is never 0.
    """
    finite = differences[np.isfinite(differences)]
    sides = min(int((finite <= 0).sum()), int((finite >= 0).sum()))
    return min(1.0, 2 * (sides + 1) / (len(finite) + 1))


def mcnemar(won: int, lost: int) -> float:
    """Exact two-sided p of McNemar's test: under no difference ``won`` is binomial(won + lost, 1/2)."""
    total = won + lost
    # In whole numbers: 2**-total is 0 in floats from 1,075 pairs on.
    tail = sum(math.comb(total, k) for k in range(min(won, lost) + 1))
    return min(1.0, 2 * tail / (1 << total))


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected for their number by Holm's method (1979): the chance of one false finding among all."""
    order = sorted(range(len(values)), key=values.__getitem__)
    corrected, highest = [0.0] * len(values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[index]))
        corrected[index] = highest
    return corrected
