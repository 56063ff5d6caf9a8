"""Forward and backward pass of a micro-batch as one CUDA graph, replayed while the shapes stay the same.

A step of a 7B model launches some 6,000 kernels; at 2,048 tokens on a fast GPU the CPU is slower at launching them
than the GPU at running them. Gradients are added to the parameters' ``grad``, so accumulation, clipping and any
optimizer work as without the graph.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

Shapes = tuple[tuple[str, tuple[int, ...]], ...]


class StepGraph:
    """Runs ``loss`` and its backward pass: eagerly the first time a shape comes, from a graph afterwards.

    Args:
        loss: named inputs -> scalar; must not look at values on the CPU. Its backward pass reaches ``parameters``.
        parameters: the trained ones. Between steps their ``grad`` may be zeroed or set to None.
        largest: how many graphs are kept; each holds its own activations. Other shapes run eagerly.
    """

    def __init__(
        self, loss: Callable[..., Tensor], parameters: Sequence[nn.Parameter], *, largest: int = 1
    ) -> None:
        self._loss, self._parameters, self._largest = loss, list(parameters), largest
        self._seen: set[Shapes] = set()
        self._graphs: dict[Shapes, tuple[torch.cuda.CUDAGraph, dict[str, Tensor], Tensor]] = {}
        self._grads: list[Tensor] = []
        self._broken = False

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Adds this micro-batch's gradients to the parameters' and returns the detached loss."""
        shapes: Shapes = tuple((name, tuple(value.shape)) for name, value in sorted(inputs.items()))
        if shapes not in self._graphs and not self._capture(shapes, inputs):
            loss = self._loss(**inputs)
            loss.backward()
            return loss.detach()
        graph, static, result = self._graphs[shapes]
        for name, value in inputs.items():
            static[name].copy_(value, non_blocking=True)
        self._attach_grads()
        graph.replay()
        return result.clone()

    def _attach_grads(self) -> None:
        """The graph adds to fixed buffers; an optimizer that set ``grad`` to None meant zero."""
        dropped = [i for i, parameter in enumerate(self._parameters) if parameter.grad is not self._grads[i]]
        if not dropped:
            return
        torch._foreach_zero_([self._grads[i] for i in dropped])
        for i in dropped:
            other = self._parameters[i].grad
            if other is not None:
                self._grads[i].copy_(other)
            self._parameters[i].grad = self._grads[i]

    def _capture(self, shapes: Shapes, inputs: Mapping[str, Tensor]) -> bool:
        """Records the graph, unless this shape is new: its first, eager step compiles kernels and makes buffers."""
        if self._broken or len(self._graphs) >= self._largest or not all(value.is_cuda for value in inputs.values()):
            return False
        if shapes not in self._seen:
            self._seen.add(shapes)
            return False
        static = {name: value.clone() for name, value in inputs.items()}
        if not self._grads:
            self._grads = [
                torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                for parameter in self._parameters
            ]
        self._attach_grads()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                loss = self._loss(**static)
                loss.backward()
        except RuntimeError as fault:
            self._broken = True
            torch.cuda.synchronize()
            warnings.warn(f"the step cannot be captured in a CUDA graph and runs without: {fault}", stacklevel=3)
            return False
        self._graphs[shapes] = graph, static, loss.detach()
        return True
