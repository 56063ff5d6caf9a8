"""One pass of the model over rows of the slot cache: the only place where generation runs the model.

Two paths do the same: transformers' own modules (the reference, everywhere), and on NVIDIA GPUs the fused kernels of
`app.generate.decoder` in CUDA graphs.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from app.generate.adapter import LeanAdapter
from app.generate.attention import NAME, attention_instead, register_grouped_attention
from app.generate.cache import CacheBits, SlotCache, plan_context
from app.generate.decoder import Decoder
from app.generate.sampling import Sampling, choose
from app.generate.steps import Flight, Place, Steps, largest_chunk
from app.kernels.triton_support import triton
from app.model.accelerate import NotCoveredError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

# Attention gets keys in blocks of these. In bfloat16 on CPUs, torch's sums over a block that is not whole come in
# another order, and a prompt read in pieces had other scores than one read whole (AVX512-BF16, 2026-11).
_KEYS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What one request gives to a forward pass.

    Attributes:
        slot: its place in the cache.
        start: tokens of it that the cache already holds.
        ids: the tokens that follow. Before `write`, one below 0 stands for what the step before chose at its place
            -1 - id.
        scored: how many of the last of ``ids`` need scores.
    """

    slot: int
    start: int
    ids: Sequence[int]
    scored: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """How the token after a scored place is chosen: see `app.generate.sampling.choose`."""

    sampling: Sampling
    history: tuple[Tensor, Tensor] | None
    draw: float


class Forward:
    """The model with its cache.

    Adapters are loaded into the model before; which of them is on may change between calls.

    Args:
        model: as loaded.
        slots: requests with a place in the cache.
        context: positions in a slot; None: what the model and the memory allow.
        bits: of the cache.
        fast: use the fused kernels where they can serve.

    Attributes:
        context: positions in a slot.
        vocabulary: number of token ids.
    """

    def __init__(
        self,
        model: "PreTrainedModel | PeftModel",
        *,
        slots: int,
        context: int | None,
        bits: CacheBits = 16,
        fast: bool = True,
    ) -> None:
        # A PeftModel's adapter layers sit inside the transformers model; going straight to it saves a wrapper a step.
        self._model = model.get_base_model() if hasattr(model, "get_base_model") else model
        config = self._model.config
        self._dtype = self._model.get_input_embeddings().weight.dtype
        # Not the embeddings': the fast training step has them in CPU memory.
        self._device = self._model.get_decoder().norm.weight.device
        where = {"dtype": self._dtype, "device": self._device}
        self.context = plan_context(config, slots=slots, context=context, bits=bits, **where)
        self.vocabulary = int(config.vocab_size)
        self.cache = SlotCache(config, slots=slots, context=self.context, bits=bits, **where)
        self._window: int | None = getattr(config, "sliding_window", None)
        self._adapter = LeanAdapter(self._model)
        register_grouped_attention()
        self._slots = slots
        self._steps: Steps | None = None
        self._prepared: tuple[str, ...] | None = None
        self._allow_fast = fast and has_kernels(self._device)
        self._prepare()

    @property
    def fast(self) -> bool:
        """Whether the fused kernels serve: `write` may then be called before the last step's tokens are known."""
        return self._steps is not None

    @property
    def chunk(self) -> int:
        """Tokens of prompts read in one step: enough to keep the processor busy, few enough for answers to go on."""
        return largest_chunk(self._device) if self.fast else 512

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters that are on: what the cache holds is only good under the same ones."""
        return self._adapter.names

    def _prepare(self) -> None:
        """Gets the fast path ready for the adapters that are on; without it where it cannot serve them."""
        if not self._allow_fast or self.adapters == self._prepared:
            return
        self._prepared = self.adapters
        try:
            with torch.inference_mode():
                decoder = self._steps.decoder if self._steps is not None else Decoder(self._model, self.cache)
                decoder.use(self.adapters)
        except NotCoveredError as reason:
            if self._steps is not None:  # once more, with room for an adapter that came later
                self._steps = self._prepared = None
                self._prepare()
                return
            warnings.warn(f"generation without the fast kernels: {reason}", stacklevel=2)
            return
        if self._steps is None:
            self._steps = Steps(decoder, slots=self._slots, device=self._device)

    def read(self, rows: Sequence[Row]) -> Tensor:
        """Reads parts of prompts; see `__call__`. Rows have at most one scored token, their last."""
        self._prepare()
        if self._steps is None:
            return self(rows)
        scores = [(row, self._steps.read(_places(row))) for row in rows]
        return torch.stack([score for row, score in scores if row.scored] or [scores[0][1][:0]])

    def write(self, rows: Sequence[Row], wishes: Sequence[Wish], *, keep_scores: bool) -> Flight:
        """Goes on with answers: every token of the rows is scored, and one chosen to follow it.

        Args:
            rows: what is written.
            wishes: how to choose after each token, row by row.
            keep_scores: whether the flight carries the scores; needed where there are penalties.
        """
        samplings, draws = [wish.sampling for wish in wishes], [wish.draw for wish in wishes]
        if self._steps is not None:
            places = [place for row in rows for place in _places(row)]
            return _penalised(self._steps.write(places, samplings, draws, keep_scores=keep_scores), wishes)
        scores = self(rows)
        return Flight(torch.tensor(choose(scores, samplings, [wish.history for wish in wishes], draws)), None, scores)

    @torch.inference_mode()
    def __call__(self, rows: Sequence[Row]) -> Tensor:
        """Writes the rows' tokens into the cache and returns the scores that were asked for.

        Returns:
            scores of the rows one after the other. # [sum of scored, V]
        """
        width = max(len(row.ids) for row in rows)
        longest = max(row.start + len(row.ids) for row in rows)
        length = min(self.context, -(-longest // _KEYS) * _KEYS)
        ids = [[*row.ids, *[0] * (width - len(row.ids))] for row in rows]
        places = [
            [*range(row.start, row.start + len(row.ids)), *[self.context] * (width - len(row.ids))] for row in rows
        ]
        positions = torch.tensor(places, device=self._device)  # [B, Q]
        self.cache.aim([row.slot for row in rows], positions, length)
        wanted = [[*range(len(row.ids) - row.scored, len(row.ids))] for row in rows]
        # The head is the largest matrix of a small model: it runs only where some row needs scores.
        columns = sorted({column for row in wanted for column in row}) or [0]
        with self._adapter.active(), attention_instead(self._model.config, of="eager", name=NAME):
            logits = self._model(
                input_ids=torch.tensor(ids, device=self._device),
                attention_mask=self._mask(positions, length),
                # Rotary tables that grow with the largest position must not see the padding's.
                position_ids=positions.clamp(max=self.context - 1),
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=torch.tensor(columns, device=self._device),
            ).logits  # [B, columns, V]
        place = {column: index for index, column in enumerate(columns)}
        chosen = [(row, place[column]) for row, row_columns in enumerate(wanted) for column in row_columns]
        if [column for _, column in chosen] == [0] * len(rows):
            first: Tensor = logits[:, 0]
            return first
        at = torch.tensor(chosen, dtype=torch.long, device=self._device).view(-1, 2)
        scores: Tensor = logits[at[:, 0], at[:, 1]]
        return scores

    def _mask(self, positions: Tensor, length: int) -> Tensor:
        """Added to attention scores: 0 where a token may look, the smallest number elsewhere. # [B, 1, Q, length]"""
        keys = torch.arange(length, device=self._device)
        seen = keys <= positions[..., None]  # [B, Q, length]
        if self._window is not None:
            seen &= keys > positions[..., None] - self._window
        mask = torch.zeros(seen.shape, dtype=self._dtype, device=self._device)
        return mask.masked_fill_(~seen, torch.finfo(self._dtype).min)[:, None]


def _penalised(flight: Flight, wishes: Sequence[Wish]) -> Flight:
    """The flight with the tokens of penalised places chosen anew, which needs all tokens before them."""
    places = [place for place, wish in enumerate(wishes) if wish.history is not None]
    if not places:
        return flight
    assert flight.scores is not None
    chosen = [wishes[place] for place in places]
    histories, draws = [wish.history for wish in chosen], [wish.draw for wish in chosen]
    tokens = flight.tokens()
    for place, token in zip(
        places, choose(flight.scores[places], [wish.sampling for wish in chosen], histories, draws), strict=True
    ):
        tokens[place] = token
    return Flight(torch.tensor(tokens), None, flight.scores)


def has_kernels(device: torch.device) -> bool:
    """Whether the fused kernels run there."""
    return device.type == "cuda" and triton is not None


def _places(row: Row) -> list[Place]:
    return [(token, row.slot, row.start + ahead) for ahead, token in enumerate(row.ids)]
