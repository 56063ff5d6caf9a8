"""Conditions are read as people write them, and every one that cannot be read is named."""

import pytest

from app.errors import ConfigError
from app.evaluate.gate import check_gate, parse_conditions

MEASURED = ["perplexity", "rouge_l", "forgetting", "ended"]


@pytest.mark.parametrize(
    ("text", "value", "failed"),
    [
        ("perplexity>5.0", 5.1, True),
        ("perplexity>5.0", 5.0, False),
        ("perplexity >= 5", 5.0, True),
        ("forgetting>5%", 0.051, True),
        ("forgetting>5%", 0.049, False),
        ("forgetting > -1e-1 %", -0.0009, True),
        ("ROUGE-L<0.4", 0.39, True),
        ("ended<=90%", 0.9, True),
        ("ended<.9", 0.95, False),
        ("ended<.9", None, True),
    ],
)
def test_conditions(text: str, value: float | None, failed: bool) -> None:
    (condition,) = parse_conditions([text], MEASURED)
    (result,) = check_gate([condition], {condition.name: value})
    assert (result.condition, result.value, result.failed) == (text, value, failed)


def test_all_faults_at_once_with_what_was_meant() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_conditions(["perplexty>5", "perplexity=5", "forgetting>5%", "ended<..", "bleu<1"], MEASURED)
    text = str(caught.value)
    assert "did you mean perplexity?" in text
    assert "'perplexity=5' is not NAME>NUMBER" in text
    assert "'ended<..' is not" in text
    assert "bleu is not measured here; there are perplexity, rouge_l" in text
    assert "--fail-if" in text
