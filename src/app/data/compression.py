"""A file's bytes, decompressed if its first bytes say so, whatever its name is."""

import gzip
import io
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

from app.errors import DataError

_BLOCK = 1 << 20
DAMAGED: tuple[type[Exception], ...] = (EOFError, zlib.error, OSError)
"""What reading a damaged compressed stream or disk raises (zstandard's own error is turned into EOFError)."""


class _Zstd(io.RawIOBase):
    """Decompressed bytes of zstd frames; damage, and an end within a frame, is an EOFError (as gzip has it).

    zstandard's own stream reader ends quietly where a file was cut off.
    """

    def __init__(self, raw: BinaryIO) -> None:
        import zstandard

        self._error = zstandard.ZstdError
        self._new = zstandard.ZstdDecompressor().decompressobj
        self._raw = raw
        self._frame: Any = None
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            packed = self._frame.unused_data if self._frame is not None and self._frame.eof else b""
            packed = packed or self._raw.read(_BLOCK // 4)
            if not packed:
                if self._frame is not None and not self._frame.eof:
                    raise EOFError("it ends within a frame")
                return 0
            if self._frame is None or self._frame.eof:
                self._frame = self._new()
            try:
                self._left = self._frame.decompress(packed)
            except self._error as fault:
                raise EOFError(str(fault)) from fault
        size = min(len(buffer), len(self._left))
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size

    def close(self) -> None:
        self._raw.close()
        super().close()


def open_bytes(path: Path) -> tuple[BinaryIO, BinaryIO]:
    """The file's bytes, decompressed if its first bytes say gzip or zstd, and the raw file below (for ``tell``).

    Raises:
        DataError: it cannot be opened.
    """
    try:
        raw = path.open("rb")
        magic = raw.read(4)
        raw.seek(0)
    except OSError as fault:
        raise unreadable(path, fault) from fault
    if magic[:2] == b"\x1f\x8b":
        return cast(BinaryIO, io.BufferedReader(gzip.GzipFile(fileobj=raw), _BLOCK)), raw
    if magic == b"\x28\xb5\x2f\xfd":
        return cast(BinaryIO, io.BufferedReader(_Zstd(raw), _BLOCK)), raw
    return raw, raw


def unreadable(path: Path, fault: OSError) -> DataError:
    """The error for a file the system does not let us read."""
    return DataError(
        f"{path} cannot be read: {fault.strerror or fault}",
        remedy="check the path and its permissions (a loop of links cannot be followed)",
    )
