"""What becomes of rows for the set's sake: copies, near-copies, contradictions, and what a weight leaves out."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from app.data.findings import Findings
from app.data.links import contradictions, near_duplicates, same
from app.data.progress import Progress
from app.data.sketch import BANDS
from app.data.spool import Spool
from app.data.workers import Workers

Kind = Literal["duplicate", "near-duplicate", "contradiction", "unweighted"]
REASONS: tuple[Kind, ...] = ("duplicate", "near-duplicate", "contradiction", "unweighted")
TEXTS = {
    "duplicate": "the same as {other}",
    "near-duplicate": "{alike:.0%} the same as {other}",
    "contradiction": "answered otherwise in {other}",
    "unweighted": "left out: its input's weight is below 1",
    "leak": "follows the rows it resembles",
}
"""Kind of finding -> what is said of a row; ``other`` is the row it was compared with."""
KEPT = -1
LIMIT = 100
"""Characters from which answers of one greatest length look like a limit in the export."""


class Judgement:
    """Rows that were accepted by themselves, held against each other.

    Args:
        numbers: [N] NUMBERS of all rows.
        files: [N] number of each row's file.
        names: of the files.
        findings: where everything found is noted.

    Attributes:
        kept: [N] rows that are not left out so far.
        linked: [N] components of rows that are alike.
    """

    def __init__(
        self, numbers: NDArray[Any], files: NDArray[np.uint16], names: Sequence[str], findings: Findings
    ) -> None:
        count = len(numbers)
        self._numbers, self._files, self._names, self._findings = numbers, files, names, findings
        self._reason = np.full(count, KEPT, dtype=np.int8)  # index into REASONS
        self._partner = np.full(count, -1, dtype=np.int64)
        self._alike = np.zeros(count, dtype=np.float32)
        self.kept = np.ones(count, dtype=bool)
        self.linked: NDArray[np.int64] = np.arange(count)

    def where(self, row: int) -> tuple[str, int]:
        """A row's file and line."""
        return self._names[self._files[row]], int(self._numbers["line"][row])

    def reason(self, row: int) -> tuple[Kind, str]:
        """Why a row was left out: kind, and what is said of it."""
        kind = REASONS[self._reason[row]]
        return kind, self._said(kind, row, int(self._partner[row]))

    def find_copies(self) -> None:
        """Leaves out rows with the very text of an earlier one."""
        first, again = same(self._numbers["key"])
        self._leave_out("duplicate", again, first)
        self.note("duplicate", np.sort(again), self._partner)

    def find_near_copies(
        self, spool: Spool, *, similarity: float, leave_out: bool, workers: Workers, progress: Progress
    ) -> None:
        """Notes, or leaves out, rows that share most of their words with an earlier one, and links the two."""
        stages = near_duplicates(
            spool.sketches_path, spool.bands_path, len(self.kept), threshold=similarity, among=self.kept,
            workers=workers,
        )  # fmt: skip
        for stage, similar in enumerate(stages, start=1):
            progress("find near-duplicates", stage, BANDS)
            partner, self.linked = similar.partner, similar.labels
            self._alike = similar.similarity
        rows = np.flatnonzero(partner >= 0)
        self.note("near-duplicate", rows, partner)
        if leave_out:
            self._leave_out("near-duplicate", rows, partner[rows])

    def find_contradictions(self, *, leave_out: bool) -> None:
        """Notes, or leaves out, rows that ask what an earlier one asks and are answered otherwise."""
        partner = contradictions(self._numbers["prompt"], self._numbers["answer"], self.kept)
        rows = np.flatnonzero(partner >= 0)
        self.note("contradiction", rows, partner)
        if leave_out:
            self._leave_out("contradiction", rows, partner[rows])

    def find_equal_lengths(self) -> None:
        """Notes many answers of exactly the greatest length: a limit in the export looks so."""
        if not self.kept.any():
            return
        lengths = self._numbers["answer_chars"]
        longest = int(lengths[self.kept].max())
        rows = np.flatnonzero(self.kept & (lengths == longest))
        if longest < LIMIT or len(rows) < max(5, 0.01 * self.kept.sum()):
            return
        detail = f"{longest} characters, exactly as {len(rows) - 1} others, and none is longer"
        for row in rows.tolist():
            file, line = self.where(row)
            self._findings.add("same-length", file=file, line=line, detail=detail)

    def repeat(self, weights: NDArray[np.float64] | None, in_train: NDArray[np.bool_]) -> NDArray[np.int64]:
        """How often each row is written; rows of train that a weight leaves out are noted.

        Args:
            weights: [N] of each row's input; None is 1 for all.
            in_train: [N] rows that may be repeated.
        """
        copies = self.kept.astype(np.int64)
        if weights is None:
            return copies
        chance = self._numbers["key"].astype(np.float64) / 2.0**64
        repeats = (np.floor(weights) + (chance < weights % 1)).astype(np.int64)
        copies = np.where(self.kept & in_train, repeats, copies)
        rows = np.flatnonzero(self.kept & (copies == 0))
        self._leave_out("unweighted", rows, None)
        self.note("unweighted", rows)
        return copies

    def note(self, kind: str, rows: NDArray[Any], partner: NDArray[Any] | None = None) -> None:
        """Adds a finding for each of some rows; ``partner`` [N] are the rows they were compared with."""
        for row in rows.tolist():
            file, line = self.where(row)
            other = -1 if partner is None else int(partner[row])
            self._findings.add(kind, file=file, line=line, detail=self._said(kind, row, other))

    def _leave_out(self, kind: Kind, rows: NDArray[Any], partner: NDArray[Any] | None) -> None:
        self._reason[rows] = REASONS.index(kind)
        self._partner[rows] = -1 if partner is None else partner
        self.kept[rows] = False

    def _said(self, kind: str, row: int, other: int) -> str:
        place = "{}:{}".format(*self.where(other)) if other >= 0 else ""
        return TEXTS[kind].format(other=place, alike=float(self._alike[row]))
