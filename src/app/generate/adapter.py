"""LoRA layers without the generality of peft's forward, for as long as the model generates.

peft's layer looks at merging, mixed batches, dropout, casts and variants at every call; at one token a step that is
time: SmolLM2 with an adapter on all linear layers took 33 ms of processor time a step and 28 ms so (one thread of an
AVX512-BF16 CPU; 48 and 41 ms at batch 8; 2026-11). On a GPU `app.generate.decoder` fuses base and adapter.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

# MKL multiplies fewer than four rows by another routine, whose sums round differently, and gives each thread a share of
# the rows. Where every share is a multiple of four, a row's product is the same in any batch: with two threads none of
# 8,100 slices of 600 rows differed, and 2,552 where the rows were only filled up to four (float32, 2026-11).
# bitsandbytes' and oneDNN's bfloat16 products always are the same.
_ROWS = 4


class LeanAdapter:
    """The LoRA layers of a model that are plain enough for a direct forward.

    A layer is plain where exactly one adapter is on, unmerged, without variant (DoRA …) and without bias of its own.
    All others keep peft's forward. Weights are read at each call, so the adapter may change or be switched off.
    """

    def __init__(self, model: nn.Module) -> None:
        # peft imports bitsandbytes, which `app.model.load` must import first to quieten it.
        from peft.tuners.lora import LoraLayer

        self._layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
        self._names: tuple[str, ...] | None = None
        self._forwards: list[tuple[dict[str, object], Callable[[Tensor], Tensor]]] = []
        self._input = _Input()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the adapters that are on; all layers are switched together, so the first one tells."""
        if not self._layers or self._layers[0].disable_adapters:
            return ()
        return tuple(self._layers[0].active_adapters)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within it plain layers run the direct forward. Call under `torch.inference_mode`: there are no gradients."""
        names = self.names
        if names != self._names:
            self._names = names
            plain = [layer for layer in self._layers if len(names) == 1 and is_plain(layer, names[0])]
            self._forwards = [(layer.__dict__, _direct(layer, names[0], self._input)) for layer in plain]
        for attributes, forward in self._forwards:
            attributes["forward"] = forward
        try:
            yield
        finally:
            for attributes, _ in self._forwards:
                del attributes["forward"]
            self._input.forget()


def is_plain(layer: Any, name: str) -> bool:
    """Whether base(x) + scaling * B(A(x)) is all that peft's layer computes in eval mode."""
    return bool(
        isinstance(layer.get_base_layer(), nn.Linear)
        and name in layer.lora_A
        and not layer.merged
        and not layer.lora_variant
        and not layer.lora_bias[name]
    )


class _Input:
    """Rows in the adapters' float32 and padded, made once for layers that take the same ones.

    SmolLM2 wrote 28 and 30 tokens/s with a conversion and a padding for each of seven layers, and so 28 and 31
    (two rounds in turn, 2026-11).
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[int, int], Tensor] = {}
        self.forget()

    def forget(self) -> None:
        """Lets go of the last rows, whose memory may now hold others."""
        self._x: Tensor | None = None

    def __call__(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """[B, Q, D] -> [B * Q and padding, D]."""
        if x is not self._x:
            self._x, self._rows = x, self._padded(x.flatten(0, -2), dtype)
        return self._rows

    def _padded(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        if rows.device.type != "cpu":
            return rows.to(dtype)
        count, width = rows.shape
        share = _ROWS * torch.get_num_threads()
        size = -(-count // share) * share
        if count > 4 * share:  # a prompt's: a buffer of each length would fill the memory
            return F.pad(rows, (0, 0, 0, size - count)).to(dtype) if size > count else rows.to(dtype)
        if (size, width) not in self._buffers:
            self._buffers[size, width] = torch.zeros(size, width, dtype=dtype)
        self._buffers[size, width][:count].copy_(rows)  # what lies behind is some earlier step's
        return self._buffers[size, width]


def _direct(layer: Any, name: str, padded: _Input) -> Callable[[Tensor], Tensor]:
    base, down, up = layer.get_base_layer(), layer.lora_A[name], layer.lora_B[name]
    scaling = float(layer.scaling[name])

    def forward(x: Tensor) -> Tensor:
        # In the adapter's own float32, as peft does; its sum with the base's product is rounded once, not twice.
        low = F.linear(padded(x, down.weight.dtype), down.weight)  # [B * Q and padding, r]
        result: Tensor = base(x)
        return result.add_(F.linear(low, up.weight)[: x.numel() // x.shape[-1]].view(result.shape), alpha=scaling)

    return forward
