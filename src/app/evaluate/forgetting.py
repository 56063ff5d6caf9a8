"""Forgetting: how much worse the tuned model is at what has nothing to do with its training data."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from app.evaluate.bootstrap import Estimate, interval, resample
from app.evaluate.metric import Part, as_sums
from app.evaluate.perplexity import PERPLEXITY

GENERAL_TEXT = replace(
    PERPLEXITY,
    name="general_text",
    title="Perplexity, general text",
    unit="exp(nats per token); 1 is perfect",
    denominator="tokens of the general set's passages",
    excludes="each passage's first token where no BOS token stands before it",
)
GENERAL_ANSWERS = replace(
    PERPLEXITY,
    name="general_answers",
    title="Perplexity, simple answers",
    denominator="tokens of the general set's answers, with their end-of-turn tokens",
    excludes="prompts and padding",
)
UNIT = "relative rise in perplexity on the general set: 0 is none, 0.05 is 5 %"
DEFINITION = (
    "exp of the mean of two log ratios, minus 1: perplexity after over before on general text, and on the answers to "
    "simple instructions; each half weighs the same, however many tokens it has"
)


def forgetting(halves: Sequence[tuple[Sequence[Part], Sequence[Part]]], *, seed: int) -> Estimate:
    """The rise in perplexity from base to tuned, over both halves of the general set; negative if it fell.

    Args:
        halves: for each half, what its rows add to the perplexity of the base and to that of the tuned model.
        seed: of the resampling, which draws rows within each half.
    """
    logs, resampled, rows, tokens = [], [], 0, 0.0
    for number, (base, tuned) in enumerate(halves):
        both = np.concatenate([as_sums(base), as_sums(tuned)], axis=1)  # [N, 4]
        drawn = resample(both, [str(row) for row in range(len(both))], seed=seed + number)  # [R, 4]
        sums = np.vstack([both.sum(axis=0), drawn])
        ratio = sums[:, 2] / sums[:, 3] - sums[:, 0] / sums[:, 1]  # [1 + R]
        logs.append(float(ratio[0]))
        resampled.append(ratio[1:])
        rows += len(both)
        tokens += float(both[:, 3].sum())
    low, high = interval(np.expm1(np.mean(resampled, axis=0))) or (None, None)
    value = float(np.expm1(sum(logs) / len(logs)))
    return Estimate(
        value=value if math.isfinite(value) else None,
        low=low,
        high=high,
        n=rows,
        groups=rows,
        excluded=0,
        denominator=tokens,
    )
