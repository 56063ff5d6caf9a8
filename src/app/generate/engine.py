"""The one text-generation engine: continuous batching over a slot cache, for chat, evaluate and serve alike.

Requests join and leave at any step. A step reads at most one chunk of prompts and then writes at least one token for
every running answer, so that a long prompt does not stall the others. Running requests always fill the first slots:
whoever leaves is replaced by the last one, and the batch stays a view of the cache.

On a GPU a step is launched before the one before is read: the GPU passes the tokens on by itself, and the host learns
them one step late, by one asynchronous copy. A text that has ended by then has one token too many under way, which is
dropped. Drafts, penalties and log-probabilities need the tokens first: such steps are read at once.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from typing import cast

from app.data.records import Message
from app.data.tokenize import encode, special_ids
from app.errors import AppError, ConfigError, DataError, several
from app.generate.cache import CacheBits
from app.generate.chunk import next_chunk
from app.generate.forward import Forward, Row, Wish
from app.generate.request import Answer, Chunk, Request
from app.generate.sampling import Sampling, choose
from app.generate.session import Session
from app.generate.steps import Flight

Prompt = Sequence[Message] | Sequence[int]
"""A conversation that ends with a question, or token ids."""

# Tokens a decode step may hold, drafts included: beyond it a forward pass is limited by arithmetic, not by reading
# the weights, and drafts no longer ride along for free.
_DECODE_TOKENS = 16


class Engine:
    """Writes answers with a session's model.

    Not thread-safe, but for `Request.cancel`: one thread calls `submit` and `step`. While requests are running, the
    session's adapter must not be switched.

    Args:
        session: the opened model.
        slots: requests that run at once; more wait.
        context: tokens of prompt and answer together; by default what the model and the free memory allow.
        speculate: draft by prompt lookup (`app.generate.speculate`); changes the speed only.
        reuse: keep what a slot's last request left when the next one begins with the same tokens, as each turn of a
            chat does. On a GPU a prompt read in other pieces is rounded otherwise: a seed's text may then depend on
            what was asked before.
        cache_bits: 8 keeps keys and values in int8 (`app.generate.cache`): twice the context in the same memory.
        fast: on an NVIDIA GPU, use the fused kernels where they can serve the model.

    Raises:
        ConfigError: ``slots`` or ``context`` is out of range.
        MachineError: the cache does not fit into memory.
    """

    def __init__(
        self,
        session: Session,
        *,
        slots: int = 8,
        context: int | None = None,
        speculate: bool = True,
        reuse: bool = False,
        cache_bits: CacheBits = 16,
        fast: bool = True,
    ) -> None:
        self._session = session
        self._forward = Forward(session.model, slots=slots, context=context, bits=cache_bits, fast=fast)
        self._slots = slots
        self._speculate = speculate
        ids = special_ids(session.tokenizer, session.family)
        self._stop_ids = frozenset(ids[token] for token in session.family.stop_tokens)
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        self._reuse = reuse
        # Tokens whose keys and values a free slot still holds, and the adapters they were made with.
        self._left: dict[int, list[int]] = {}
        self._adapters = self._forward.adapters
        # The step that was launched and not yet read, with its rows.
        self._flight: tuple[Flight, list[tuple[Request, Row]]] | None = None

    @property
    def context(self) -> int:
        """Tokens that prompt and answer may have together."""
        return self._forward.context

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters that answer now; empty for the base."""
        return self._forward.adapters

    @property
    def busy(self) -> bool:
        """Whether a request waits or runs."""
        return bool(self._waiting or self._running)

    def count(self, prompt: Prompt) -> int:
        """Tokens of a prompt.

        Raises:
            DataError: it does not end with a question, or holds a control token.
        """
        return len(self._ids(prompt))

    def encode(self, prompt: Prompt) -> list[int]:
        """The prompt's token ids.

        Raises:
            DataError: it is empty, does not end with a question, holds a control token or an id out of range, or
                leaves no room for an answer.
        """
        ids = self._ids(prompt)
        if not all(0 <= token < self._forward.vocabulary for token in ids):
            raise DataError(
                f"the prompt holds token ids outside 0 … {self._forward.vocabulary - 1}",
                remedy="make the ids with this model's tokenizer",
            )
        if len(ids) >= self.context:
            raise DataError(
                f"the prompt has {len(ids)} tokens; the context of {self.context} leaves no room for an answer",
                remedy="shorten the prompt, or open the engine with a longer context",
            )
        return ids

    def _ids(self, prompt: Prompt) -> list[int]:
        if prompt and all(isinstance(part, int) for part in prompt):
            return [int(part) for part in cast(Sequence[int], prompt)]
        messages = cast(Sequence[Message], prompt)
        return encode(messages, self._session.tokenizer, self._session.family, answer_next=True).input_ids

    def submit(self, prompt: Prompt, sampling: Sampling, on_chunk: Callable[[Chunk], None] | None = None) -> Request:
        """Queues a request; `step` works on it.

        Args:
            prompt: a conversation or token ids.
            sampling: how to write.
            on_chunk: called from within `step` with each piece of text; must not raise.

        Raises:
            DataError: see `encode`. Other requests go on.
        """
        ids = self.encode(prompt)
        request = Request(
            ids,
            sampling,
            tokenizer=self._session.tokenizer,
            stop_ids=frozenset() if sampling.ignore_stop else self._stop_ids,
            limit=min(sampling.max_tokens, self.context - len(ids)),
            speculate=self._speculate,
            on_chunk=on_chunk,
        )
        self._waiting.append(request)
        return request

    def step(self) -> None:
        """One step for everybody: the cancelled leave, the waiting join, a chunk of prompts, a token per answer."""
        for request in [r for r in (*self._running, *self._waiting) if r.cancelled]:
            request.finish("cancelled")
        self._waiting = deque(r for r in self._waiting if r.answer is None)
        self._release()
        if self._forward.adapters != self._adapters:
            assert not self._running, "the adapter was switched while requests were running"
            self._adapters = self._forward.adapters
            self._left.clear()
        while self._waiting and len(self._running) < self._slots:
            self._admit(self._waiting.popleft())
        self._prefill()
        self._decode()
        self._release()
        if not self._running:
            self._flight = None

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Chunk]:
        """One answer piece by piece; closing the iterator cancels it. Other requests progress meanwhile.

        Raises:
            DataError: see `encode`.
        """
        chunks: deque[Chunk] = deque()
        request = self.submit(prompt, sampling, chunks.append)
        try:
            while request.answer is None:
                self.step()
                while chunks:
                    yield chunks.popleft()
        finally:
            if request.answer is None:
                request.cancel()
                self.step()

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | Sequence[Sampling],
        progress: Callable[[Answer], None] | None = None,
    ) -> list[Answer]:
        """Answers to all prompts, in their order; worked on longest first, so that few slots idle at the end.

        Args:
            prompts: conversations or token ids.
            sampling: for all, or one for each.
            progress: called with each answer as it is finished.

        Raises:
            ConfigError: as many samplings as prompts are needed.
            DataError: prompts cannot be answered; all of them are named, and none is run.
        """
        options = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
        if len(options) != len(prompts):
            raise ConfigError(
                f"{len(options)} samplings for {len(prompts)} prompts", remedy="give one, or one for each prompt"
            )
        encoded, faults = [], []
        for number, prompt in enumerate(prompts, start=1):
            try:
                encoded.append(self.encode(prompt))
            except AppError as fault:
                faults.append(f"prompt {number}: {fault.what}")
        if faults:
            raise DataError(several(f"{len(faults)} prompts cannot be answered", faults), remedy="correct or drop them")
        order = sorted(range(len(encoded)), key=lambda index: -len(encoded[index]))
        requests = {index: self.submit(encoded[index], options[index]) for index in order}
        pending = set(order)
        try:
            while pending:
                self.step()
                for index in [i for i in pending if requests[i].answer is not None]:
                    pending.remove(index)
                    if progress is not None:
                        progress(_finished(requests[index]))
        finally:
            for index in pending:
                requests[index].cancel()
            if pending:
                self.step()
        return [_finished(requests[index]) for index in range(len(prompts))]

    def _admit(self, request: Request) -> None:
        """Gives a request the first free slot, with what it can use of the tokens left there."""
        request.slot = len(self._running)
        self._running.append(request)
        left = self._left.pop(request.slot, [])
        # The prompt's last token is read again in any case: its scores choose the first token of the answer.
        pairs = zip(request.tokens[:-1], left, strict=False)
        request.computed = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    def _prefill(self) -> None:
        """Reads the next chunk of the prompts not yet read; a prompt's end gives its answer's first token."""
        rows = next_chunk([r for r in self._running if r.written == 0], self._forward.chunk)
        if not rows:
            return
        scores = self._forward.read([row for _, row in rows])
        ending = [request for request, row in rows if row.scored]
        wishes = [self._wish(request, []) for request in ending]
        histories, draws = [wish.history for wish in wishes], [wish.draw for wish in wishes]
        tokens = choose(scores, [wish.sampling for wish in wishes], histories, draws) if ending else []
        for request, row in rows:
            request.computed = row.start + len(row.ids)
        for request, token, score in zip(ending, tokens, scores, strict=False):
            request.take(token, score)

    def _decode(self) -> None:
        """Writes at least one token of every running answer."""
        writing = [r for r in self._running if r.open]
        share = _DECODE_TOKENS // len(writing) - 1 if writing else 0
        if any(r.chosen_on_host or (share > 0 and r.drafts_next) for r in writing):
            self._land()
            writing = [r for r in writing if r.open]
        rows: list[tuple[Request, Row]] = []
        places: list[tuple[Request, list[int]]] = []
        for request in writing:
            room = min(share, request.limit - request.written - 1)
            known = request.flying == 0
            drafted = request.lookup.draft(room) if known and request.lookup is not None else []
            ids = [request.tokens[-1] if known else -1 - request.place, *drafted]
            row = Row(slot=request.slot, start=request.computed + request.flying, ids=ids, scored=len(ids))
            rows.append((request, row))
            request.place = len(places)
            places += [(request, drafted[:ahead]) for ahead in range(len(ids))]
        before, self._flight = self._flight, None
        if rows:
            at_once = not self._forward.fast or any(len(row.ids) > 1 or r.chosen_on_host for r, row in rows)
            flight = self._forward.write(
                [row for _, row in rows], [self._wish(*place) for place in places], keep_scores=at_once
            )
            for request, _ in rows:
                request.flying += 1
            self._flight = flight, rows
            if at_once:
                self._land()
        if before is not None:
            self._take(*before)

    def _land(self) -> None:
        """Reads the step that is under way, if there is one."""
        if self._flight is not None:
            flight, self._flight = self._flight, None
            self._take(*flight)

    def _take(self, flight: Flight, work: Sequence[tuple[Request, Row]]) -> None:
        """Gives the requests their tokens, as long as those agree with the draft."""
        tokens, scores = flight.tokens(), flight.scores
        place = 0
        for request, row in work:
            request.flying -= 1
            drafted = list(row.ids[1:])
            right = 0
            for ahead in range(len(row.ids)):
                if request.answer is not None:
                    break
                token = tokens[place + ahead]
                score = scores[place + ahead] if scores is not None else None
                agrees = ahead < len(drafted) and token == drafted[ahead]
                right += agrees
                if not (request.take(token, score) and agrees):
                    break
            request.computed = row.start + 1 + right
            request.note_draft(len(drafted), right)
            place += len(row.ids)

    def _wish(self, request: Request, drafted: list[int]) -> Wish:
        """How the token after ``drafted`` is chosen, which itself follows those known and under way."""
        draw = request.draw(request.flying + len(drafted))
        return Wish(sampling=request.sampling, history=request.history(drafted), draw=draw)

    def _release(self) -> None:
        """Finished requests leave; the last running one moves into each slot that falls free."""
        for request in [r for r in self._running if r.answer is not None]:
            last = self._running.pop()
            if self._reuse and last is request:
                self._left[request.slot] = request.tokens[: request.computed]
            if last is not request:
                self._forward.cache.move(last.slot, request.slot, last.computed + last.flying)
                last.slot = request.slot
                self._running[last.slot] = last


def _finished(request: Request) -> Answer:
    assert request.answer is not None
    return request.answer
