"""`bentoml serve` as a process: it starts or says why not, keeps its word under SIGTERM, and takes a load."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from support.serving import ROOT, bento_server, bentoml_home, until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return bentoml_home(tmp_path_factory.mktemp("bentoml"))


@pytest.fixture(scope="module")
def process(runs: dict[str, Path], home: dict[str, str]) -> Iterator[tuple[str, "subprocess.Popen[str]", Path]]:
    """A server as it starts: it lives, and is not ready yet. Each test leaves it as it found it."""
    with bento_server(".", home, "--arg", f"run={runs['helper']}", wait="/livez") as running:
        yield running


def test_it_answers_while_it_loads(process: tuple[str, "subprocess.Popen[str]", Path]) -> None:
    url = process[0]
    health = httpx.get(f"{url}/health")
    assert health.status_code == (200 if health.json()["status"] == "ready" else 503)
    until(lambda: httpx.get(f"{url}/readyz").status_code == 200)
    assert httpx.get(f"{url}/health").json()["status"] == "ready"
    assert httpx.post(f"{url}/generate", json={"prompt": "Hi", "max_tokens": 3}).json()["completion_tokens"] == 3


def test_other_routes_are_ours_and_not_bentoml_s(process: tuple[str, "subprocess.Popen[str]", Path]) -> None:
    url = process[0]
    assert httpx.get(f"{url}/nowhere").json()["error"]["code"] == "route_not_found"
    assert httpx.get(f"{url}/generate").json()["error"]["code"] == "method_not_allowed"
    assert "app_requests_total" in httpx.get(f"{url}/metrics").text
    assert "swagger" in httpx.get(f"{url}/docs").text


def test_it_listens_on_loopback_only(process: tuple[str, "subprocess.Popen[str]", Path]) -> None:
    import psutil

    port = int(process[0].rsplit(":", 1)[1])
    listening = [c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port]
    assert set(listening) == {"127.0.0.1"}


def test_requests_leave_no_memory_behind(process: tuple[str, "subprocess.Popen[str]", Path]) -> None:
    """Refused ones, which are quick: BentoML's timers kept each for minutes (see `app.serve.timers`)."""
    import psutil

    worker = max(psutil.Process(process[1].pid).children(), key=lambda child: child.memory_info().rss)
    with httpx.Client(base_url=process[0], timeout=60) as client:
        until(lambda: client.get("/readyz").status_code == 200)

        def refused(count: int) -> float:
            """The worker's MiB after that many."""
            for _ in range(count):
                assert client.post("/generate", json={"prompt": "Hi", "colour": "red"}).status_code == 400
            return float(worker.memory_info().rss / 2**20)

        before = refused(500)
        assert refused(3000) - before < 6  # 16 with the timers, 0.04 without


@pytest.fixture
def two_slots(runs: dict[str, Path], home: dict[str, str]) -> Iterator[tuple[str, "subprocess.Popen[str]", Path]]:
    """A ready server for the one test that ends it; settings come by both ways, `--arg` and the environment."""
    arguments = ("--arg", f"run={runs['helper']}", "--arg", "context=4096", "--arg", "slots=2", "--arg", "grace=60")
    with bento_server(".", {**home, "APP_QUEUE": "8"}, *arguments) as running:
        yield running


def test_sigterm_finishes_what_runs_and_refuses_what_comes(
    two_slots: tuple[str, "subprocess.Popen[str]", Path],
) -> None:
    url, server, log = two_slots
    answers: list[httpx.Response] = []
    lines: list[str] = []

    def whole() -> None:
        answers.append(httpx.post(f"{url}/generate", json={"prompt": "Hi", "max_tokens": 2400}, timeout=60))

    def streamed() -> None:
        body = {"prompt": "Hello", "max_tokens": 2400, "stream": True}
        with httpx.stream("POST", f"{url}/generate", json=body, timeout=60) as answer:
            lines.extend(line for line in answer.iter_lines() if line)

    threads = [threading.Thread(target=work) for work in (whole, streamed)]
    for thread in threads:
        thread.start()
    until(lambda: httpx.get(f"{url}/health").json()["running"] == 2)
    server.send_signal(signal.SIGTERM)
    until(lambda: httpx.get(f"{url}/readyz").status_code == 503)
    refused = httpx.post(f"{url}/generate", json={"prompt": "Hi"})
    assert refused.status_code == 503 and refused.json()["error"]["code"] == "stopping"
    assert refused.headers["retry-after"] and httpx.get(f"{url}/livez").status_code == 200
    for thread in threads:
        thread.join(60)
    assert server.wait(30) == 0
    assert answers[0].status_code == 200 and answers[0].json()["finish_reason"] in ("stop", "length")
    assert json.loads(lines[-1].removeprefix("data: "))["finish_reason"] in ("stop", "length")
    ours = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    requests = [line for line in ours if line["message"] == "request" and line["path"] == "/generate"]
    assert sorted(line["status"] for line in requests)[-1] == 503
    assert all(line["request_id"] and line["level"] == "info" for line in requests)
    assert "Hello" not in log.read_text()


def test_the_grace_time_ends(runs: dict[str, Path], home: dict[str, str]) -> None:
    settings = {**home, "APP_RUN": str(runs["helper"]), "APP_CONTEXT": "8000", "APP_GRACE": "0.5"}
    with bento_server(".", settings) as (url, server, _):
        body = {"prompt": "Hi", "max_tokens": 7800, "stream": True}
        with httpx.stream("POST", f"{url}/generate", json=body, timeout=60) as answer:
            parts = answer.iter_lines()
            next(parts)
            server.send_signal(signal.SIGTERM)
            last = [line for line in parts if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "stopping"
        assert server.wait(60) == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"APP_SLOTS": "many", "APP_TIMEOUT": "-1"}, ("APP_SLOTS is 'many'", "APP_TIMEOUT is '-1'")),
        ({"APP_RUN": "/nowhere/at/all"}, ("not a run directory", "APP_RUN")),
        ({"APP_MODEL": "none:1"}, ("BentoML's store has no model 'none:1'", "APP_MODEL")),
        ({}, ("no model is named", "APP_RUN")),
    ],
)
def test_what_is_wrong_ends_the_start_with_its_name(
    home: dict[str, str], settings: dict[str, str], said: tuple[str, ...]
) -> None:
    command = [Path(sys.executable).with_name("bentoml"), "serve", "."]
    done = subprocess.run(
        command, env={**os.environ, **home, **settings}, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert all(text in done.stderr for text in said)


def test_openai_s_client_and_a_real_model(home: dict[str, str], smollm2: Path) -> None:
    """A base without a run, in a process of its own; test_openai_client.py looks at the details."""
    settings = {**home, "APP_BASE": str(smollm2), "APP_FAMILY": "smollm2", "APP_CONTEXT": "512"}
    question = "What is the capital of France?"
    with bento_server(".", settings) as (url, _, _), OpenAI(base_url=f"{url}/v1", api_key="-") as client:
        (model,) = client.models.list()
        asked: dict[str, Any] = {
            "model": model.id,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": 120,
        }
        whole = client.chat.completions.create(**asked, logprobs=True)
        assert model.id == smollm2.name and "France" in str(whole.choices[0].message.content)
        assert whole.usage is not None
        assert whole.choices[0].logprobs is not None and whole.choices[0].logprobs.content is not None
        # All tokens but the one that ends the turn, which is counted and not shown.
        ended = whole.choices[0].finish_reason == "stop"
        assert len(whole.choices[0].logprobs.content) == whole.usage.completion_tokens - ended
        pieces = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
        text = "".join(choice.delta.content or "" for piece in pieces for choice in piece.choices)
        assert text == whole.choices[0].message.content and pieces[-1].usage == whole.usage


def test_a_mixed_load(runs: dict[str, Path], home: dict[str, str]) -> None:
    """The short form of `scripts/bench/serve.py`, which says what it checks."""
    script = [sys.executable, ROOT / "scripts" / "bench" / "serve.py", "--requests", "120", "--tokens", "12"]
    chosen = [part for run in runs.values() for part in ("--run", run)]
    # Memory grows at first on a CPU (oneDNN keeps a kernel for each shape): the long form looks at that.
    done = subprocess.run(
        [*script, *chosen, "--growth", "500"], env={**os.environ, **home}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "none mixed" in done.stdout
