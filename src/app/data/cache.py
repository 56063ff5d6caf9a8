"""Tokenised samples on disk, memory-mapped, under a key of all they depend on: a second start reads nothing anew.

A table is an Arrow IPC file with the columns ``input_ids`` (list of int32) and ``trained`` (list of bool). See
`app.cache` for where.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from app.cache import cache_key, content_hash
from app.data.tokenize import Encoding

_BATCH = 1000


class TokenTable(Sequence[Encoding]):
    """A memory-mapped table: rows become Python lists only when asked for.

    Args:
        path: of an Arrow file that `write_table` wrote.

    Attributes:
        lengths: [N] tokens of each row.
        trained_tokens: in all rows together.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self.path = path
        os.utime(path)
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        self._parts: list[tuple[NDArray[np.int64], NDArray[np.int32], Any]] = []
        for batch in table.to_batches():
            ids, trained = batch.column("input_ids"), batch.column("trained")
            self._parts.append((ids.offsets.to_numpy(), ids.values.to_numpy(), trained.values))
        sizes = [len(offsets) - 1 for offsets, _, _ in self._parts]
        self._starts = np.cumsum([0, *sizes])
        self.lengths: NDArray[np.int64] = np.concatenate(
            [np.empty(0, dtype=np.int64), *(np.diff(offsets) for offsets, _, _ in self._parts)]
        )
        self.trained_tokens = sum(int(trained.true_count) for _, _, trained in self._parts)

    def __reduce__(self) -> tuple[type["TokenTable"], tuple[Path]]:
        """Data loader workers map the file themselves instead of copying it."""
        return TokenTable, (self.path,)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, index: int) -> Encoding: ...
    @overload
    def __getitem__(self, index: slice) -> list[Encoding]: ...
    def __getitem__(self, index: int | slice) -> Encoding | list[Encoding]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(index)
        part = int(np.searchsorted(self._starts, number, side="right")) - 1
        offsets, ids, trained = self._parts[part]
        at = number - int(self._starts[part])
        start, end = int(offsets[at]), int(offsets[at + 1])
        return Encoding(input_ids=ids[start:end].tolist(), trained=trained[start:end].to_pylist())


def write_table(path: Path, rows: Iterable[Encoding]) -> None:
    """Writes rows as a table, 1,000 at a time; the file appears whole or not at all."""
    import pyarrow as pa

    schema = pa.schema([("input_ids", pa.list_(pa.int32())), ("trained", pa.list_(pa.bool_()))])
    with _appearing(path) as fresh:
        iterator = iter(rows)
        with pa.OSFile(str(fresh), "wb") as file, pa.ipc.new_file(file, schema) as out:
            while part := list(islice(iterator, _BATCH)):
                columns = [[row.input_ids for row in part], [row.trained for row in part]]
                out.write_batch(pa.record_batch(columns, schema=schema))


@cache
def code_hash() -> str:
    """Of the code that makes what is cached: another version of it finds nothing of this one's."""
    data = Path(__file__).parent
    sources = [*sorted(data.glob("*.py")), *sorted((data.parent / "families").glob("*.py"))]
    return cache_key(code=[content_hash(source) for source in sources])


@contextmanager
def _appearing(path: Path) -> Iterator[Path]:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    fresh = Path(name)
    try:
        yield fresh
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
