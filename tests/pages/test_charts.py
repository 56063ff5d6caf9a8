"""Plots that hold what they are given, whatever the numbers."""

import math
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.pages.charts import Curve, line_chart, moving_average, nice_ticks, number, tick_text

_curves = st.lists(st.tuples(st.integers(0, 10**6), st.floats(-1e9, 1e9)), min_size=1, max_size=60).map(
    lambda points: sorted(dict(points).items())
)


@given(st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=20))
def test_ticks_are_round_and_enclose_the_values(values: list[float]) -> None:
    ticks = nice_ticks(values)
    assert 2 <= len(ticks) <= 7
    margin = 1e-9 * max(1.0, *map(abs, values))
    assert ticks[0] <= min(values) + margin and max(values) - margin <= ticks[-1]
    assert ticks == sorted(set(ticks))


@given(_curves, _curves, st.booleans())
def test_every_point_lies_within_the_plot(first: Curve, second: Curve, noisy: bool) -> None:
    figure = line_chart("A & B", {"one": first, "two": second}, unit="<u>", noisy=noisy)
    root = ET.fromstring(figure)  # well-formed, everything escaped
    lines = list(root.iter("polyline"))
    assert len(lines) >= 2
    for line in lines:
        for point in line.attrib["points"].split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= 420 and 0 <= y <= 230


def test_ticks_have_labels_of_their_own() -> None:
    labels = [tick_text(tick) for tick in nice_ticks([1e-5, 2e-4])]
    assert labels == ["0", "5e-5", "1e-4", "1.5e-4", "2e-4"]


def test_what_is_no_number_is_passed_over() -> None:
    assert line_chart("x", {"a": [(1, math.nan), (2, math.inf)]}, unit="") == ""
    assert "polyline" in line_chart("x", {"a": [(1, 5.0), (2, math.nan)]}, unit="")


def test_a_moving_average_keeps_steps_and_a_constant() -> None:
    assert moving_average([(step, 3.0) for step in range(100)]) == [(step, 3.0) for step in range(100)]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0.00"),
        (4.2213, "4.22"),
        (0.0312, "0.031"),
        (168.4, "168"),
        (16007, "16,007"),
        (2.5e6, "2.5M"),
    ],
)
def test_numbers_are_short(value: float | None, text: str) -> None:
    assert number(value) == text
