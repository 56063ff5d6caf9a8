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

    def __init__(self, loss: Callable[..., Tensor], parameters: Sequence[nn.Parameter], *, largest: int = 1) -> None:
        self._loss, self._parameters, self._largest = loss, list(parameters), largest
        self._seen: set[Shapes] = set()
        self._graphs: dict[Shapes, tuple[torch.cuda.CUDAGraph, dict[str, Tensor], Tensor]] = {}
        # Made before the first step: small tensors that live on must not stand between large ones that come and go.
        self._grads = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._broken = False

    def __call__(self, inputs: Mapping[str, Tensor], *, record: bool = True) -> Tensor:
        """Adds this micro-batch's gradients to the parameters' and returns the detached loss.

        Args:
            inputs: of the loss, by name.
            record: whether these shapes may get a graph.
        """
        self._attach_grads()
        shapes: Shapes = tuple((name, tuple(value.shape)) for name, value in sorted(inputs.items()))
        capturable = record and not self._broken and all(value.is_cuda for value in inputs.values())
        if capturable and shapes in self._seen and len(self._graphs) < self._largest and shapes not in self._graphs:
            self._capture(shapes, inputs)
        if shapes in self._graphs:
            graph, static, result = self._graphs[shapes]
            for name, value in inputs.items():
                static[name].copy_(value, non_blocking=True)
            graph.replay()
            return result.clone()
        loss = self._run(inputs)
        if capturable and shapes not in self._seen:
            # The graph has its own memory, and optimizer states, made next, must not split the large free blocks.
            torch.cuda.empty_cache()
        self._seen.add(shapes)
        return loss

    def release(self) -> None:
        """Gives back the graphs' memory; the next step of a shape that came before is recorded again."""
        if self._graphs:
            self._graphs.clear()
            torch.cuda.empty_cache()

    def _run(self, inputs: Mapping[str, Tensor]) -> Tensor:
        loss = self._loss(**inputs)
        loss.backward()
        return loss.detach()

    def _attach_grads(self) -> None:
        """Gradients are added to fixed buffers; whoever set ``grad`` to None meant zero."""
        dropped = [i for i, parameter in enumerate(self._parameters) if parameter.grad is not self._grads[i]]
        if not dropped:
            return
        torch._foreach_zero_([self._grads[i] for i in dropped])
        for i in dropped:
            other = self._parameters[i].grad
            if other is not None:
                self._grads[i].copy_(other)
            self._parameters[i].grad = self._grads[i]

    def _capture(self, shapes: Shapes, inputs: Mapping[str, Tensor]) -> None:
        """Records the graph, which runs nothing; a step that cannot be recorded stays eager, with one warning."""
        static = {name: value.clone() for name, value in inputs.items()}
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                loss = self._run(static)
        except RuntimeError as fault:
            self._broken = True
            torch.cuda.synchronize()
            warnings.warn(f"the step cannot be captured in a CUDA graph and runs without: {fault}", stacklevel=3)
            return
        self._graphs[shapes] = graph, static, loss
