"""One pass of the model over rows of the slot cache: the only place where generation runs the model.

A faster decode step (CUDA graphs, fused kernels) belongs here, behind the same call.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from app.generate.adapter import LeanAdapter
from app.generate.cache import SlotCache, plan_context

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What one request gives to a forward pass.

    Attributes:
        slot: its place in the cache.
        start: tokens of it that the cache already holds.
        ids: the tokens that follow.
        scored: how many of the last of ``ids`` need scores.
    """

    slot: int
    start: int
    ids: Sequence[int]
    scored: int


class Forward:
    """The model with its cache.

    Attributes:
        context: positions in a slot.
        vocabulary: number of token ids.
    """

    def __init__(self, model: "PreTrainedModel | PeftModel", *, slots: int, context: int | None) -> None:
        # A PeftModel's adapter layers sit inside the transformers model; going straight to it saves a wrapper a step.
        self._model = model.get_base_model() if hasattr(model, "get_base_model") else model
        config = self._model.config
        embedding = self._model.get_input_embeddings().weight
        self._device, self._dtype = embedding.device, embedding.dtype
        self.context = plan_context(config, slots=slots, context=context, dtype=self._dtype, device=self._device)
        self.vocabulary = int(config.vocab_size)
        self.cache = SlotCache(config, slots=slots, context=self.context, dtype=self._dtype, device=self._device)
        self._window: int | None = getattr(config, "sliding_window", None)
        self._adapter = LeanAdapter(self._model)

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters that are on: what the cache holds is only good under the same ones."""
        return self._adapter.names

    @torch.inference_mode()
    def __call__(self, rows: Sequence[Row]) -> Tensor:
        """Writes the rows' tokens into the cache and returns the scores that were asked for.

        Returns:
            scores of the rows one after the other. # [sum of scored, V]
        """
        width = max(len(row.ids) for row in rows)
        length = max(row.start + len(row.ids) for row in rows)
        ids = [[*row.ids, *[0] * (width - len(row.ids))] for row in rows]
        places = [
            [*range(row.start, row.start + len(row.ids)), *[self.context] * (width - len(row.ids))] for row in rows
        ]
        positions = torch.tensor(places, device=self._device)  # [B, Q]
        self.cache.aim([row.slot for row in rows], positions, length)
        wanted = [[*range(len(row.ids) - row.scored, len(row.ids))] for row in rows]
        # The head is the largest matrix of a small model: it runs only where some row needs scores.
        columns = sorted({column for row in wanted for column in row}) or [0]
        with self._adapter.active():
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
