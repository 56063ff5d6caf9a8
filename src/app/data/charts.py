"""Bar charts as inline SVG: no script, no file beside the page, colours from the page's style sheet."""

from collections.abc import Mapping, Sequence
from html import escape

_WIDTH, _HEIGHT = 640, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 68, 18, 30, 34


def bars(rows: Mapping[str, int], *, tone: str = "accent") -> str:
    """Horizontal bars with their names and values; HTML, so that names wrap on a phone."""
    if not rows:
        return '<p class="quiet">none</p>'
    top = max(1, *rows.values())
    lines = []
    for name, value in rows.items():
        width = max(0.5, 100 * value / top) if value else 0.0
        lines.append(
            f'<div class="bar" title="{escape(name)}: {value:,}"><span class="name">{escape(name)}</span>'
            f'<span class="track"><span class="fill {tone}" style="width:{width:.2f}%"></span></span>'
            f'<span class="value">{value:,}</span></div>'
        )
    return f'<div class="bars">{"".join(lines)}</div>'


def stacked(parts: Mapping[str, int], tones: Sequence[str]) -> str:
    """One bar cut into shares, with a legend below."""
    total = max(1, sum(parts.values()))
    shown = [(name, value, tone) for (name, value), tone in zip(parts.items(), tones, strict=True) if value]
    cells = "".join(
        f'<span class="fill {tone}" style="flex:{value} 0 3px" title="{escape(name)}: {value:,}"></span>'
        for name, value, tone in shown
    )
    legend = "".join(
        f'<span><i class="dot {tone}"></i>{escape(name)} <b>{value:,}</b> <small>{value / total:.1%}</small></span>'
        for name, value, tone in shown
    )
    return f'<div class="stack">{cells}</div><div class="legend">{legend}</div>'


def histogram(edges: Sequence[int], counts: Sequence[int], *, longer: int, marks: Sequence[int], unit: str) -> str:
    """Counts between edges as SVG columns, with vertical marks where they lie inside, and what lies beyond."""
    if not counts:
        return '<p class="quiet">no rows</p>'
    top = _nice(max(counts))
    low, high = edges[0], edges[-1]
    wide, tall = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x(value: float) -> float:
        return _LEFT + wide * (value - low) / (high - low)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="rows by length in {escape(unit)}">']
    for share in (0, 0.5, 1):
        y = _TOP + tall * (1 - share)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(top * share)}</text>')
    for start, end, count in zip(edges, edges[1:], counts, strict=False):
        if count:
            height = max(1.0, tall * count / top)
            parts.append(
                f'<rect class="accent" x="{x(start) + 0.5:.1f}" y="{_TOP + tall - height:.1f}" rx="1.5" '
                f'width="{max(1.0, x(end) - x(start) - 1):.1f}" height="{height:.1f}">'
                f"<title>{start:,} to {end - 1:,} {escape(unit)}: {count:,} rows</title></rect>"
            )
    step = _nice((high - low) / 6)
    for number in range(int((high - low) / step) + 1):
        value = low + number * step
        parts.append(f'<text x="{x(value):.1f}" y="{_HEIGHT - 14}" text-anchor="middle">{_short(value)}</text>')
    for mark in marks:
        if low < mark < high:
            parts.append(
                f'<line class="mark" x1="{x(mark):.1f}" x2="{x(mark):.1f}" y1="{_TOP - 6}" y2="{_TOP + tall}"/>'
            )
            parts.append(f'<text class="marked" x="{x(mark):.1f}" y="{_TOP - 10}" text-anchor="middle">{mark}</text>')
    parts.append("</svg>")
    beyond = f" {longer:,} rows are longer than shown." if longer else ""
    return f"<figure>{''.join(parts)}<figcaption>Rows by length in {escape(unit)}.{beyond}</figcaption></figure>"


def _nice(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, 50 …"""
    power = 1.0
    while power * 10 <= value:
        power *= 10
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value)


def _short(value: float) -> str:
    return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1000:g}k" if value >= 10_000 else f"{value:,.0f}"
