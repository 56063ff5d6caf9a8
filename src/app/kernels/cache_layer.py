"""Keys and values of one decoder layer for all requests, in the model's type or in int8."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True, eq=False)
class CacheLayer:
    """One layer's keys and values of all slots; see `app.generate.cache`.

    Attributes:
        keys, values: in the model's type, or int8. # [slots, H, positions, D]
        key_scales, value_scales: float32 steps of the int8 values; None without them. # [slots, H, positions]
    """

    keys: torch.Tensor
    values: torch.Tensor
    key_scales: torch.Tensor | None = None
    value_scales: torch.Tensor | None = None


def store(
    cache: CacheLayer, slots: torch.Tensor, positions: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> None:
    """Writes new keys and values to their places, in plain PyTorch.

    Args:
        cache: one layer's.
        slots, positions: of each token. # [B, 1] or [B, Q], [B, Q]
        keys, values: what is written there. # [B, Q, H, D]
    """
    for block, scales, new in ((cache.keys, cache.key_scales, keys), (cache.values, cache.value_scales, values)):
        if scales is None:
            block[slots, :, positions] = new.to(block.dtype)
        else:
            quantised, scale = quantise(new)
            block[slots, :, positions] = quantised
            scales[slots, :, positions] = scale


def quantise(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 values and their float32 step: each vector [..., D] has one. Off by at most half a step, 0.4 % of its
    largest element."""
    scale = values.abs().amax(-1).float() / 127
    divisor = torch.where(scale > 0, scale, 1.0)[..., None]
    return torch.round(values.float() / divisor).to(torch.int8), scale


def dequantised(cache: CacheLayer, slot: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of one slot's first positions, as the model computes with them. # [H, length, D]"""
    keys, values = cache.keys[slot, :, :length], cache.values[slot, :, :length]
    if cache.key_scales is None or cache.value_scales is None:
        return keys, values
    key_scales, value_scales = cache.key_scales[slot, :, :length], cache.value_scales[slot, :, :length]
    return keys * key_scales[..., None], values * value_scales[..., None]
