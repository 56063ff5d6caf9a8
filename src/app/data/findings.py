"""What was found in a data set: counts, and the first rows of each kind."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from app.data.kinds import KINDS

EXAMPLES = 1000
"""Rows of a kind that the report names; the count goes on, and every rejected row is in rejected.jsonl."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Where:
    """A row something was found in."""

    file: str
    line: int
    detail: str


class Findings:
    """Everything found, by kind."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.rows: dict[str, list[Where]] = {}

    def add(self, kind: str, *, file: str, line: int, detail: str) -> None:
        self.counts[kind] += 1
        detail = detail.encode("utf-8", "backslashreplace").decode()  # a lone surrogate cannot be written
        rows = self.rows.setdefault(kind, [])
        if len(rows) < EXAMPLES:
            rows.append(Where(file=file, line=line, detail=detail))

    def to_json(self, *, dropped: frozenset[str]) -> list[dict[str, Any]]:
        """The findings, rejections first, then by how many."""
        order = {"reject": 0, "repair": 1, "warn": 2}
        values = []
        for kind, count in self.counts.items():
            facts = KINDS[kind]
            action = "reject" if kind in dropped else facts.action
            rows = [{"file": r.file, "line": r.line, "detail": r.detail} for r in self.rows[kind]]
            values.append(
                {
                    "kind": kind, "action": action, "rows_found": count, "title": facts.title,
                    "remedy": facts.remedy, "rows": rows,
                }
            )  # fmt: skip
        return sorted(values, key=lambda value: (order[str(value["action"])], -int(value["rows_found"])))
