"""Numbered samples that are all unlike one another, and readers of what `prepare` writes."""

import csv
import json
import random
from pathlib import Path
from typing import Any

from app.data.records import read_prepared

SPLITS = ("train", "val", "test")
WORDS = ("river", "stone", "cloud", "winter", "garden", "bridge", "letter", "engine", "window", "harbour", "forest")
LETTERS = "abcdefghijklmnopqrstuvwx"


def sentence(seed: str, length: int = 14) -> str:
    generator = random.Random(seed)
    return " ".join(f"{generator.choice(WORDS)}{generator.choice(LETTERS)}" for _ in range(length)).capitalize() + "."


def write_csv(path: Path, rows: list[dict[str, str]], *, delimiter: str = ",", encoding: str = "utf-8") -> Path:
    with path.open("w", encoding=encoding, newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def numbered(count: int, start: int = 0) -> list[dict[str, str]]:
    return [{"question": sentence(f"q{n}"), "answer": sentence(f"a{n}", 25)} for n in range(start, start + count)]


def where(output: Path) -> dict[str, str]:
    """Question -> split."""
    return {c.messages[0].content: split for split in SPLITS for c in read_prepared(output / f"{split}.jsonl")}


def rejected(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "rejected.jsonl").read_bytes().splitlines()]
