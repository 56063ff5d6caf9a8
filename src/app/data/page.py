"""report.html."""

from typing import Any


def page(value: dict[str, Any]) -> str:
    return "<!doctype html>"
