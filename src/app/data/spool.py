"""The first pass: what came of the rows goes onto disk, so that memory holds 59 bytes a row."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.data.examine import NUMBERS, Examined
from app.data.findings import Findings
from app.data.sketch import BANDS, bands


class Spool:
    """Accepted rows of all inputs on disk, in order, and their numbers in memory.

    Args:
        folder: to write into; it must exist.
    """

    def __init__(self, folder: Path) -> None:
        self.records_path = folder / "records.jsonl"
        self.sketches_path = folder / "sketches"
        self.bands_path = folder / "bands"
        self.bands_path.mkdir()
        self.rejected_path = folder / "rejected.jsonl"
        self._records = self.records_path.open("wb")
        self._sketches = self.sketches_path.open("wb")
        self._bands = [(self.bands_path / str(band)).open("wb") for band in range(BANDS)]
        self._rejected = self.rejected_path.open("wb")
        self._numbers: list[NDArray[Any]] = []
        self._files: list[NDArray[np.uint16]] = []
        self.files: dict[tuple[int, str], int] = {}
        self.labels: dict[str, int] = {}
        self.rows: Counter[int] = Counter()
        self.refused: Counter[int] = Counter()
        self.shapes: Counter[str] = Counter()

    def add(self, done: Examined, findings: Findings) -> None:
        """Takes in what became of a batch."""
        self._records.write(done.records)
        self._rejected.write(done.rejected)
        self._sketches.write(done.sketches.tobytes())
        for file, hashes in zip(self._bands, bands(done.sketches), strict=True):
            file.write(hashes.tobytes())
        numbers = done.numbers
        if done.labels:
            table = np.array([self.labels.setdefault(label, len(self.labels)) for label in done.labels] + [-1])
            numbers["label"] = table[numbers["label"]]
        file_number = self.files.setdefault((done.source, done.file), len(self.files))
        self._numbers.append(numbers)
        self._files.append(np.full(len(numbers), file_number, dtype=np.uint16))
        self.rows[file_number] += done.rows
        self.refused[file_number] += done.refused
        self.shapes.update(done.shapes)
        for kind, line, detail in done.findings:
            findings.add(kind, file=done.file, line=line, detail=detail)

    def reject(self, line: str) -> None:
        """Notes a row that was accepted by itself and rejected for the set's sake."""
        self._rejected.write(line.encode())

    def finish(self) -> tuple[NDArray[Any], NDArray[np.uint16]]:
        """The numbers of all accepted rows, and which of ``files`` each is from."""
        for file in (self._records, self._sketches, *self._bands):
            file.close()
        numbers = np.concatenate([np.empty(0, dtype=NUMBERS), *self._numbers])
        files = np.concatenate([np.empty(0, dtype=np.uint16), *self._files])
        self._numbers.clear()
        self._files.clear()
        return numbers, files

    def close(self) -> None:
        """Closes every file, also after a fault."""
        for file in (self._records, self._sketches, self._rejected, *self._bands):
            file.close()
