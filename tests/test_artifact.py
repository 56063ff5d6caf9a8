"""The run directory's lock, between processes."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.artifact import RunDirectory
from app.errors import RunError

HOLD = """
import sys
from app.artifact import RunDirectory
with RunDirectory(sys.argv[1]).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_elsewhere(folder: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.communicate()


def test_second_process_is_refused_and_told_who_has_it(tmp_path: Path) -> None:
    with (
        held_elsewhere(tmp_path) as process,
        pytest.raises(RunError, match=f"another process writes to .*: process {process.pid} on .* since 20"),
        RunDirectory(tmp_path).locked(),
    ):
        raise AssertionError("both hold it")


def test_lock_ends_with_its_process(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with held_elsewhere(tmp_path):
        pass
    with RunDirectory(tmp_path).locked():
        assert not caplog.text


def test_lock_of_a_killed_process_is_stale_and_taken_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with held_elsewhere(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with RunDirectory(tmp_path).locked():
        assert f"the lock of process {process.pid}" in caplog.text and "stale" in caplog.text
    caplog.clear()
    with RunDirectory(tmp_path).locked():
        assert not caplog.text
