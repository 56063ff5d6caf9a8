"""How far two models are apart, measured where one of them was trained: at the answers' tokens.

The reference's logits are kept on disk, since a vocabulary of 128,256 tokens at 1,000 positions is half a gigabyte.
Distances: Kullback-Leibler divergence in nats per token, from the reference to the candidate; top-1 agreement (share of
positions at which both would choose the same token); the mean loss in nats per answer token, whose exponential is the
perplexity. Intervals are 95 % bootstrap intervals over conversations (percentiles of 1,000 resamples, seeded).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

FloatArray = np.ndarray[Any, np.dtype[np.float64]]
RESAMPLES = 1000


class Scorer(Protocol):
    """A model that can be asked for what is compared."""

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Logits after each token, [len(ids), vocabulary], float32."""
        ...

    def greedy(self, ids: Sequence[int], *, tokens: int, stops: Sequence[int]) -> str:
        """The most probable continuation without the stop token."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of a text with control tokens written out, nothing added."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        ...


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A conversation to compare at.

    Attributes:
        ids: its tokens.
        targets: indices of the answers' tokens; each is predicted from the token before it.
        prompt: how many of the first ids are the prompt of the first answer.
        question: the first question, for people.
    """

    ids: Sequence[int]
    targets: Sequence[int]
    prompt: int
    question: str


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a model said.

    Attributes:
        logits: [positions, vocabulary], float32, on disk.
        losses: per conversation, the sum over its answers' tokens, in nats.
        counts: per conversation, how many tokens those were.
        answers: greedy answers of the first conversations.
    """

    logits: np.memmap[Any, np.dtype[np.float32]]
    losses: FloatArray
    counts: FloatArray
    answers: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Distance:
    """How far a candidate is from a reference; see the module for the units.

    Attributes:
        kl, kl_interval: mean divergence and its interval.
        top1: agreement, 0 to 1.
        logit: the largest difference of any logit.
        loss_change, loss_interval: candidate's mean loss minus the reference's, paired by conversation.
        perplexity, perplexity_interval: of the candidate.
        reference_perplexity, reference_interval: of the reference.
        positions, conversations: the denominators.
        answers: the candidate's greedy answers.
    """

    kl: float
    kl_interval: tuple[float, float]
    top1: float
    logit: float
    loss_change: float
    loss_interval: tuple[float, float]
    perplexity: float
    perplexity_interval: tuple[float, float]
    reference_perplexity: float
    reference_interval: tuple[float, float]
    positions: int
    conversations: int
    answers: Sequence[str]


def collect(
    scorer: Scorer,
    samples: Sequence[Sample],
    file: Path,
    *,
    stops: Sequence[int],
    greedy: int,
    advance: Callable[[], None],
) -> Evidence:
    """Asks a reference for everything, once.

    Args:
        scorer: the reference.
        samples: where to compare.
        file: where its logits go.
        stops: ids that end an answer.
        greedy: of how many samples it answers the prompt, at most 48 tokens each.
        advance: is called after each sample.
    """
    total = sum(len(sample.targets) for sample in samples)
    rows: np.memmap[Any, np.dtype[np.float32]] | None = None
    losses, answers, row = [], [], 0
    for index, sample in enumerate(samples):
        logits = _at_targets(scorer, sample)
        if rows is None:
            rows = np.memmap(file, dtype=np.float32, mode="w+", shape=(total, logits.shape[1]))
        rows[row : row + len(logits)] = logits
        row += len(logits)
        losses.append(-_picked(_log_softmax(logits), sample).sum())
        if index < greedy:
            answers.append(answer(scorer, sample, stops))
        advance()
    assert rows is not None, "there is nothing to compare at"
    rows.flush()
    return Evidence(
        logits=rows,
        losses=np.array(losses),
        counts=np.array([float(len(sample.targets)) for sample in samples]),
        answers=answers,
    )


def compare(
    scorer: Scorer,
    references: Sequence[Evidence],
    samples: Sequence[Sample],
    *,
    stops: Sequence[int],
    advance: Callable[[], None],
) -> list[Distance]:
    """The candidate's distance from each reference, asking it once."""
    kls = np.zeros((len(references), len(samples)))
    same = np.zeros((len(references), len(samples)))
    largest = np.zeros(len(references))
    losses, answers, row = [], [], 0
    for index, sample in enumerate(samples):
        logits = _at_targets(scorer, sample)
        mine = _log_softmax(logits)
        losses.append(-_picked(mine, sample).sum())
        for number, reference in enumerate(references):
            theirs_raw = np.asarray(reference.logits[row : row + len(logits)])
            theirs = _log_softmax(theirs_raw)
            kls[number, index] = (np.exp(theirs) * (theirs - mine)).sum()
            same[number, index] = (theirs.argmax(1) == mine.argmax(1)).sum()
            largest[number] = max(largest[number], float(np.abs(theirs_raw - logits).max()))
        if index < len(references[0].answers):
            answers.append(answer(scorer, sample, stops))
        row += len(logits)
        advance()
    own = np.array(losses)
    return [
        _distance(reference, own, kls[number], same[number], float(largest[number]), answers)
        for number, reference in enumerate(references)
    ]


def answer(scorer: Scorer, sample: Sample, stops: Sequence[int]) -> str:
    """The greedy answer to the sample's first question, at most 48 tokens."""
    return scorer.greedy(sample.ids[: sample.prompt], tokens=48, stops=stops)


def bootstrap(sums: FloatArray, counts: FloatArray, *, seed: int = 42) -> tuple[float, float]:
    """95 % interval of ``sum(sums) / sum(counts)`` when conversations are drawn anew."""
    chosen = np.random.default_rng(seed).integers(0, len(sums), (RESAMPLES, len(sums)))  # [resamples, conversations]
    ratios = sums[chosen].sum(1) / counts[chosen].sum(1)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(low), float(high)


def _distance(
    reference: Evidence, losses: FloatArray, kls: FloatArray, same: FloatArray, largest: float, answers: Sequence[str]
) -> Distance:
    counts = reference.counts
    total = counts.sum()

    def perplexity(sums: FloatArray) -> tuple[float, tuple[float, float]]:
        low, high = bootstrap(sums, counts)
        return float(np.exp(sums.sum() / total)), (float(np.exp(low)), float(np.exp(high)))

    own, own_interval = perplexity(losses)
    its, its_interval = perplexity(reference.losses)
    return Distance(
        kl=float(kls.sum() / total),
        kl_interval=bootstrap(kls, counts),
        top1=float(same.sum() / total),
        logit=largest,
        loss_change=float((losses - reference.losses).sum() / total),
        loss_interval=bootstrap(losses - reference.losses, counts),
        perplexity=own,
        perplexity_interval=own_interval,
        reference_perplexity=its,
        reference_interval=its_interval,
        positions=int(total),
        conversations=len(counts),
        answers=answers,
    )


def _at_targets(scorer: Scorer, sample: Sample) -> np.ndarray:
    chosen: np.ndarray = scorer.logits(sample.ids)[np.array(sample.targets) - 1]  # [targets, V]
    return chosen


def _log_softmax(logits: np.ndarray) -> FloatArray:
    """In float64, [positions, V]: differences of 1e-7 are what is measured."""
    wide: FloatArray = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    result: FloatArray = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return result


def _picked(log_probabilities: FloatArray, sample: Sample) -> FloatArray:
    ids = np.array(sample.ids)[np.array(sample.targets)]
    picked: FloatArray = log_probabilities[np.arange(len(ids)), ids]
    return picked
