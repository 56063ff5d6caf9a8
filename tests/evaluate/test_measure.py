"""Measuring takes what memory there is."""

import pytest

from app.errors import MachineError
from app.evaluate import measure
from app.evaluate.measure import open_engine
from app.generate import cache
from conftest import TinyCheckpoint
from support.opening import open_plain


def test_fewer_slots_where_memory_is_short(tiny: TinyCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_plain(tiny("smollm2"), "smollm2")
    heads, width = cache.head_shape(session.causal_lm.config)
    position = 2 * session.causal_lm.config.num_hidden_layers * heads * width * 4  # bytes, float32
    tried = []
    real = measure.Engine
    monkeypatch.setattr(measure, "Engine", lambda *a, **k: (tried.append(k["slots"]), real(*a, **k))[1])
    monkeypatch.setattr(cache, "_free_memory", lambda device: 2 * 2.5 * 101 * position)  # half of it may be used
    engine = open_engine(session, slots=8, context=100)
    assert tried == [8, 4, 2]
    assert engine.context == 100
    monkeypatch.setattr(cache, "_free_memory", lambda device: 2 * 0.5 * 101 * position)
    with pytest.raises(MachineError, match="cache of 1 slots"):
        open_engine(session, slots=8, context=100)
