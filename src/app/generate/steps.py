"""Steps of the fast decoder as CUDA graphs, launched without waiting for what the step before has chosen.

A 7B model's step is some 320 kernels; launched one by one from Python they take ten times as long as they run. A graph
is captured the first time its size comes up. Sizes are few: missing rows repeat the last one, which writes the same
numbers to the same places.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from app.generate.decoder import Decoder
from app.generate.sampling import Sampling, choose_on_device
from app.kernels.nf4_gemv import ROWS

_ROWS = (1, 2, 4, 8, ROWS)
# Tokens of a prompt read at once. A library chooses how to multiply by this number, so it must follow from the prompt
# alone; padding costs time where arithmetic is slow, each size memory and a second to capture.
_CHUNKS = (32, 64, 128, 192, 256, 384, 512, 768, 1024)
Place = tuple[int, int, int]
"""A token's id, slot and position. An id below 0 is the token chosen at place -1 - id of the step before."""


def largest_chunk(device: torch.device) -> int:
    """Tokens of prompts read in one step, between the tokens of running answers.

    A pass of 1,024 takes 37 ms with Mistral-7B on an H100 (2026-11), and by its arithmetic half a second on an RTX
    4060: small GPUs read less at once. On one machine it must not change, since it decides how sums are rounded.
    """
    if device.type == "cuda" and torch.cuda.get_device_properties(device).multi_processor_count < 64:
        return 256
    return _CHUNKS[-1]


class Flight:
    """A launched step, whose tokens are on their way to the host.

    Attributes:
        scores: of all its places, if they were kept. # [places, V]
    """

    def __init__(self, tokens: Tensor, landed: torch.cuda.Event | None, scores: Tensor | None) -> None:
        self.scores = scores
        self._tokens = tokens
        self._landed = landed

    def tokens(self) -> list[int]:
        """The token chosen at each place; waits for them."""
        if self._landed is not None:
            self._landed.synchronize()
        chosen: list[int] = self._tokens.tolist()
        return chosen


class Steps:
    """Runs a decoder on any number of places.

    Args:
        decoder: the model.
        slots: of its cache.
        device: of both.
    """

    def __init__(self, decoder: Decoder, *, slots: int, device: torch.device) -> None:
        self.decoder = decoder
        self._device = device
        most = -(-slots // ROWS) * ROWS
        self._before, self._chosen = (torch.zeros(most, dtype=torch.long, device=device) for _ in range(2))
        self._graphs: dict[tuple[str, int], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._fields: dict[tuple[str, int], Tensor] = {}
        self._pool: Any = None

    @torch.inference_mode()
    def write(
        self, places: Sequence[Place], samplings: Sequence[Sampling], draws: Sequence[float], *, keep_scores: bool
    ) -> Flight:
        """Launches a step of single tokens and the choice of those that follow them.

        Args:
            places: the tokens.
            samplings, draws: how to choose what follows each, and the number in [0, 1) that does.
            keep_scores: whether the flight carries the scores.
        """
        kept = []
        for start in range(0, len(places), ROWS):
            group = slice(start, min(start + ROWS, len(places)))
            count = group.stop - start
            scores = self._run("write", next(size for size in _ROWS if size >= count), places[group])[:count]
            self._chosen[group] = choose_on_device(scores, samplings[group], draws[group])
            if keep_scores:
                kept.append(scores.clone())
        tokens = torch.empty(len(places), dtype=torch.long, pin_memory=self._device.type == "cuda")
        tokens.copy_(self._chosen[: len(places)], non_blocking=True)
        self._before.copy_(self._chosen)
        landed = None
        if self._device.type == "cuda":
            landed = torch.cuda.Event()
            landed.record()
        return Flight(tokens, landed, torch.cat(kept) if kept else None)

    @torch.inference_mode()
    def read(self, places: Sequence[Place]) -> Tensor:
        """Reads at most `largest_chunk` tokens of one prompt; returns the scores after the last one. # [V]"""
        return self._run("read", next(size for size in _CHUNKS if size >= len(places)), places).clone()

    def _run(self, kind: str, size: int, places: Sequence[Place]) -> Tensor:
        """Scores from the graph of that kind and size."""
        key = kind, size
        if key not in self._fields:
            self._fields[key] = torch.zeros(3, size, dtype=torch.long, device=self._device)
        padded = [*places, *[places[-1]] * (size - len(places))]
        # Pinned memory is not used again before the copy out of it has run: torch's allocator sees to that.
        fields = torch.tensor(list(zip(*padded, strict=True)), pin_memory=self._device.type == "cuda")
        self._fields[key].copy_(fields, non_blocking=True)

        def step() -> Tensor:
            ids, slots, positions = self._fields[key]
            known = torch.where(ids < 0, self._before[(-1 - ids).clamp(min=0)], ids)
            decode = self.decoder.write if kind == "write" else self.decoder.read
            return decode(known, slots.int(), positions.int())

        return self._replay(key, step) if self._device.type == "cuda" else step()

    def _replay(self, key: tuple[str, int], step: Callable[[], Tensor]) -> Tensor:
        if key not in self._graphs:
            # Kernels are compiled and libraries set up outside of the capture, on a stream of its own as torch wants.
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                step()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            # A server's other threads may use the GPU meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                result = step()
            self._graphs[key] = graph, result
        graph, result = self._graphs[key]
        graph.replay()
        return result
