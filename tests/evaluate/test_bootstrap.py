"""Intervals, paired tests and their correction, against values known from elsewhere."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.evaluate.bootstrap import compare, estimate, holm, mcnemar, resample
from app.evaluate.ended import ENDED
from app.evaluate.length_ratio import LENGTH_RATIO
from app.evaluate.metric import Part
from app.evaluate.perplexity import PERPLEXITY


def singles(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def test_interval_of_a_mean_is_the_normal_one() -> None:
    values = np.random.default_rng(1).normal(5, 2, size=400)
    found = estimate(LENGTH_RATIO, [(value, 1.0) for value in values], singles(400), seed=3)
    error = values.std() / math.sqrt(400)
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(
        (values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.03
    )
    assert (found.n, found.groups, found.excluded, found.denominator) == (400, 400, 0, 400)


def test_perplexity_weighs_tokens_and_not_rows() -> None:
    found = estimate(PERPLEXITY, [(10.0, 10), (0.0, 90)], singles(2), seed=0)
    assert found.value == pytest.approx(math.exp(0.1))
    assert found.low == 1.0  # the second row twice
    assert found.high == pytest.approx(math.e)  # the first row twice


def test_rows_of_a_group_are_drawn_together() -> None:
    """Ten copies of each row are no more evidence than one."""
    values = np.random.default_rng(2).normal(0, 1, size=30)
    alone = estimate(LENGTH_RATIO, [(value, 1.0) for value in values], singles(30), seed=5)
    copies = [(value, 1.0) for value in values for _ in range(10)]
    grouped = estimate(LENGTH_RATIO, copies, [str(n) for n in range(30) for _ in range(10)], seed=5)
    assert (grouped.low, grouped.high) == pytest.approx((alone.low, alone.high))
    assert (grouped.n, grouped.groups) == (300, 30)


def test_samples_left_out_count_nowhere() -> None:
    parts: list[Part] = [(1.0, 1.0), None, (0.0, 1.0), None]
    found = estimate(ENDED, parts, singles(4), seed=0)
    assert (found.value, found.n, found.excluded, found.denominator) == (0.5, 2, 2, 2)
    nothing = estimate(ENDED, [None, None], singles(2), seed=0)
    assert (nothing.value, nothing.low, nothing.n) == (None, None, 0)


@pytest.mark.parametrize("groups", [2, 3, 5, 8])
def test_few_groups_prove_little(groups: int) -> None:
    """However large the difference: that all groups agree happens by chance once in 2 ** (groups - 1)."""
    before: list[Part] = [(20.0 + number, 10.0) for number in range(groups)]
    after: list[Part] = [(10.0 + number, 10.0) for number in range(groups)]
    found = compare(PERPLEXITY, before, after, singles(groups), seed=0)
    assert found is not None and found.p == 2.0 ** (1 - groups)


def test_no_finite_number_has_no_interval() -> None:
    broken: list[Part] = [(math.nan, 10.0)] * 3
    found = estimate(PERPLEXITY, broken, singles(3), seed=0)
    assert (found.value, found.low, found.high) == (None, None, None)
    assert compare(PERPLEXITY, [(1.0, 10.0)] * 3, broken, singles(3), seed=0) is None


def test_the_same_twice_is_no_difference() -> None:
    parts: list[Part] = [(float(number), 3.0) for number in range(50)]
    found = compare(PERPLEXITY, parts, parts, singles(50), seed=1)
    assert found is not None
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_p_is_right_under_no_difference_and_small_under_one() -> None:
    """Of two hundred comparisons of noise with noise about one in twenty is below 0.05."""
    generator = np.random.default_rng(7)
    values = []
    for _ in range(200):
        both = generator.normal(size=(2, 60))
        first, second = ([(value, 1.0) for value in side] for side in both)
        found = compare(LENGTH_RATIO, first, second, singles(60), seed=7)
        assert found is not None
        values.append(found.p)
    assert 0.01 <= np.mean(np.array(values) < 0.05) <= 0.10
    better = compare(LENGTH_RATIO, first, [(value + 1, 1.0) for value, _ in first], singles(60), seed=0)
    assert better is not None and better.p < 0.001 and better.low == pytest.approx(1)


def test_pairing_counts() -> None:
    """A small gain on every row is found although rows differ a hundred times more among themselves."""
    values = np.random.default_rng(3).normal(0, 100, size=40)
    found = compare(LENGTH_RATIO, [(v, 1.0) for v in values], [(v + 0.5, 1.0) for v in values], singles(40), seed=0)
    assert found is not None and found.p < 0.001


@pytest.mark.parametrize(
    ("won", "lost", "p"),
    # Exact two-sided binomial probabilities, as R's binom.test(won, won + lost) gives them.
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 0.0625), (9, 1, 0.02148438), (10, 10, 1.0), (15, 5, 0.04138947)],
)
def test_mcnemar_is_the_exact_binomial(won: int, lost: int, p: float) -> None:
    assert mcnemar(won, lost) == pytest.approx(p, rel=1e-5)
    assert mcnemar(lost, won) == mcnemar(won, lost)


def test_mcnemar_of_thousands_does_not_overflow() -> None:
    assert mcnemar(3000, 2000) < 1e-40


def test_binary_metrics_of_independent_rows_get_mcnemar_and_grouped_ones_do_not() -> None:
    before: list[Part] = [(0.0, 1.0)] * 9 + [(1.0, 1.0)]
    after: list[Part] = [(1.0, 1.0)] * 9 + [(0.0, 1.0)]
    alone = compare(ENDED, before, after, singles(10), seed=0)
    grouped = compare(ENDED, before, after, [str(number // 2) for number in range(10)], seed=0)
    assert alone is not None and grouped is not None
    assert (alone.test, alone.p) == ("McNemar", pytest.approx(0.02148438))
    assert (grouped.test, grouped.groups) == ("bootstrap", 5)


def test_holm_by_hand() -> None:
    """The example of Holm's step-down: 0.01 x 4, 0.02 x 3, 0.03 x 2, and never falling."""
    assert holm([0.03, 0.01, 0.9, 0.02]) == pytest.approx([0.06, 0.04, 0.9, 0.06])
    assert holm([]) == []


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=12))
def test_holm_lies_between_nothing_and_bonferroni(values: list[float]) -> None:
    for p, corrected in zip(values, holm(values), strict=True):
        assert p <= corrected <= min(1.0, p * len(values)) + 1e-12


@settings(max_examples=20)
@given(st.integers(1, 40), st.integers(0, 10**6))
def test_resampling_is_fixed_by_its_seed_and_draws_as_many_as_there_are(size: int, seed: int) -> None:
    ones = np.ones((size, 1))
    drawn = resample(ones, singles(size), seed=seed, resamples=50)
    assert (drawn == size).all()
    column = np.arange(size, dtype=float)[:, None]
    assert (
        resample(column, singles(size), seed=seed, resamples=50)
        == resample(column, singles(size), seed=seed, resamples=50)
    ).all()
