"""Direct reads and writes: any lengths, any starting place, synced at any time, with and without the system's help."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.export import direct
from app.export.direct import DirectWriter, read_direct


@pytest.fixture(params=["direct", "ordinary"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With O_DIRECT, and as where the file system refuses it."""
    if request.param == "ordinary":
        opened = os.open

        def refusing(path: object, flags: int) -> int:
            if flags & getattr(os, "O_DIRECT", 0):
                raise OSError(22, "Invalid argument")
            return opened(path, flags)  # type: ignore[arg-type]

        monkeypatch.setattr(direct.os, "open", refusing)
    return str(request.param)


def test_a_file_larger_than_the_buffer(kind: str, tmp_path: Path) -> None:
    path, content = tmp_path / "file", os.urandom(direct.BUFFER + 123)
    path.write_bytes(b"kept and cut")
    writer = DirectWriter(path, 4)
    writer.write(memoryview(content))
    writer.sync()
    writer.close()
    assert path.read_bytes() == b"kept" + content


@settings(max_examples=25)
@given(
    kept=st.integers(0, 9000),
    parts=st.lists(st.tuples(st.integers(0, 9000), st.booleans()), max_size=6),
)
def test_any_lengths_and_syncs(
    kept: int, parts: list[tuple[int, bool]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path, old = tmp_path_factory.mktemp("direct") / "file", os.urandom(9000)
    path.write_bytes(old)
    expected = old[:kept]
    writer = DirectWriter(path, kept)
    for length, synced in parts:
        content = os.urandom(length)
        writer.write(memoryview(content))
        expected += content
        if synced:
            writer.sync()
            assert path.read_bytes() == expected
    writer.sync()
    writer.close()
    assert path.read_bytes() == expected


def test_stretches_are_read(kind: str, tmp_path: Path) -> None:
    path, content = tmp_path / "file", os.urandom(20_000)
    path.write_bytes(content)
    for start, length in [(0, 20_000), (0, 1), (1, 4095), (4096, 4096), (5000, 10_001), (19_999, 1), (12_288, 0)]:
        assert bytes(read_direct(path, start, length)) == content[start : start + length], (start, length)
    assert bytes(read_direct(path, 19_000, 5000)) == content[19_000:], "what is missing is seen by the length"
    assert len(read_direct(path, 30_000, 10)) == 0
