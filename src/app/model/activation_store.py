"""What a decoder layer leaves for its backward pass: kept on the GPU, copied to pinned CPU memory, or recomputed."""

from collections import deque
from dataclasses import dataclass
from typing import Literal

import torch

Placement = Literal["keep", "offload", "recompute"]
Name = Literal["hidden", "attention", "middle", "gate_up"]
Key = tuple[int, Name]


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """Where one layer's intermediate results wait for the backward pass.

    Attributes:
        hidden: the layer's input; it cannot be recomputed.
        attention: query, key, value, attention output and its log-sum-exp.
        middle: the residual stream between attention and MLP.
        gate_up: the MLP's gate and up projections, in FP8 where the products are.
    """

    hidden: Literal["keep", "offload"] = "keep"
    attention: Placement = "recompute"
    middle: Placement = "recompute"
    gate_up: Placement = "recompute"


class ActivationStore:
    """Saves and gives back the intermediate results of all layers as the plan says.

    Copies run on a stream of their own. A tensor on its way to the CPU is held until its copy is done; a layer's
    tensors are fetched while the layer above it computes its gradients. Pinned buffers are reused by all steps that are
    not larger, so that a CUDA graph's copies go on pointing at memory that is theirs.

    Args:
        plans: one per layer.
        device: of the layers.
    """

    IN_FLIGHT = 2
    """Layers whose copies to the CPU may be under way before computing waits for them."""

    def __init__(self, plans: list[LayerPlan], device: torch.device) -> None:
        self.plans = plans
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._kept: dict[Key, tuple[torch.Tensor, ...]] = {}
        self._pinned: dict[Key, torch.Tensor] = {}
        self._out: dict[Key, list[torch.Tensor]] = {}
        self._outgoing: deque[tuple[int, torch.cuda.Event, tuple[torch.Tensor, ...]]] = deque()
        self._incoming: dict[Key, tuple[torch.cuda.Event, tuple[torch.Tensor, ...]]] = {}

    def placement(self, layer: int, name: Name) -> Placement:
        placement: Placement = getattr(self.plans[layer], name)
        return "keep" if placement == "offload" and self._stream is None else placement

    def begin(self) -> None:
        """Forgets what an interrupted pass left behind."""
        self._kept.clear()
        self._outgoing.clear()
        self._incoming.clear()

    def save(self, layer: int, name: Name, *tensors: torch.Tensor) -> None:
        """Keeps the tensors, copies them out, or drops them."""
        placement = self.placement(layer, name)
        if placement == "recompute":
            return
        if placement == "keep":
            self._kept[layer, name] = tensors
            return
        assert self._stream is not None
        self._out[layer, name] = self._buffers((layer, name), tensors)
        self._stream.wait_stream(torch.cuda.current_stream())
        event = torch.cuda.Event()
        with torch.cuda.stream(self._stream):
            for buffer, tensor in zip(self._out[layer, name], tensors, strict=True):
                buffer.copy_(tensor, non_blocking=True)
            event.record()
        self._outgoing.append((layer, event, tensors))
        while self._outgoing[0][0] <= layer - self.IN_FLIGHT:
            self._release_oldest()

    def _buffers(self, key: Key, tensors: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        """Pinned memory of the tensors' shapes and types, cut from this key's own."""
        needed = sum(_padded(tensor.nbytes) for tensor in tensors)
        if key not in self._pinned or self._pinned[key].numel() < needed:
            self._pinned[key] = torch.empty(needed, dtype=torch.uint8, pin_memory=True)
        start, buffers = 0, []
        for tensor in tensors:
            part = self._pinned[key][start : start + tensor.nbytes]
            buffers.append(part.view(tensor.dtype).view(tensor.shape))
            start += _padded(tensor.nbytes)
        return buffers

    def prefetch(self, layer: int) -> None:
        """Starts copying back what is out of a layer's tensors."""
        if layer < 0:
            return
        names: tuple[Name, ...] = ("hidden", "attention", "middle", "gate_up")
        for name in names:
            if self.placement(layer, name) == "offload":
                self._fetch((layer, name))

    def _fetch(self, key: Key) -> None:
        if key in self._incoming:
            return
        assert self._stream is not None
        tensors = tuple(torch.empty_like(buffer, device=self._stream.device) for buffer in self._out[key])
        self._stream.wait_stream(torch.cuda.current_stream())
        event = torch.cuda.Event()
        with torch.cuda.stream(self._stream):
            for buffer, tensor in zip(self._out[key], tensors, strict=True):
                tensor.copy_(buffer, non_blocking=True)
            event.record()
        self._incoming[key] = event, tensors

    def load(self, layer: int, name: Name) -> tuple[torch.Tensor, ...] | None:
        """The saved tensors, given up by the store; None where they are to be recomputed."""
        while self._outgoing:
            self._release_oldest()
        placement = self.placement(layer, name)
        if placement == "recompute":
            return None
        if placement == "keep":
            return self._kept.pop((layer, name))
        self._fetch((layer, name))
        event, tensors = self._incoming.pop((layer, name))
        torch.cuda.current_stream().wait_event(event)
        return tensors

    def _release_oldest(self) -> None:
        """Computing waits until the oldest outgoing copy is done; then its tensor's memory may be used again."""
        _, event, _ = self._outgoing.popleft()
        torch.cuda.current_stream().wait_event(event)


def _padded(size: int) -> int:
    """Up to the next multiple of 256 bytes, at which every type is aligned."""
    return -(-size // 256) * 256
