"""Rows a second and peak memory of `prepare`, beside `datasets` + pandas doing the equivalent checks.

    python scripts/bench/prepare.py --rows 2000000 --folder build/bench-prepare

Makes a CSV of about 500 bytes a row (2 million rows: 1 GB) with 1 % copies, 1 % near-copies, 1 % empty answers and
0.1 % card numbers, and measures each system in a process of its own: wall time, CPU time, and the peak of the memory
of all its processes together (proportional set size, so that shared pages count once).
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil

BASELINE = """
import re, sys
import pandas as pd
from datasets import load_dataset
email = re.compile(r"[\\w.+-]+@[\\w-]+\\.[\\w.]+")
card = re.compile(r"\\b(?:\\d[ -]?){12,18}\\d\\b")
data = load_dataset("csv", data_files=sys.argv[1], split="train", cache_dir=sys.argv[2])
frame = data.to_pandas()
rows = len(frame)
frame = frame.dropna(subset=["question", "answer"])
frame = frame[frame.answer.str.strip().ne("") & frame.question.str.strip().ne(frame.answer.str.strip())]
frame = frame.drop_duplicates(subset=["question", "answer"])
frame["lost"] = frame.answer.str.contains("[\\ufffd\\x00-\\x08]", regex=True)
frame["email"] = frame.answer.str.contains(email)
frame["card"] = frame.answer.str.contains(card)
frame["opposed"] = frame.duplicated(subset=["question"], keep=False)
frame["tokens"] = frame.answer.str.len() // 4
if sys.argv[4] == "minhash":
    import rensa
    tokens = [(q + " " + a).lower().split() for q, a in zip(frame.question, frame.answer)]
    sketches = rensa.RMinHash.digest_matrix_from_token_sets(tokens, 64, 42)
    index = rensa.RMinHashLSH(threshold=0.8, num_perm=64, num_bands=16)
    frame["near"] = index.query_duplicate_flags_matrix_one_shot(sketches)
for name, part in (("test", frame[:rows // 20]), ("val", frame[rows // 20:rows // 10]), ("train", frame[rows // 10:])):
    part.to_json(f"{sys.argv[3]}/{name}.jsonl", orient="records", lines=True)
"""
"""No leakage check across splits, no stable split, no list of rejected rows, no mojibake or encodings: it does less."""


def make_csv(path: Path, rows: int, *, seed: int = 0) -> None:
    """Writes the file, 20,000 rows at a time."""
    generator = np.random.default_rng(seed)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = np.array(["".join(generator.choice(letters, size)) for size in generator.integers(2, 10, 20_000)])
    previous = ""
    with path.open("w", encoding="utf-8", newline="") as out:
        out.write("question,answer\n")
        for start in range(0, rows, 20_000):
            count = min(20_000, rows - start)
            # Zipf-like: common words are common.
            picks = (20_000 ** generator.random((count, 84))).astype(np.int64) - 1
            kinds = generator.random(count)
            lengths = generator.integers(45, 84, count)
            for row in range(count):
                text = words[picks[row, : lengths[row]]].tolist()
                line = f'{" ".join(text[:14])}?,"{" ".join(text[14:])}, and {start + row}."\n'
                if kinds[row] < 0.01 and previous:
                    line = previous
                elif kinds[row] < 0.02 and previous:
                    line = previous.replace(" ", " well ", 1)
                elif kinds[row] < 0.03:
                    line = f"{' '.join(text[:14])}?,\n"
                elif kinds[row] < 0.031:
                    line = f'{" ".join(text[:14])}?,"{" ".join(text[14:])} 4111 1111 1111 1111."\n'
                out.write(line)
                previous = line


def measure(command: list[str], *, log: Path) -> dict[str, float]:
    """Runs a command: wall seconds, CPU seconds and peak memory in MiB of it and its children."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_OFFLINE": "1"}
    start = time.perf_counter()
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
    peak, cpu = 0, {}
    watched = psutil.Process(process.pid)

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            total = 0
            try:
                for one in (watched, *watched.children(recursive=True)):
                    try:
                        total += one.memory_full_info().pss
                        times = one.cpu_times()
                        cpu[one.pid] = times.user + times.system
                    except psutil.Error:
                        continue
            except psutil.Error:
                return
            peak = max(peak, total)
            time.sleep(0.2)

    thread = threading.Thread(target=watch)
    thread.start()
    status = process.wait()
    seconds = time.perf_counter() - start
    thread.join()
    if status not in (0, 1):
        raise SystemExit(f"{command[:4]} failed:\n{log.read_text()[-2000:]}")
    return {"seconds": round(seconds, 1), "cpu_seconds": round(sum(cpu.values()), 1), "peak_mib": round(peak / 2**20)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--folder", type=Path, default=Path("build/bench-prepare"))
    parser.add_argument("--only", choices=["prepare", "pandas", "pandas+minhash"], default=None)
    options = parser.parse_args()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"rows-{options.rows}.csv"
    if not data.exists():
        make_csv(data, options.rows)
    (folder / "pandas").mkdir(exist_ok=True)
    baseline = [sys.executable, "-c", BASELINE, str(data), str(folder / "cache"), str(folder / "pandas")]
    systems = {
        "prepare": [sys.executable, "-m", "app", "prepare", str(data), "--output", str(folder / "out")],
        "pandas": [*baseline, "plain"],
        "pandas+minhash": [*baseline, "minhash"],
    }
    for name, command in systems.items():
        if options.only in (None, name):
            figures = measure(command, log=folder / f"{name}.log")
            rate = round(options.rows / figures["seconds"])
            facts = {"system": name, "rows": options.rows, "bytes": data.stat().st_size, "rows_per_s": rate}
            print(json.dumps({**facts, **figures}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
