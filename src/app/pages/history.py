"""What a run has logged and written so far, a JSON line for each step: files that a page can be made of at any time."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.artifact import write_atomic

Row = dict[str, Any]
"""``step`` and what is known of it."""


class History:
    """A file of JSON lines in the order of steps, and the same lines in memory.

    Args:
        path: of the file; need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = read_rows(path)

    def go_on_from(self, step: int) -> None:
        """Drops what came after ``step``: a resume does these steps again.

        Raises:
            OSError: the file cannot be written.
        """
        self.rows = [row for row in self.rows if row["step"] <= step]
        write_atomic(self.path, "".join(map(_line, self.rows)))

    def add(self, row: Mapping[str, Any]) -> None:
        """Appends a line.

        Raises:
            OSError: it could not be written; it is in ``rows`` nevertheless.
        """
        self.rows.append(dict(row))
        with self.path.open("a", encoding="utf-8", newline="\n") as out:
            out.write(_line(row))


def read_rows(path: Path) -> list[Row]:
    """The file's rows; a line that a killed process has left half-written is passed over."""
    if not path.is_file():
        return []
    rows = []
    # Not splitlines: an answer may hold other separators, such as U+2028, which JSON leaves as they are.
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
