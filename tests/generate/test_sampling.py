import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from app.errors import ConfigError
from app.generate.sampling import Sampling, choose, distribution, penalise, token_logprob, uniform


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.5),
        ("repetition_penalty", 0.0),
        ("frequency_penalty", 2.5),
        ("presence_penalty", -3.0),
        ("seed", -1),
        ("max_tokens", 0),
        ("logprobs", 21),
        ("stop", ("",)),
        ("stop", "END"),
    ],
)
def test_a_value_out_of_range_names_the_option_and_the_value(name: str, value: object) -> None:
    with pytest.raises(ConfigError) as fault:
        Sampling(**{name: value})  # type: ignore[arg-type]
    assert name in fault.value.what
    assert repr(value) in fault.value.what or str(value) in fault.value.what
    assert fault.value.remedy


def test_all_values_out_of_range_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as fault:
        Sampling(temperature=-1, top_p=2, seed=-5)
    assert all(name in fault.value.what for name in ("temperature", "top_p", "seed"))


@settings(max_examples=150)
@given(
    seed=st.integers(0, 2**32),
    vocabulary=st.sampled_from([3, 50, 1500, 5000]),
    spread=st.sampled_from([0.01, 1.0, 8.0]),
    temperature=st.sampled_from([0.05, 0.7, 1.0, 3.0]),
    top_k=st.sampled_from([0, 1, 7, 1200]),
    top_p=st.sampled_from([0.1, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.9]),
)
def test_the_distribution_is_that_of_transformers(
    seed: int, vocabulary: int, spread: float, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    scores = torch.randn(vocabulary, generator=torch.Generator().manual_seed(seed)) * spread
    expected = TemperatureLogitsWarper(temperature)(None, scores.double()[None])
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    if min_p:
        expected = MinPLogitsWarper(min_p)(None, expected)
    expected = torch.softmax(expected[0], -1)
    ids, probabilities = distribution(scores, Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p))
    ours = torch.zeros(vocabulary, dtype=torch.float64).index_add_(0, ids, probabilities)
    assert ids.unique().numel() == ids.numel()
    torch.testing.assert_close(ours, expected, atol=1e-9, rtol=1e-6)


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32), penalty=st.floats(0.5, 2.0), history=st.lists(st.integers(0, 39), min_size=1))
def test_the_repetition_penalty_is_that_of_transformers(seed: int, penalty: float, history: list[int]) -> None:
    scores = torch.randn(40, generator=torch.Generator().manual_seed(seed))
    seen = torch.tensor(history)
    ours = penalise(scores, Sampling(repetition_penalty=penalty), seen, seen[:0])
    torch.testing.assert_close(ours, RepetitionPenaltyLogitsProcessor(penalty)(seen[None], scores[None].clone())[0])


def test_frequency_and_presence_penalties_count_the_answer_only() -> None:
    options = Sampling(frequency_penalty=0.5, presence_penalty=0.25)
    scores = penalise(torch.zeros(5), options, torch.tensor([4, 4, 1, 2, 2]), torch.tensor([1, 2, 2]))
    assert scores.tolist() == [0.0, -0.75, -1.25, 0.0, 0.0]


def test_draws_choose_each_token_as_often_as_its_probability() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.0, -1.0, 3.0]])
    options = Sampling(temperature=0.8, top_p=0.97)
    ids, probabilities = distribution(scores[0], options)
    draws = [(i + 0.5) / 10_000 for i in range(10_000)]
    chosen = choose(scores.expand(10_000, -1), [options] * 10_000, [None] * 10_000, draws)
    counts = torch.tensor(chosen).bincount(minlength=5).double() / 10_000
    expected = torch.zeros(5, dtype=torch.float64).index_add_(0, ids, probabilities)
    torch.testing.assert_close(counts, expected, atol=2e-4, rtol=0)


def test_a_tiny_temperature_is_greedy_and_finite() -> None:
    scores = torch.tensor([[1e4, -1e4, 1e4 - 1]])
    assert choose(scores, [Sampling(temperature=1e-6)], [None], [0.999999]) == [0]


def test_greedy_and_sampled_rows_share_a_batch() -> None:
    scores = torch.tensor([[0.0, 1.0, 0.5], [0.0, 1.0, 0.5]])
    assert choose(scores, [Sampling(), Sampling(temperature=1.0)], [None, None], [0.0, 0.0]) == [1, 0]


def test_uniform_depends_on_seed_and_index_and_is_even() -> None:
    values = [uniform(seed, index) for seed in range(40) for index in range(250)]
    assert uniform(7, 3) == uniform(7, 3)
    assert len(set(values)) == len(values)
    counts = torch.histc(torch.tensor(values), 10, 0, 1)
    # Chi-square with 9 degrees of freedom: below 27.9 in 999 of 1,000 cases, and these values are fixed.
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 27.9


def test_logprobs_are_the_models_own() -> None:
    scores = torch.tensor([1.0, 3.0, 2.0])
    found = token_logprob(scores, 0, 2)
    expected = torch.log_softmax(scores, -1).tolist()
    assert found.logprob == pytest.approx(expected[0])
    assert [(i, pytest.approx(v)) for i, v in found.top] == [(1, expected[1]), (2, expected[2])]
