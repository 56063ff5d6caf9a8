"""Intervals drawn to scale."""

from app.evaluate.charts import strips


def test_strips_stay_on_their_scale_and_miss_no_interval() -> None:
    estimate = {"value": 3.0, "low": None, "high": None}
    html = strips({"base": {"value": 9.0, "low": 1.0, "high": 20.0}, "tuned": estimate}, top=10.0)
    assert "left:10.00%;width:90.00%" in html
    assert "left:30.00%" in html
    assert strips({"base": {"value": None, "low": None, "high": None}}, top=1.0).count("<i") == 0
