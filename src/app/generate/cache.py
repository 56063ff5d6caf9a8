"""Keys and values of all requests in one block of memory per layer, a slot for each request."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from transformers import Cache, PretrainedConfig

from app.errors import ConfigError, MachineError
from app.kernels.cache_layer import CacheLayer, store

CacheBits = Literal[16, 8]
"""8: int8 values with a step for each token's key and value of each head; half the memory. 16: the model's own type."""

# Of the memory that is free once the model is loaded; the rest is for activations and other programs.
_SHARE = 0.5


class SlotCache(Cache):  # type: ignore[misc]  # mypy does not follow transformers (pyproject.toml)
    """A static cache in slots for transformers' model classes.

    Before a forward pass, `aim` says which slots the batch's rows are and where each of their tokens stands; every
    attention layer then writes its keys and values there and gets back all of the slots up to the longest row. What
    lies behind a row's own end is left from earlier requests: the attention mask must exclude it.

    A token aimed at position ``context``, one past the last, is written where nothing reads: batches are padded so.

    Attributes:
        blocks: the memory, layer by layer.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        *,
        slots: int,
        context: int,
        dtype: torch.dtype,
        device: torch.device,
        bits: CacheBits = 16,
    ):
        super().__init__(layers=[])
        heads, width = head_shape(config)

        # Zeros, since a masked value still counts as 0 x value, which must not be 0 x NaN.
        def block() -> Tensor:
            kind = torch.int8 if bits == 8 else dtype
            return torch.zeros(slots, heads, context + 1, width, dtype=kind, device=device)

        def scales() -> Tensor | None:
            return torch.zeros(slots, heads, context + 1, device=device) if bits == 8 else None

        self.blocks = [
            CacheLayer(keys=block(), values=block(), key_scales=scales(), value_scales=scales())
            for _ in range(config.num_hidden_layers)
        ]
        self.context = context
        self._index = torch.empty(0, dtype=torch.long)
        self._positions = torch.empty(0, dtype=torch.long)
        self._slots: slice | Tensor = slice(0, 0)
        self._length = 0

    def aim(self, slots: Sequence[int], positions: Tensor, length: int) -> None:
        """Sets where the next forward pass writes and reads.

        Args:
            slots: of the batch's rows.
            positions: of each token in its slot. # [B, Q]
            length: positions read back, from 0; at least the largest written one + 1 that is not padding.
        """
        first = slots[0]
        self._index = torch.tensor(slots, device=positions.device)[:, None]  # [B, 1]
        self._positions = positions
        # Neighbouring slots are read as a view. Others are copied together: 2 x layers x rows x length x width.
        neighbours = list(slots) == list(range(first, first + len(slots)))
        self._slots = slice(first, first + len(slots)) if neighbours else self._index[:, 0]
        self._length = length

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Writes one layer's new keys and values and returns all the rows need. # [B, H, Q, D] -> [B, H, length, D]"""
        block = self.blocks[layer_idx]
        store(block, self._index, self._positions, key_states.transpose(1, 2), value_states.transpose(1, 2))
        return (
            self._read(block.keys, block.key_scales, key_states.dtype),
            self._read(block.values, block.value_scales, key_states.dtype),
        )

    def _read(self, block: Tensor, scales: Tensor | None, dtype: torch.dtype) -> Tensor:
        part = block[:, :, : self._length][self._slots]
        if scales is None:
            return part
        return (part * scales[:, :, : self._length][self._slots][..., None]).to(dtype)

    def move(self, source: int, target: int, length: int) -> None:
        """Copies the first ``length`` positions of one slot over another."""
        for layer in self.blocks:
            for block in (layer.keys, layer.values, layer.key_scales, layer.value_scales):
                if block is not None:
                    block[target, :, :length] = block[source, :, :length]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions the last forward pass could read."""
        return self._length

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Positions in a slot."""
        return self.context


def head_shape(config: PretrainedConfig) -> tuple[int, int]:
    """Number of key/value heads, and the width of one."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(heads), int(width)


def longest_context(config: PretrainedConfig) -> int:
    """Positions the model was made for.

    LongRoPE (Phi-3's 128k variants) turns all positions differently once one lies past the original length, so a
    long request would change its neighbours in the batch: such models are held to the original length.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    limit = int(config.max_position_embeddings)
    if rope.get("rope_type") == "longrope":
        limit = min(limit, int(rope["original_max_position_embeddings"]))
    return limit


def plan_context(
    config: PretrainedConfig,
    *,
    slots: int,
    context: int | None,
    dtype: torch.dtype,
    device: torch.device,
    bits: CacheBits = 16,
) -> int:
    """Positions per slot: those asked for, or as many as the model takes and half of the free memory holds.

    Raises:
        ConfigError: ``slots`` or ``context`` is below 1 or 2, or the model is not made for so many.
        MachineError: the cache does not fit.
    """
    longest = longest_context(config)
    if slots < 1:
        raise ConfigError(f"slots is {slots}", where="slots", remedy="choose 1 or more")
    if context is not None and not 2 <= context <= longest:
        raise ConfigError(
            f"context is {context}, but this model takes 2 to {longest} tokens",
            where="context",
            remedy="choose a value in that range, or leave it out",
        )
    heads, width = head_shape(config)
    # An int8 vector has a float32 step.
    vector = width + 4 if bits == 8 else width * dtype.itemsize
    per_position = 2 * config.num_hidden_layers * heads * vector
    free = _free_memory(device)
    fits = int(free * _SHARE) // (slots * per_position) - 1
    wanted = context or min(longest, fits)
    if wanted > fits or wanted < 2:
        raise MachineError(
            f"a cache of {slots} slots with {max(wanted, 2)} tokens each needs "
            f"{slots * max(wanted, 2) * per_position / 2**30:.2f} GiB; {free * _SHARE / 2**30:.2f} GiB may be used",
            where="slots, context",
            remedy="ask for fewer slots, a shorter context or an 8-bit cache, or free memory",
        )
    return wanted


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return int(psutil.virtual_memory().available)
