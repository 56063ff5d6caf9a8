"""Every metric by hand."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.evaluate.distinct import DISTINCT
from app.evaluate.ended import ENDED
from app.evaluate.exact_match import EXACT_MATCH, normalise
from app.evaluate.forgetting import forgetting
from app.evaluate.general import GENERAL_PASSED, general_set
from app.evaluate.length_ratio import LENGTH_RATIO
from app.evaluate.metric import Metric
from app.evaluate.outcome import METRICS
from app.evaluate.perplexity import PERPLEXITY
from app.evaluate.question_use import QUESTION_USE
from app.evaluate.repetition import REPETITION
from app.evaluate.rouge import ROUGE
from app.evaluate.samples import Answered, Scored
from app.evaluate.token_accuracy import TOKEN_ACCURACY
from app.evaluate.token_f1 import TOKEN_F1, token_f1


def said(text: str, reference: str = "", *, tokens: tuple[int, ...] = (), ended: bool = True) -> Answered:
    return Answered(text=text, token_ids=tokens, ended=ended, reference=reference)


@pytest.mark.parametrize("metric", METRICS.values(), ids=list(METRICS))
def test_every_metric_states_what_it_counts(metric: Metric) -> None:
    for text in (metric.title, metric.unit, metric.denominator, metric.excludes, metric.source):
        assert len(text) >= 4
    assert re.fullmatch(r"[a-z0-9_]+", metric.name)


def test_losses() -> None:
    sample = Scored(loss=6.0, right=1, tokens=3, length=9)
    assert PERPLEXITY.part(sample) == (6.0, 3)
    assert TOKEN_ACCURACY.part(sample) == (1, 3)
    assert PERPLEXITY.part(Scored(loss=0.0, right=0, tokens=0, length=4)) is None


def test_use_of_the_question_is_what_the_right_one_saves() -> None:
    right = Scored(loss=6.0, right=1, tokens=3, length=9)
    wrong = Scored(loss=9.0, right=0, tokens=3, length=12)
    assert QUESTION_USE.part((right, wrong)) == (3.0, 3)
    assert QUESTION_USE.part((wrong, right)) == (-3.0, 3)


@pytest.mark.parametrize(
    ("answer", "reference", "match", "f1"),
    [
        ("The Eiffel Tower.", "eiffel tower", 1.0, 1.0),
        ("It is the Eiffel Tower", "Eiffel Tower", 0.0, 2 * 2 / (4 + 2)),
        ("Paris", "Rome", 0.0, 0.0),
        ("", "Rome", 0.0, 0.0),
        ("a a b b", "b b b", 0.0, 2 * 2 / (2 + 3)),  # bags; the article a goes
    ],
)
def test_squad(answer: str, reference: str, match: float, f1: float) -> None:
    assert EXACT_MATCH.part(said(answer, reference)) == (match, 1.0)
    part = TOKEN_F1.part(said(answer, reference))
    assert part is not None and part[0] == pytest.approx(f1)


def test_long_and_wordless_references_are_no_short_answers() -> None:
    for reference in ("word " * 11, "", "the", "..."):
        assert EXACT_MATCH.part(said("x", reference)) is None
        assert TOKEN_F1.part(said("x", reference)) is None


@given(st.text(max_size=40), st.text(max_size=40))
def test_token_f1_is_symmetric_and_bounded(first: str, second: str) -> None:
    assert 0 <= token_f1(first, second) == token_f1(second, first) <= 1
    if normalise(first):
        assert token_f1(first, first) == 1


def test_rouge_by_hand() -> None:
    names = [metric.name for metric in ROUGE]
    assert names == ["rouge1", "rouge2", "rouge_l", "rouge_lsum"]
    sample = said("the cat sat", "the cat sat on the mat")
    one, two, longest, by_line = (metric.part(sample) for metric in ROUGE)
    assert one == longest == by_line == (pytest.approx(2 * 1.0 * 0.5 / 1.5), 1.0)
    assert two == (pytest.approx(2 * 1.0 * 0.4 / 1.4), 1.0)
    swapped = said("sat down here\nthe cat", "the cat\nsat down here")
    _, _, longest, by_line = (metric.part(swapped) for metric in ROUGE)
    assert longest is not None and by_line is not None
    assert longest[0] == pytest.approx(0.6)
    assert by_line[0] == pytest.approx(1.0)  # lines match whatever their order
    assert ROUGE[0].part(said("x", "")) is None


def test_distinct_and_repetition() -> None:
    one, two = DISTINCT
    assert one.part(said("a b a b")) == (0.5, 1.0)
    assert two.part(said("a b a b")) == (pytest.approx(2 / 3), 1.0)
    assert two.part(said("alone")) is None
    assert REPETITION.part(said("", tokens=(1, 2, 3, 4, 5))) == (0.0, 1.0)
    assert REPETITION.part(said("", tokens=(7,) * 8)) == (pytest.approx(0.8), 1.0)
    assert REPETITION.part(said("", tokens=(1, 2, 3))) is None


def test_length_and_end() -> None:
    assert LENGTH_RATIO.part(said("one two three", "one two")) == (3.0, 2.0)
    assert LENGTH_RATIO.part(said("one", "")) is None
    assert ENDED.part(said("x", ended=False)) == (0.0, 1.0)


def test_forgetting_weighs_both_halves_alike() -> None:
    """ln 2 worse on ten long texts and no worse on three short answers: half of ln 2, whatever their tokens."""
    texts = ([(100.0, 1000)] * 10, [(100.0 + 1000 * math.log(2), 1000)] * 10)
    answers = ([(2.0, 5)] * 3, [(2.0, 5)] * 3)
    found = forgetting([texts, answers], seed=0)
    assert found.value == pytest.approx(math.sqrt(2) - 1)
    assert (found.low, found.high) == pytest.approx((found.value, found.value))
    assert found.n == 13


def test_the_general_set_passes_its_own_checks() -> None:
    known = general_set()
    assert len({each.id for each in known.instructions}) == len(known.instructions) >= 30
    assert len({each.id for each in known.passages}) == len(known.passages) >= 10
    for each in known.instructions:
        assert each.passes(each.answer), each.id
        assert not each.passes("def f(self):"), each.id
        assert GENERAL_PASSED.part(said(each.answer, each.id)) == (1.0, 1.0)


def test_an_accepted_word_is_a_word() -> None:
    sums = next(each for each in general_set().instructions if each.id == "sum")
    assert sums.passes("It is 12.")
    assert not sums.passes("It is 120.")
