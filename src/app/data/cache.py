"""Tokenised samples on disk, memory-mapped, under a key of all they depend on: a second start reads nothing anew.

A table is an Arrow IPC file with the columns ``input_ids`` (list of int32) and ``trained`` (list of bool). The folder
is ``$APP_CACHE``, or ``~/.cache/app``; what was not used for 30 days goes when something new is written.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from app.data.tokenize import Encoding
from app.errors import MachineError

_BATCH = 1000
_KEPT_S = 30 * 24 * 3600.0


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


def cache_folder(kind: str) -> Path:
    """The folder of one kind of cached things, made if need be.

    Raises:
        MachineError: it cannot be written to.
    """
    folder = Path(os.environ.get("APP_CACHE") or Path.home() / ".cache" / "app") / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as fault:
        raise MachineError(
            f"the cache folder {folder} cannot be written: {fault.strerror}",
            where="APP_CACHE",
            remedy="set the environment variable APP_CACHE to a folder you may write to",
        ) from fault
    return folder


def cache_key(**parts: Any) -> str:
    """A hash of everything a cached thing depends on."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


@cache
def code_hash() -> str:
    """Of the code that makes what is cached: another version of it finds nothing of this one's."""
    data = Path(__file__).parent
    sources = [*sorted(data.glob("*.py")), *sorted((data.parent / "families").glob("*.py"))]
    return cache_key(code=[content_hash(source) for source in sources])


def content_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, or of the names and bytes of all files in a folder."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    inside = sorted(p for p in path.rglob("*") if p.is_file())
    return cache_key(files=[(str(p.relative_to(path)), content_hash(p)) for p in inside])


def drop_unused(folder: Path) -> None:
    """Removes what nobody opened for 30 days."""
    for old in folder.iterdir():
        try:
            if time.time() - old.stat().st_mtime > _KEPT_S:
                shutil.rmtree(old) if old.is_dir() else old.unlink()
        except OSError:
            continue  # another process removed it, or owns it


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
