"""Tiny models and questions for the generation tests."""

import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from app.generate.sampling import Sampling
from app.generate.session import Session
from support.opening import open_float32

OpenTiny = Callable[[str], Session]


@pytest.fixture(scope="session")
def open_tiny(tiny: Callable[[str], Path]) -> OpenTiny:
    """``open_tiny("phi3")``: a tiny model of the family's architecture, NF4 + adapter; sliding windows of 24."""

    @cache
    def opened(family_name: str) -> Session:
        window = {"sliding_window": 24} if family_name in ("mistral", "phi3") else {}
        return open_float32(tiny(family_name), family_name, alpha=16, **window)

    return opened


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Computes with so many."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def questions(count: int) -> tuple[list[list[int]], list[Sampling]]:
    """Prompts of several lengths, each with options of its own: all that may stand side by side in a batch."""
    rng = random.Random(7)
    prompts = [[rng.randrange(300, 1000) for _ in range(rng.choice([1, 5, 17, 40]))] for _ in range(count)]
    prompts[0] = [400, 401, 402, 403] * 8
    options = [
        Sampling(
            temperature=rng.choice([0.0, 0.9]),
            top_p=rng.choice([1.0, 0.9]),
            top_k=rng.choice([0, 40]),
            min_p=rng.choice([0.0, 0.02]),
            repetition_penalty=rng.choice([1.0, 1.0, 1.2]),
            logprobs=rng.choice([None, None, 2]),
            seed=seed,
            max_tokens=rng.choice([1, 3, 12, 25]),
        )
        for seed in range(count)
    ]
    # Two that repeat themselves, so that drafts come true.
    prompts[1] = list(range(300, 310)) * 4
    options[0] = Sampling(max_tokens=60)
    options[1] = Sampling(max_tokens=40, temperature=0.1, seed=5, repetition_penalty=0.8, frequency_penalty=0.1)
    return prompts, options
