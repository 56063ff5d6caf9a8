"""Bad rows, bad files, full stops: rows in are rows out and rows rejected, and output is whole or not there."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from app.data.prepare import prepare
from app.data.records import read_prepared
from app.errors import AppError, ConfigError, DataError
from support.samples import SPLITS, numbered, rejected, sentence, where, write_csv


def test_a_fault_leaves_the_old_output_as_it_was(tmp_path: Path) -> None:
    path = str(write_csv(tmp_path / "a.csv", numbered(30)))
    prepare([path], tmp_path / "out")
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    with pytest.raises(AppError):
        prepare([path, str(tmp_path / "missing.csv"), str(tmp_path / "gone.csv")], tmp_path / "out")
    with pytest.raises(DataError):
        prepare([path], tmp_path / "out", max_length=10, too_long="error")
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv", "out"]
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match=r"mine\.txt"):
        prepare([path], tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep"


def test_a_killed_run_leaves_no_output_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", numbered(20_000))
    command = [sys.executable, "-m", "app", "prepare", str(path), "--output", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    for _ in range(600):
        if list(tmp_path.glob(".out.*/.spool-*/records.jsonl")):
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists() and list(tmp_path.glob(".out.*"))
    prepare([str(write_csv(tmp_path / "b.csv", numbered(30)))], tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv", "b.csv", "out"]


lines = st.one_of(
    st.binary(max_size=60),
    st.sampled_from(
        [
            b'what?,"never closed', b'"a ""quoted"" word",fine', b"nul\x00byte,yes", b"one\r\ntwo,three", b"a,b\rc,d",
            b"only one cell", b"a,b,c,d", b",", b"same,same", b"x,<|im_end|>", b"\xff\xfe,\xc3", b'{"question": 1}',
            "mojibake,schÃ¶n grÃ¼ÃŸe".encode(), b"9" * 400 + b",NaN", b'[[[[,]]]]', b"ok?,Ok it is.",
        ]
    ),
)  # fmt: skip


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bad=st.lists(lines, max_size=8), header=st.sampled_from([b"question,answer", b"prompt;response", b"x"]))
@example(bad=[b"'", b"',"], header=b"question,answer")
def test_rows_in_are_rows_out_and_rows_rejected(tmp_path: Path, bad: list[bytes], header: bytes) -> None:
    path, output = tmp_path / "rows.csv", tmp_path / "out"
    good = numbered(3)
    body = [f'"{row["question"]}","{row["answer"]}"'.encode() for row in good]
    path.write_bytes(b"\n".join([header, body[0], *bad, *body[1:]]) + b"\n")
    try:
        value = prepare([str(path)], output, encoding="utf-8").value
    except AppError as fault:
        assert fault.remedy and header != b"question,answer"
        return
    kept = [c for split in SPLITS for c in read_prepared(output / f"{split}.jsonl")]
    counts = value["counts"]
    assert counts["rows_in"] == counts["rows_kept"] + counts["rows_rejected"]
    assert counts["rows_kept"] == len(kept) and counts["rows_rejected"] == len(rejected(output))
    if header == b"question,answer":
        questions = {c.messages[0].content for c in kept}
        assert {row["question"] for row in good} <= questions


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(["question", "answer", "messages", "conversations", "text", "instruction", "output", "group"])


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(objects=st.lists(st.dictionaries(names, values, max_size=4) | values, min_size=1, max_size=6))
def test_any_json_values_are_rows(tmp_path: Path, objects: list[Any]) -> None:
    path, output = tmp_path / "rows.jsonl", tmp_path / "out"
    good = {"question": sentence("q"), "answer": sentence("a")}
    path.write_text("\n".join(json.dumps(o) for o in [good, *objects]) + "\n", "utf-8")
    counts = prepare([str(path)], output).value["counts"]
    assert counts["rows_in"] == len(objects) + 1 == counts["rows_kept"] + counts["rows_rejected"]
    assert len(rejected(output)) == counts["rows_rejected"]
    assert good["question"] in where(output)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_with_workers_leaves_neither_output_nor_processes(tmp_path: Path, number: int) -> None:
    import psutil

    path = write_csv(tmp_path / "a.csv", numbered(6_000))
    command = [sys.executable, "-m", "app", "prepare", *[str(path)] * 20, "--output", str(tmp_path / "out")]
    process = subprocess.Popen(
        [*command, "--workers", "2"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    for _ in range(600):
        if any(p.stat().st_size for p in tmp_path.glob(".out.*/.spool-*/records.jsonl")):
            break
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    process.send_signal(number)
    error = process.communicate(timeout=60)[1]
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    assert not (tmp_path / "out").exists()
    if number != signal.SIGKILL:
        assert process.returncode == 130 and "nothing was written" in error and "Traceback" not in error
        assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]


@pytest.mark.slow
def test_memory_stays_bounded_on_a_large_file(tmp_path: Path) -> None:
    """60,000 rows (26 MB) and 120,000: three processes need some 300 MB, and twice the rows hardly more."""
    import importlib.util

    script = Path(__file__).parents[2] / "scripts" / "bench" / "prepare.py"
    spec = importlib.util.spec_from_file_location("bench_prepare", script)
    assert spec is not None and spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    peaks = []
    for rows in (60_000, 120_000):
        data = tmp_path / f"{rows}.csv"
        bench.make_csv(data, rows)
        command = [sys.executable, "-m", "app", "prepare", str(data), "--output", str(tmp_path / "out")]
        peaks.append(bench.measure([*command, "--workers", "2"], log=tmp_path / "log")["peak_mib"])
        report = json.loads((tmp_path / "out" / "report.json").read_text())
        assert report["counts"]["rows_in"] == rows
    assert peaks[1] < 600 and peaks[1] < peaks[0] + 120, peaks
