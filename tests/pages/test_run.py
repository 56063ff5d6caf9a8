"""The run's page from its files: what it says at each stage, and what a browser makes of it."""

import dataclasses
import functools
import html
import http.server
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.artifact import Adaptation, BaseModel, DataFingerprint, GoldenEncoding, Manifest, RunDirectory, Status
from app.pages.history import History, read_rows
from app.pages.run import clock, metrics_path, page_path, run_page, samples_path, seconds_left, update_run_page
from support.page import Page

NASTY = "</pre><script>alert(1)</script> & \"quotes\" 'too'"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def write_run(folder: Path, status: Status, *, steps: int = 60) -> RunDirectory:
    """A run directory as `fit` leaves it after so many of 120 steps, with hostile texts where texts are possible."""
    run = RunDirectory(folder)
    for part in (run.logs / "tensorboard", run.reports, run.adapter):
        part.mkdir(parents=True)
    change = Adaptation(step=20, cause=f"out of memory {NASTY}", change="less at a time", memory={}, lr_scale=1.0)
    run.write_manifest(
        Manifest(
            status=status,
            base=BaseModel(
                id="mistralai/Mistral-7B-Instruct-v0.3",
                revision=None,
                family="mistral",
                model_type="mistral",
                quantization="nf4",
                double_quant=True,
                dtype="bfloat16",
            ),
            golden=GoldenEncoding(template_hash="", special_ids={}, messages=[], input_ids=[], trained=[]),
            data=DataFingerprint(source=f"data/{NASTY}", sha256={"train": "ab"}, samples={"train": 1000, "val": 50}),
            max_length=512,
            seed=42,
            config={"seed_everything": 42, "model": {"lr": 2e-4, "base": NASTY}, "data": {"columns": None}},
            versions={"torch": "2"},
            git_commit=None,
            created="2026-11-22T00:00:00+00:00",
            app_version="0",
            adaptations=(change,),
        )
    )
    metrics, answers = History(metrics_path(run)), History(samples_path(run))
    for step in range(1, steps + 1):
        values = {"train/loss": 1 + 1 / step, "lr": 1e-4, "speed/tokens_per_second": 400.0 + step}
        metrics.add({"step": step, "of": 120, "time": 1e9 + 30.0 * step, **values, "memory/process_peak_gib": 7.0})
    for step in range(0, steps + 1, 20):
        answers.add({"step": step, "prompt": NASTY, "expected": NASTY, "answer": f"{step} {NASTY}"})
    return run


@pytest.mark.parametrize("status", ["running", "finished", "stopped", "failed"])
@pytest.mark.parametrize("steps", [0, 1, 60])
def test_every_text_is_escaped_and_only_a_running_page_loads_itself_again(
    status: Status, steps: int, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", status, steps=steps)
    page = run_page(run, run.read_manifest(), read_rows(metrics_path(run)), read_rows(samples_path(run)), refresh=7)
    assert "script" not in Page(page).tags
    assert ('http-equiv="refresh" content="7"' in page) == (status == "running")
    assert ("about 30 min left" in page) == (status == "running" and steps == 60)
    assert page.count("<svg") == (0 if steps == 0 else 5)


def test_time_left_goes_by_the_median_step() -> None:
    rows = [{"step": step, "of": 20, "time": step * 10.0 + (500 if step > 5 else 0)} for step in range(1, 11)]
    assert seconds_left([*rows, {"step": 10, "time": 0.0, "val/loss": 1.0}]) == 100
    assert seconds_left(rows[:1]) is None
    assert [clock(each) for each in (5, 90, 3600 * 2 + 61)] == ["less than a minute", "2 min", "2 h 1 min"]


def test_numbers_that_are_none_and_half_written_lines_are_passed_over(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "finished", steps=0)
    history = History(metrics_path(run))
    for step, loss in enumerate((3.0, None, 2.0), start=1):
        history.add({"step": step, "of": 3, "time": 0.0, "train/loss": loss})
    with history.path.open("a") as out:
        out.write('{"step": 4, "train/l')
    rows = read_rows(history.path)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert "from 3.00" in run_page(run, run.read_manifest(), rows, ())
    history.go_on_from(1)
    assert read_rows(history.path) == history.rows == rows[:1]


def test_an_answer_with_line_separators_of_any_kind_is_read_back(tmp_path: Path) -> None:
    answer = "one\ntwo\r\nthree\u2028four\u2029five\x85six\x0cseven\x1ceight"
    History(tmp_path / "samples.jsonl").add({"step": 1, "answer": answer})
    assert read_rows(tmp_path / "samples.jsonl") == [{"step": 1, "answer": answer}]


def test_commands_on_the_page_can_be_pasted(tmp_path: Path) -> None:
    run = write_run(tmp_path / "my run", "finished")
    page = html.unescape(run_page(run, run.read_manifest(), [], []))
    assert f"app evaluate --run '{run.path}'" in page and f"tensorboard --logdir '{run.logs}'" in page


def test_a_later_report_is_linked_where_there_is_a_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "finished")
    update_run_page(run)
    assert not page_path(run).exists()
    page_path(run).write_text("before")
    update_run_page(run)
    assert "app evaluate --run" in page_path(run).read_text()
    (run.reports / "report.html").write_text("<p>")
    update_run_page(run)
    page = page_path(run).read_text()
    assert 'href="reports/report.html"' in page and "app evaluate --run" not in page


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The folder on a loopback port, and the paths asked for so far."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def command(profile: Path, *options: str) -> list[str]:
    return [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", *options]


def loaded(url: str, profile: Path) -> tuple[str, str]:
    """The page's elements once the browser has loaded it, and what it had to say about it."""
    options = ("--enable-logging=stderr", "--log-level=0", "--dump-dom", url)
    done = subprocess.run(command(profile, *options), capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_chromium_shows_it_without_a_complaint_and_loads_a_running_one_again(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "finished")
    # Asks the browser itself whether the page is wider than a phone, and proves that complaints would be seen.
    probe = (
        "<body><iframe style='width:390px;height:900px' src='/run/index.html' onload='document.title="
        'contentDocument.documentElement.scrollWidth + "/" + contentDocument.querySelectorAll("svg").length;'
        'console.error("seen")\'></iframe>'
    )
    (tmp_path / "probe.html").write_text(probe)
    page_path(run).write_text("")
    update_run_page(run)
    with served(tmp_path) as (url, asked):
        shown, said = loaded(f"{url}/run/index.html", tmp_path / "profile")
        assert "mistral" in shown and shown.count("<svg") == 5 and said == ""
        assert asked == ["/run/index.html"]
        shown, said = loaded(f"{url}/probe.html", tmp_path / "profile")
        assert "seen" in said
        width, plots = shown.split("<title>")[1].split("</title>")[0].split("/")
        assert int(width) <= 390 and int(plots) == 5
        run.write_manifest(dataclasses.replace(run.read_manifest(), status="running"))
        page_path(run).write_text(run_page(run, run.read_manifest(), read_rows(metrics_path(run)), (), refresh=1))
        asked.clear()
        options = ("--remote-debugging-port=0", f"{url}/run/index.html")  # it stays until it is ended
        browser = subprocess.Popen(command(tmp_path / "profile", *options), stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 60
            while len(asked) < 2 and time.monotonic() < deadline:
                time.sleep(0.1)
        finally:
            browser.terminate()
            browser.wait(30)
        assert asked[:2] == ["/run/index.html"] * 2
