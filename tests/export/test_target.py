"""Files that are whole or not there: interruption, kill -9, resumption, replacement in one step."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import MachineError
from app.export import direct
from app.export import target as target_module
from app.export.target import Blob, discard, partial_path, publish, publish_folder, write_blobs


def blobs(contents: list[bytes], made: list[int] | None = None) -> list[Blob]:
    def produce(index: int) -> memoryview:
        if made is not None:
            made.append(index)
        return memoryview(contents[index])

    return [Blob(nbytes=len(data), produce=lambda i=i: produce(i)) for i, data in enumerate(contents)]  # type: ignore[misc]


def nothing(amount: int) -> None:
    pass


@settings(max_examples=25)
@given(header=st.binary(min_size=1, max_size=40), contents=st.lists(st.binary(min_size=1, max_size=70), max_size=6))
def test_the_parts_follow_one_another(
    header: bytes, contents: list[bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    target = tmp_path_factory.mktemp("blobs") / "file"
    told: list[int] = []
    write_blobs(target, header, blobs(contents), fingerprint="x", advance=told.append)
    publish(target)
    expected = header + b"".join(contents)
    assert target.read_bytes() == expected
    assert sum(told) == len(expected)
    assert list(target.parent.iterdir()) == [target]


class Interrupter:
    """Raises KeyboardInterrupt at its ``count``-th call."""

    def __init__(self, count: int) -> None:
        self.left = count

    def __call__(self, amount: int) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def test_an_interrupted_file_goes_on_where_it_stopped(tmp_path: Path) -> None:
    target, contents = tmp_path / "file", [bytes([i]) * 1000 for i in range(8)]
    target.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        write_blobs(target, b"head", blobs(contents), fingerprint="x", advance=Interrupter(5))
    assert target.read_bytes() == b"old"
    made: list[int] = []
    write_blobs(target, b"head", blobs(contents, made), fingerprint="x", advance=nothing)
    publish(target)
    assert target.read_bytes() == b"head" + b"".join(contents)
    assert sorted(made) == [4, 5, 6, 7]


@pytest.mark.parametrize("changed", ["fingerprint", "header"])
def test_a_part_of_something_else_is_not_continued(changed: str, tmp_path: Path) -> None:
    target, contents = tmp_path / "file", [b"a" * 10, b"b" * 10]
    with pytest.raises(KeyboardInterrupt):
        write_blobs(target, b"head", blobs(contents), fingerprint="x", advance=Interrupter(3))
    made: list[int] = []
    header = b"HEAD" if changed == "header" else b"head"
    fingerprint = "y" if changed == "fingerprint" else "x"
    write_blobs(target, header, blobs(contents, made), fingerprint=fingerprint, advance=nothing)
    assert sorted(made) == [0, 1]


def test_a_full_disk_is_one_message_and_costs_no_byte_of_what_was_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "BUFFER", 2 * direct.PAGE)
    monkeypatch.setattr(target_module, "SYNC_BYTES", 20_000)
    target, contents = tmp_path / "file", [os.urandom(3000) for _ in range(30)]
    write, left = os.write, [6]

    def full(handle: int, data: memoryview) -> int:
        left[0] -= 1
        if left[0] == 0:  # once: by the next write somebody has made room
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, data)

    monkeypatch.setattr(direct.os, "write", full)
    with pytest.raises(MachineError, match="No space left"):
        write_blobs(target, b"head", blobs(contents), fingerprint="x", advance=nothing)
    made: list[int] = []
    write_blobs(target, b"head", blobs(contents, made), fingerprint="x", advance=nothing)
    publish(target)
    assert target.read_bytes() == b"head" + b"".join(contents)
    assert 0 < min(made) < 10


def test_kill_9_leaves_the_old_file_and_a_part_that_is_finished_later(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")
    script = f"""
import time
from pathlib import Path
from app.export import target as t
t.SYNC_BYTES = 1
def slow(amount):
    print("done", flush=True); time.sleep(0.2)
blobs = [t.Blob(nbytes=1000, produce=lambda i=i: memoryview(bytes([i]) * 1000)) for i in range(50)]
t.write_blobs(Path({str(target)!r}), b"head", blobs, fingerprint="x", advance=slow)
"""
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for _ in range(4):
        assert child.stdout.readline() == "done\n"
    time.sleep(0.1)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert target.read_bytes() == b"old"
    contents, made = [bytes([i]) * 1000 for i in range(50)], list[int]()
    write_blobs(target, b"head", blobs(contents, made), fingerprint="x", advance=nothing)
    publish(target)
    assert target.read_bytes() == b"head" + b"".join(contents)
    assert made and min(made) >= 2


def test_a_folder_takes_the_others_place_and_nothing_is_left_over(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for content in ("first", "second"):
        partial = partial_path(target)
        partial.mkdir()
        (partial / "file").write_text(content)
        publish_folder(target)
        assert (target / "file").read_text() == content
        assert list(tmp_path.iterdir()) == [target]


def test_discard_removes_parts_only(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")
    write_blobs(target, b"head", blobs([b"x"]), fingerprint="x", advance=nothing)
    discard(target)
    assert list(tmp_path.iterdir()) == [target]
