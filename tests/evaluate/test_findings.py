"""What a report says of its figures."""

from dataclasses import replace

import pytest

from app.evaluate.bootstrap import Difference, Estimate
from app.evaluate.findings import findings, headline, p_text
from app.evaluate.outcome import METRICS, BeforeAfter

ESTIMATE = Estimate(value=5.0, low=4.0, high=6.0, n=100, groups=20, excluded=0, denominator=1000.0)


def row(name: str, verdict: str, *, before: float = 5.0, after: float = 4.0) -> BeforeAfter:
    return BeforeAfter(
        metric=METRICS[name],
        task="heldout",
        base=replace(ESTIMATE, value=before),
        tuned=replace(ESTIMATE, value=after),
        difference=Difference(difference=after - before, low=-2, high=0, p=0.01, test="bootstrap", n=100, groups=20),
        p=0.02,
        verdict=verdict,
    )


def test_a_gain_is_the_headline_with_its_evidence() -> None:
    found = headline([row("perplexity", "better")])
    assert (found.level, found.verdict) == ("good", "better than its base")
    assert found.text == "held-out perplexity 5 before, 4 after (p = 0.020, n = 100 in 20 groups)"
    assert findings([row("perplexity", "better")], None, {}, left_out=0) == []


@pytest.mark.parametrize(
    ("verdict", "level", "text"),
    [
        ("worse", "bad", "worse than its base"),
        ("no difference shown", "warn", "no difference shown"),
        ("too few samples to tell", "warn", "too few samples to tell"),
    ],
)
def test_other_verdicts(verdict: str, level: str, text: str) -> None:
    found = headline([row("perplexity", verdict)])
    assert (found.level, found.verdict) == (level, text)


def test_form_without_sense_is_no_gain() -> None:
    rows = [row("perplexity", "better"), row("question_use", "worse", before=1.1, after=0.5), row("rouge_l", "worse")]
    found = headline(rows)
    assert found.level == "bad"
    assert found.verdict == "better in form only, worse at heeding the question and overlap with the right answers"
    said = findings(rows, None, {}, left_out=0)
    assert [each.level for each in said] == ["bad", "bad"]
    assert "0.5 nats per token, 1.1 before" in said[0].text
    assert "Shuffled" in said[0].remedy


def test_forgetting_overfitting_and_rows_left_out() -> None:
    losses = {"val/loss": [(10, 2.0), (20, 1.5), (30, 1.8)]}
    lost = replace(ESTIMATE, value=0.08, low=0.02, high=0.1)
    said = findings([row("perplexity", "better")], lost, losses, left_out=7)
    assert [each.level for each in said] == ["warn"] * 3
    assert "rose by 8%" in said[0].text
    assert "lowest at step 20 and rose by 20%" in said[1].text
    assert said[2].text.startswith("7 held-out conversations")
    worse = findings([row("perplexity", "better")], replace(lost, value=0.3), {}, left_out=0)
    assert worse[0].level == "bad"
    unsure = findings([row("perplexity", "better")], replace(lost, low=-0.01), {}, left_out=0)
    assert unsure == []


def test_the_worst_comes_first() -> None:
    rows = [row("perplexity", "worse"), row("ended", "better"), row("repetition", "worse")]
    said = findings(rows, None, {}, left_out=1)
    assert [each.level for each in said] == ["bad", "bad", "warn", "good"]


def test_p_values() -> None:
    assert [p_text(p) for p in (0.0002, 0.0123, 0.5)] == ["p < 0.001", "p = 0.012", "p = 0.50"]
