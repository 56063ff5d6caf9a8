"""Intervals side by side, as HTML."""

from collections.abc import Mapping
from typing import Any

from app.pages.charts import number


def strips(estimates: Mapping[str, Mapping[str, Any]], *, top: float) -> str:
    """One line for each model: its value as a dot, its interval as a bar, on a scale from 0 to ``top``."""
    lines = []
    for model, found in estimates.items():
        if found["value"] is None:
            continue
        low = found["low"] if found["low"] is not None else found["value"]
        high = found["high"] if found["high"] is not None else found["value"]
        left, right, dot = (100 * min(1.0, max(0.0, each) / top) for each in (low, high, found["value"]))
        lines.append(
            f'<span class="strip {model}" title="{model}: {number(found["value"])}, 95 % from {number(low)} to '
            f'{number(high)}"><i class="range" style="left:{left:.2f}%;width:{max(0.4, right - left):.2f}%"></i>'
            f'<i class="point" style="left:{dot:.2f}%"></i></span>'
        )
    return f'<span class="strips">{"".join(lines)}</span>'
