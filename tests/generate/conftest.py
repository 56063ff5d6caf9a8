"""Tiny models for the generation tests."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

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
