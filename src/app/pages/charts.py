"""Curves over training steps as inline SVG: no script, no file beside the page, colours from its style sheet."""

import math
from collections.abc import Mapping, Sequence
from html import escape

_NARROW, _WIDE, _HEIGHT = 420, 860, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 14, 30
_FEW = 30

POINTS = 400
"""The most points kept of a curve: about what a plot's width can show."""

Curve = list[tuple[int, float]]
"""(step, value) in the order of steps."""


def number(value: float | None, *, share: bool = False) -> str:
    """A value as short as it can be read without loss of sense."""
    if value is None:
        return "–"
    if share:
        return f"{value:.1%}"
    size = abs(value)
    if size >= 1000:
        return f"{value / 1e6:.3g}M" if size >= 1e6 else f"{value:,.0f}"
    return f"{value:.0f}" if size >= 100 else f"{value:.2f}" if size >= 0.1 or value == 0 else f"{value:.2g}"


def line_chart(title: str, curves: Mapping[str, Curve], *, unit: str, noisy: bool = False, wide: bool = False) -> str:
    """Values over optimizer steps; curves of few points have them marked.

    Args:
        title: above it.
        curves: name -> (step, value), at most two; values that are no numbers are passed over.
        unit: of the values, for the reader's tooltip.
        noisy: draw a moving average over curves of many points, and the points themselves faintly.
        wide: over the whole of a page's column instead of half of it.
    """
    shown = {name: [(x, y) for x, y in curve if y is not None and math.isfinite(y)] for name, curve in curves.items()}
    shown = {name: curve for name, curve in shown.items() if curve}
    if not shown:
        return ""
    steps = [x for curve in shown.values() for x, _ in curve]
    first, last = min(steps), max(max(steps), min(steps) + 1)
    ticks = nice_ticks([y for curve in shown.values() for _, y in curve])
    low, high = ticks[0], ticks[-1]
    width = _WIDE if wide else _NARROW

    def at(x: float, y: float) -> str:
        across = _LEFT + (width - _LEFT - _RIGHT) * (x - first) / (last - first)
        down = _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - (y - low) / (high - low))
        return f"{across:.1f},{down:.1f}"

    parts = [f'<svg viewBox="0 0 {width} {_HEIGHT}" role="img" aria-label="{escape(title)} over training steps">']
    for tick in ticks:
        height = at(first, tick).split(",")[1]
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{height}" y2="{height}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{float(height) + 4:.1f}" text-anchor="end">{tick_text(tick)}</text>')
    for share, anchor in ((0, "start"), (0.5, "middle"), (1, "end")):
        step = first + (last - first) * share
        place = at(step, low).split(",")[0]
        parts.append(f'<text x="{place}" y="{_HEIGHT - 9}" text-anchor="{anchor}">{step:,.0f}</text>')
    for (name, curve), tone in zip(shown.items(), ("accent", "warn"), strict=False):
        averaged = noisy and len(curve) > _FEW
        drawn = [(curve, " faint"), (moving_average(curve), "")] if averaged else [(curve, "")]
        for line, strength in drawn:
            path = " ".join(at(x, y) for x, y in line)
            parts.append(f'<polyline class="curve {tone}{strength}" points="{path}"/>')
        if len(curve) <= _FEW:
            for x, y in curve:
                across, down = at(x, y).split(",")
                parts.append(
                    f'<circle class="knot {tone}" cx="{across}" cy="{down}" r="3.5">'
                    f"<title>{escape(name)}, step {x:,}: {number(y)} {escape(unit)}</title></circle>"
                )
    parts.append("</svg>")
    legend = "".join(
        f'<span><i class="dot {tone}"></i>{escape(name)} <b>{number(curve[-1][1])}</b></span>'
        for (name, curve), tone in zip(shown.items(), ("accent", "warn"), strict=False)
    )
    return f'<figure class="plot"><h3>{escape(title)}</h3>{"".join(parts)}<div class="legend">{legend}</div></figure>'


def thin(curve: Curve) -> Curve:
    """At most POINTS of a curve, evenly chosen, first and last kept."""
    if len(curve) <= POINTS:
        return curve
    step = (len(curve) - 1) / (POINTS - 1)
    return [curve[round(number * step)] for number in range(POINTS)]


def moving_average(curve: Curve) -> Curve:
    """Each value with its neighbours, a twentieth of the curve to each side."""
    reach = max(1, len(curve) // 20)
    values = [y for _, y in curve]
    windows = (values[max(0, place - reach) : place + reach + 1] for place in range(len(values)))
    return [(x, sum(window) / len(window)) for (x, _), window in zip(curve, windows, strict=True)]


def nice_ticks(values: Sequence[float], count: int = 4) -> list[float]:
    """Round numbers from below the least to above the greatest value, at least two."""
    low, high = min(values), max(values)
    if high - low < 1e-12 * max(1e-12, abs(high)):  # a constant
        low, high = (0.0, high) if high > 1e-12 else (high - 1, high + 1)
    power = 10 ** math.floor(math.log10((high - low) / count))
    step = next(each * power for each in (1, 2, 2.5, 5, 10) if each * power * count >= high - low)
    start, end = math.floor(low / step), math.ceil(high / step)
    return [index * step for index in range(start, end + 1)]


def tick_text(value: float) -> str:
    """An axis label."""
    size = abs(value)
    if size >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-") if 0 < size < 0.001 else f"{value:.6g}"
