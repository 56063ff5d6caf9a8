"""What a caller may ask of a text, and the choice of each token from the model's scores, in plain PyTorch.

Every token is chosen by one number in [0, 1) that depends on the request's seed and the token's index and on nothing
else. So a seed gives the same text alone or in a batch, and with or without speculation (`app.generate.speculate`).
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from app.errors import ConfigError, several

# Nucleus and min-p need the scores in order; the first 1,024 nearly always hold the nucleus, and finding them among
# SmolLM2's 49,152 takes a sixth of the time of sorting all (2026-11).
_HEAD = 1024


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How one answer is written; out of range is a ConfigError.

    Order: penalties, temperature, top-k, top-p, min-p (as transformers does).

    Attributes:
        temperature: divides the scores, in [0, 100]; 0 always takes the best token (greedy).
        top_k: choose among the k best tokens only; 0 is off.
        top_p: choose among the best tokens that together hold this probability, in (0, 1]; 1 is off.
        min_p: leave out tokens below this share of the best one's probability, in [0, 1]; 0 is off.
        repetition_penalty: divides positive and multiplies negative scores of tokens that occur in prompt or answer
            (CTRL, arXiv 1909.05858), in (0, 10]; 1 is off.
        frequency_penalty: subtracted from a token's score for each time the answer holds it, in [-2, 2].
        presence_penalty: subtracted once from the score of each token the answer holds, in [-2, 2].
        seed: of this answer's random choices, not negative; None draws one.
        stop: texts that end the answer; they are not part of it.
        max_tokens: the most tokens an answer may have, at least 1.
        ignore_stop: go on past the family's stop tokens, for measurements.
        logprobs: None, or how many alternatives (0 to 20) to report beside each chosen token. They are of the
            model's own distribution, before penalties and temperature.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    max_tokens: int = 256
    ignore_stop: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        faults = [
            f"{name} is {value}, not in {interval}"
            for name, value, good, interval in (
                ("temperature", self.temperature, 0 <= self.temperature <= 100, "[0, 100]"),
                ("top_k", self.top_k, self.top_k >= 0, "0, 1, 2, …"),
                ("top_p", self.top_p, 0 < self.top_p <= 1, "(0, 1]"),
                ("min_p", self.min_p, 0 <= self.min_p <= 1, "[0, 1]"),
                ("repetition_penalty", self.repetition_penalty, 0 < self.repetition_penalty <= 10, "(0, 10]"),
                ("frequency_penalty", self.frequency_penalty, -2 <= self.frequency_penalty <= 2, "[-2, 2]"),
                ("presence_penalty", self.presence_penalty, -2 <= self.presence_penalty <= 2, "[-2, 2]"),
                ("seed", self.seed, self.seed is None or self.seed >= 0, "0, 1, 2, …"),
                ("max_tokens", self.max_tokens, self.max_tokens >= 1, "1, 2, 3, …"),
                ("logprobs", self.logprobs, self.logprobs is None or 0 <= self.logprobs <= 20, "0 … 20"),
            )
            if not good
        ]
        if not isinstance(self.stop, tuple) or not all(isinstance(text, str) and text for text in self.stop):
            faults.append(f"stop is {self.stop!r}, not a tuple of non-empty texts")
        if faults:
            raise ConfigError(
                faults[0] if len(faults) == 1 else several("sampling options are out of range", faults),
                where="sampling",
                remedy="choose values in the ranges named",
            )

    @property
    def penalised(self) -> bool:
        """Whether scores depend on the tokens that went before."""
        return self.repetition_penalty != 1 or self.frequency_penalty != 0 or self.presence_penalty != 0


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLogprob:
    """Natural log-probability of a chosen token, and of the best ones at its place (id, log-probability)."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def uniform(seed: int, index: int) -> float:
    """The number in [0, 1) that chooses token ``index`` of an answer: 53 bits of a hash of both."""
    digest = hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def choose(
    logits: Tensor, sampling: Sequence[Sampling], histories: Sequence[tuple[Tensor, Tensor] | None], draws: list[float]
) -> list[int]:
    """One token per row.

    Args:
        logits: the model's scores, any floating type. # [R, V]
        sampling: the options of each row.
        histories: for a penalised row, the ids of prompt and answer so far and those of the answer alone.
        draws: a number in [0, 1) per row, not used by greedy rows.
    """
    if not any(s.temperature or s.penalised for s in sampling):
        best: list[int] = logits.argmax(-1).tolist()
        return best
    if logits.is_cuda:
        rows = zip(logits.float(), sampling, histories, strict=True)
        scores = torch.stack([row if past is None else penalise(row, options, *past) for row, options, past in rows])
        chosen: list[int] = choose_on_device(scores, sampling, draws).tolist()
        return chosen
    tokens = []
    for row, options, history, draw in zip(logits, sampling, histories, draws, strict=True):
        scores = row.float()
        if history is not None:
            scores = penalise(scores, options, *history)
        tokens.append(_draw(scores, options, draw) if options.temperature else int(scores.argmax()))
    return tokens


def choose_on_device(scores: Tensor, sampling: Sequence[Sampling], draws: Sequence[float]) -> Tensor:
    """One token per row, as `choose` without penalties, all rows at once and without waiting for the device.

    Tokens are in order of their scores even where no option needs it; `choose` then draws in order of their ids. Both
    are the same distribution, but a seed's text on a GPU is another than on a CPU.

    Args:
        scores: float32. # [R, V]
        sampling: the options of each row.
        draws: a number in [0, 1) per row, not used by greedy rows.

    Returns:
        token ids. # [R]
    """
    if not any(options.temperature for options in sampling):
        return scores.argmax(-1)
    size = scores.shape[1]
    rows = [
        # A row without temperature keeps its best token only.
        (s.temperature, s.top_k or size, s.top_p, s.min_p, u) if s.temperature else (1.0, 1, 1.0, 0.0, 0.0)
        for s, u in zip(sampling, draws, strict=True)
    ]
    options = torch.tensor(rows, dtype=torch.float64, pin_memory=scores.is_cuda).to(scores.device, non_blocking=True)
    temperature, top_k, top_p, min_p, draw = options.t()[..., None]  # [R, 1] each
    ordered, ids = scores.sort(dim=-1, descending=True, stable=True)
    shares = ((ordered.double() - ordered[:, :1]) / temperature).exp()
    shares = shares.where(torch.arange(size, device=scores.device) < top_k, 0.0)
    probabilities = shares / shares.sum(-1, keepdim=True)
    before = probabilities.cumsum(-1) - probabilities
    stays = ((before < top_p) | (top_p >= 1)) & (probabilities >= min_p * probabilities[:, :1])
    reached = probabilities.where(stays, 0.0).cumsum(-1)
    place = (reached <= draw * reached[:, -1:]).sum(-1, keepdim=True)
    # Rounding may leave the draw at the very end.
    last = (stays & (probabilities > 0)).sum(-1, keepdim=True) - 1
    return ids.gather(1, place.minimum(last))[:, 0]


def penalise(scores: Tensor, options: Sampling, seen: Tensor, written: Tensor) -> Tensor:
    """Scores [V] after the three penalties; see `Sampling`.

    Args:
        scores: of one place, fp32. # [V]
        options: the penalties.
        seen: ids of prompt and answer so far, any order. # [n]
        written: ids of the answer so far. # [m]
    """
    seen, written = seen.to(scores.device), written.to(scores.device)
    if options.repetition_penalty != 1:
        there = scores[seen]
        penalty = options.repetition_penalty
        scores = scores.index_put((seen,), torch.where(there > 0, there / penalty, there * penalty))
    if options.frequency_penalty or options.presence_penalty:
        counts = torch.zeros_like(scores).index_add_(0, written, torch.ones_like(written, dtype=scores.dtype))
        scores = scores - options.frequency_penalty * counts - options.presence_penalty * (counts > 0)
    return scores


def distribution(scores: Tensor, options: Sampling) -> tuple[Tensor, Tensor]:
    """The tokens that may be chosen, best first where order matters, with their probabilities.

    Args:
        scores: after penalties, fp32. # [V]
        options: with temperature > 0.

    Returns:
        ids and probabilities (float64, sum 1). # [n], [n]
    """
    # Subtracting the best score first keeps tiny temperatures finite.
    scores = (scores.double() - scores.max()) / options.temperature
    size = scores.numel()
    if options.top_k == 0 and options.top_p == 1 and options.min_p == 0:
        return torch.arange(size, device=scores.device), torch.softmax(scores, -1)
    if options.top_k:
        kept, ids = scores.topk(min(options.top_k, size))
        total = kept.exp().sum()
    else:
        total = scores.exp().sum()
        kept, ids = scores.topk(min(_HEAD, size))
        if not _holds_all(kept, total, options):
            kept, ids = scores.topk(size)
    probabilities = kept.exp() / total
    if options.top_p < 1:
        # A token stays while those before it hold less than top_p: the best one always does.
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities[before < options.top_p]
    if options.min_p > 0:
        probabilities = probabilities[probabilities >= options.min_p * probabilities[0]]
    return ids[: probabilities.numel()], probabilities / probabilities.sum()


def _holds_all(kept: Tensor, total: Tensor, options: Sampling) -> bool:
    """Whether the best ones alone decide: the nucleus, or everything above min-p, ends within them."""
    by_mass = bool((kept.exp() / total).sum() >= options.top_p) if options.top_p < 1 else False
    by_share = bool(kept[-1] < math.log(options.min_p)) if options.min_p > 0 else False
    return by_mass or by_share


def _draw(scores: Tensor, options: Sampling, draw: float) -> int:
    ids, probabilities = distribution(scores, options)
    place = int(torch.searchsorted(probabilities.cumsum(-1), draw, right=True))
    # Rounding may leave the last cumulative sum a hair below 1.
    return int(ids[min(place, ids.numel() - 1)])


def token_logprob(logits: Tensor, token: int, alternatives: int) -> TokenLogprob:
    """The chosen token's log-probability and its best alternatives, from the model's own scores [V]."""
    logprobs = torch.log_softmax(logits.float(), -1)
    values, ids = logprobs.topk(alternatives)
    return TokenLogprob(
        token_id=token,
        logprob=float(logprobs[token]),
        top=tuple(zip(ids.tolist(), values.tolist(), strict=True)),
    )
