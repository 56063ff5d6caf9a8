"""Rows as the readers of `prepare` see them, and a CSV of them in any dialect."""

import csv
import io
from pathlib import Path
from typing import Any

from app.data.jsonlines import parse_row
from app.data.sources import open_source

ROWS = [(f"Frage {n}: was heißt “größer”?", f"Antwort {n}; schöner – länger, „als“ üblich.") for n in range(30)]


def read(path: Path, **options: Any) -> list[tuple[int, Any]]:
    """(line, fields or Unreadable) of a file."""
    merged = {"columns": None, "shape": None, "encoding": None, "delimiter": None, **options}
    rows: list[tuple[int, Any]] = []
    for source in open_source(str(path), 0, **merged):
        for batch in source.batches():
            for line, row in batch.rows:
                if isinstance(row, list):
                    assert batch.header is not None
                    row = dict(zip(batch.header, row, strict=True))
                rows.append((line, parse_row(row) if isinstance(row, str) else row))
    return rows


def as_csv(delimiter: str = ",", end: str = "\n", rows: Any = ROWS, **options: Any) -> str:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator=end, **options)
    writer.writerow(["question", "answer"])
    writer.writerows(rows)
    return out.getvalue()


def pairs(rows: list[tuple[int, Any]]) -> list[tuple[str, str]]:
    return [(fields["question"], fields["answer"]) for _, fields in rows]
