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
            self._forwards = [(layer.__dict__, _direct(layer, names[0])) for layer in plain]
        for attributes, forward in self._forwards:
            attributes["forward"] = forward
        try:
            yield
        finally:
            for attributes, _ in self._forwards:
                del attributes["forward"]


def is_plain(layer: Any, name: str) -> bool:
    """Whether base(x) + scaling * B(A(x)) is all that peft's layer computes in eval mode."""
    return bool(
        isinstance(layer.get_base_layer(), nn.Linear)
        and name in layer.lora_A
        and not layer.merged
        and not layer.lora_variant
        and not layer.lora_bias[name]
    )


def _direct(layer: Any, name: str) -> Callable[[Tensor], Tensor]:
    base, down, up = layer.get_base_layer(), layer.lora_A[name], layer.lora_B[name]
    scaling = float(layer.scaling[name])

    def forward(x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)  # [B * Q, D]
        count = rows.shape[0]
        missing = -count % (_ROWS * torch.get_num_threads()) if x.device.type == "cpu" else 0
        if missing:  # padding by none copies the rows
            rows = F.pad(rows, (0, 0, 0, missing))
        # In the adapter's own float32, as peft does; its sum with the base's product is rounded once, not twice.
        low = F.linear(rows.to(down.weight.dtype), down.weight)  # [B * Q, r]
        result: Tensor = base(x)
        return result.add_(F.linear(low, up.weight)[:count].view(result.shape), alpha=scaling)

    return forward
