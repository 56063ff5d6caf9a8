"""One request on its way through the engine, and what comes out of it."""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from app.generate.sampling import Sampling, TokenLogprob, token_logprob, uniform
from app.generate.speculate import PromptLookup
from app.generate.text import Detokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A finished text.

    Attributes:
        text: without special tokens and without the stop string that ended it.
        token_ids: as chosen, with the stop token that ended it if one did.
        finish_reason: "stop" (a stop token or string), "length" (max_tokens or the context's end) or "cancelled".
        prompt_tokens: length of the prompt.
        seed: that gives this text again; the drawn one where none was asked for.
        time_to_first: seconds from `submit` to the first token; 0 where there is none.
        tokens_per_second: of the tokens after the first; 0 where there are none.
        drafts: how many tokens speculation proposed, and how many of them were right.
        logprobs: one per token, or None where they were not asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    seed: int
    time_to_first: float
    tokens_per_second: float
    drafts: tuple[int, int]
    logprobs: tuple[TokenLogprob, ...] | None


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """New text of a running answer; the last one carries the whole ``answer``. ``text`` may be empty.

    Attributes:
        text: what the answer grew by.
        answer: with the last chunk, all of it.
        token_ids: chosen since the chunk before; their text may still be held back.
        logprobs: of these tokens, where they were asked for.
    """

    text: str
    answer: Answer | None
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


class Request:
    """A running request; made by `Engine.submit`.

    Attributes:
        answer: None until it is finished.
        slot: its place in the cache while it has one.
        computed: tokens the cache holds.
        tokens: prompt and answer so far.
        flying: tokens being chosen by steps that were launched and not yet read: they follow ``tokens``.
        place: where the newest of those steps chooses it.
    """

    def __init__(
        self,
        prompt: list[int],
        sampling: Sampling,
        *,
        tokenizer: "PreTrainedTokenizerFast",
        stop_ids: frozenset[int],
        limit: int,
        speculate: bool,
        on_chunk: Callable[[Chunk], None] | None,
    ) -> None:
        self.answer: Answer | None = None
        self.slot = -1
        self.computed = 0
        self.flying = 0
        self.place = 0
        self.tokens = list(prompt)
        self.sampling = sampling
        self.seed = secrets.randbelow(2**63) if sampling.seed is None else sampling.seed
        self.limit = limit
        self.lookup = PromptLookup(prompt) if speculate else None
        self.drafts = [0, 0]
        self._prompt = len(prompt)
        self._detokenizer = Detokenizer(tokenizer, sampling.stop)
        self._stop_ids = stop_ids
        self._on_chunk = on_chunk
        self._logprobs: list[TokenLogprob] = []
        self._reported = 0
        self._cancelled = False
        self._submitted = time.perf_counter()
        self._first = self._last = 0.0

    @property
    def written(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - self._prompt

    @property
    def open(self) -> bool:
        """Whether the answer takes another token beyond those on their way."""
        return self.answer is None and self.written > 0 and self.written + self.flying < self.limit

    @property
    def drafts_next(self) -> bool:
        """Whether there is a draft, as far as the tokens are known."""
        return self.lookup is not None and self.lookup.ready

    @property
    def chosen_on_host(self) -> bool:
        """Whether each token must be known before the step that follows it."""
        return self.sampling.penalised or self.sampling.logprobs is not None

    @property
    def used(self) -> int:
        """Tokens of prompt and answer so far."""
        return len(self.tokens)

    @property
    def tokens_per_second(self) -> float:
        """Of the tokens after the first; 0 while there are none."""
        later = self._last - self._first
        return (self.written - 1) / later if later > 0 else 0.0

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def cancel(self) -> None:
        """Ends the request at the engine's next step; from any thread, at any time, any number of times."""
        self._cancelled = True

    def draw(self, ahead: int) -> float:
        """The number that chooses the answer's token ``ahead`` places after the ones it has."""
        return uniform(self.seed, self.written + ahead) if self.sampling.temperature else 0.0

    def history(self, drafted: list[int]) -> tuple[Tensor, Tensor] | None:
        """What penalties look at, were ``drafted`` part of the answer; None without penalties."""
        if not self.sampling.penalised:
            return None
        seen = torch.tensor([*self.tokens, *drafted])
        return seen, seen[self._prompt :]

    def take(self, token: int, scores: Tensor | None) -> bool:
        """Adds a chosen token; returns whether the answer goes on.

        Args:
            token: the chosen id.
            scores: the model's, which it was chosen from; needed for log-probabilities only. # [V]
        """
        self._last = time.perf_counter()
        self._first = self._first or self._last
        self.tokens.append(token)
        if self.lookup is not None:
            self.lookup.extend([token])
        if self.sampling.logprobs is not None:
            assert scores is not None
            self._logprobs.append(token_logprob(scores, token, self.sampling.logprobs))
        if token in self._stop_ids:
            self.finish("stop")
            return False
        text = self._detokenizer.push(token)
        if self._detokenizer.stopped:
            self.finish("stop", text)
            return False
        if self.written == self.limit:
            self.finish("length", text)
            return False
        if text:
            self._report(text)
        return True

    def note_draft(self, drafted: int, right: int) -> None:
        """Records how many drafted tokens were right, and lets the next drafts adapt."""
        self.drafts[0] += drafted
        self.drafts[1] += right
        if self.lookup is not None:
            self.lookup.learn(drafted, right)

    def finish(self, reason: FinishReason, text: str = "") -> None:
        """Closes the answer; ``text`` is new and not yet reported."""
        text += self._detokenizer.finish()
        # The held-back end may itself hold a stop string that only became certain with the last bytes.
        if self._detokenizer.stopped:
            reason = "stop"
        self.answer = Answer(
            text=self._detokenizer.text,
            token_ids=tuple(self.tokens[self._prompt :]),
            finish_reason=reason,
            prompt_tokens=self._prompt,
            seed=self.seed,
            time_to_first=self._first - self._submitted if self._first else 0.0,
            tokens_per_second=self.tokens_per_second,
            drafts=(self.drafts[0], self.drafts[1]),
            logprobs=tuple(self._logprobs) if self.sampling.logprobs is not None else None,
        )
        self._report(text)

    def _report(self, text: str) -> None:
        if self._on_chunk is None:
            return
        before, self._reported = self._reported, self.written
        self._on_chunk(
            Chunk(
                text=text,
                answer=self.answer,
                token_ids=tuple(self.tokens[self._prompt + before :]),
                logprobs=tuple(self._logprobs[before:]),
            )
        )
