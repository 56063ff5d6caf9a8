"""Under load and on bad days: full queues, clients that leave or read slowly, deadlines, failing steps, a stop."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from openai import OpenAI

from app.generate.engine import Engine
from app.serve.assemble import assemble
from app.serve.server import Server
from app.serve.settings import read_settings
from serve.conftest import Served
from support.serving import Opened, in_process, listening, until

SHORT = {"prompt": "What is a sum?", "max_tokens": 4}
LONG = {"prompt": "What is a sum?", "max_tokens": 400, "stop": "never to be written"}


@pytest.fixture(scope="module")
def small(runs: dict[str, Path]) -> Iterator[Served]:
    """Two slots, two waiting places."""
    settings = {"run": [str(path) for path in runs.values()], "slots": 2, "queue": 2, "context": 512}
    with in_process(**settings) as (url, server), httpx.Client(base_url=url, timeout=60) as client:
        yield Served(url, server, client)


@contextmanager
def slowly(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.02) -> Iterator[list[Engine]]:
    """Steps that take a while, so that answers run for as long as a test needs; gets an entry for each."""
    step = Engine.step
    taken: list[Engine] = []

    def slow(self: Engine) -> None:
        taken.append(self)
        time.sleep(seconds)
        step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", slow)
        yield taken


@contextmanager
def asked(url: str, body: dict[str, Any], *, route: str = "/generate") -> Iterator[socket.socket]:
    """A request on a bare connection, which is closed in the end, answered or not."""
    parts = urlsplit(url)
    payload = json.dumps(body).encode()
    head = (
        f"POST {route} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: {len(payload)}\r\n"
    )
    with socket.create_connection((parts.hostname, parts.port)) as connection:
        connection.sendall(head.encode() + b"\r\n" + payload)
        yield connection


def idle(server: Server) -> bool:
    return server.gate.taken == 0 and server.backend.running() == 0


def test_a_full_queue_refuses_and_then_takes_again(small: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    with slowly(monkeypatch), ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: small.client.post("/generate", json=SHORT), range(12)))
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses.count(200) >= 4 and set(statuses) == {200, 429}
    for answer in answers:
        if answer.status_code == 429:
            assert answer.json()["error"]["code"] == "queue_full" and 1 <= int(answer.headers["retry-after"]) <= 60
    until(lambda: idle(small.server))
    assert small.client.post("/generate", json=SHORT).status_code == 200


def test_no_more_get_in_at_once_than_there_are_places(small: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    most = 0
    enter = small.server.gate.enter

    def counted(count: int) -> None:
        nonlocal most
        enter(count)
        most = max(most, small.server.gate.taken)

    monkeypatch.setattr(small.server.gate, "enter", counted)
    with slowly(monkeypatch, 0.01), ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: small.client.post("/generate", json=SHORT), range(48)))
    assert most == 4
    assert small.client.post("/v1/chat/completions", json=chat(n=4)).status_code == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [({"prompt": "x", "n": 5}, "n"), ({"prompt": ["x"] * 5}, "prompt"), ({"prompt": ["x"] * 3, "n": 2}, "n")],
)
def test_more_answers_than_places_are_wrong_at_any_time(small: Served, body: dict[str, Any], param: str) -> None:
    answer = small.client.post("/v1/completions", json=body)
    assert answer.status_code == 400
    assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == ("invalid_value", param)


def chat(**more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "What is a sum?"}], "max_tokens": 3, **more}


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slot_within_a_step(
    small: Served, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    with slowly(monkeypatch) as taken:
        with asked(small.url, {**LONG, "stream": stream}):
            until(lambda: small.server.backend.running() == 1)
        before = len(taken)
        until(lambda: idle(small.server))
        # One step or two, and more where the event loop hears of it late; the answer would have taken 400.
        assert len(taken) - before < 50


def test_a_client_that_leaves_while_it_waits_is_never_begun(small: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    with slowly(monkeypatch), asked(small.url, LONG), asked(small.url, LONG):
        until(lambda: small.server.backend.running() == 2)
        with asked(small.url, LONG):
            until(lambda: small.server.gate.taken == 3)
        until(lambda: small.server.gate.taken == 2)
        assert small.server.backend.running() == 2
    until(lambda: idle(small.server))


def test_a_slow_reader_stalls_nobody_and_gets_all_of_it(small: Served) -> None:
    whole = small.client.post("/generate", json={**LONG, "max_tokens": 200}).json()["text"]
    with asked(small.url, {**LONG, "max_tokens": 200, "stream": True}) as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        for _ in range(5):
            assert small.client.post("/generate", json=SHORT).status_code == 200
        until(lambda: small.server.backend.running() == 0)  # its own answer is complete too, unread
        received = b""
        while b"0\r\n\r\n" not in received:
            received += reader.recv(64)
    events = [json.loads(line[6:]) for line in received.decode().split("\n") if line.startswith("data: ")]
    assert "".join(event.get("text", "") for event in events) == whole


def test_adapters_take_turns_and_answers_stay_their_own(small: Served) -> None:
    def ask(number: int) -> tuple[str, str, httpx.Response]:
        model = ("helper", "poet.v2", "SELF")[number % 3].replace("SELF", small.server.catalogue.base_name)
        question = f"What is {number} plus {number}?"
        return model, question, small.client.post("/generate", json={**SHORT, "prompt": question, "model": model})

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, range(24)))
    for model, question, answer in answers:
        alone = small.client.post("/generate", json={**SHORT, "prompt": question, "model": model})
        assert answer.json()["text"] == alone.json()["text"]


def test_a_failed_step_costs_its_requests_and_not_the_server(small: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Engine.step
    broken = threading.Event()

    def fails_once(self: Engine) -> None:
        if not broken.is_set():
            broken.set()
            raise RuntimeError("out of memory, say, in /a/path/of/ours")
        step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", fails_once)
        answer = small.client.post("/generate", json=SHORT)
    assert answer.status_code == 500 and answer.json()["error"]["code"] == "model_error"
    assert "/a/path" not in answer.text
    assert small.client.post("/generate", json=SHORT).status_code == 200
    until(lambda: idle(small.server))


def test_a_model_that_fails_every_step_is_given_up(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Engine) -> None:
        raise RuntimeError("a broken CUDA context, say")

    def use(url: str, server: Server) -> None:
        monkeypatch.setattr(Engine, "step", fails)
        statuses = [httpx.post(f"{url}/generate", json=SHORT).status_code for _ in range(4)]
        assert statuses == [500, 500, 500, 503]
        assert httpx.get(f"{url}/health").json()["status"] == "failed" and server.gate.taken == 0

    with_server(runs, use)


def test_a_failure_in_a_stream_is_its_last_event(small: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Engine.step
    steps = 0

    def fails_later(self: Engine) -> None:
        nonlocal steps
        steps += 1
        if steps == 5:
            raise RuntimeError("broken")
        step(self)

    with monkeypatch.context() as patch, OpenAI(base_url=f"{small.url}/v1", api_key="-", max_retries=0) as client:
        patch.setattr(Engine, "step", fails_later)
        with pytest.raises(openai.APIError, match="the model failed"):
            for _ in client.chat.completions.create(
                model="helper",
                messages=[{"role": "user", "content": str(LONG["prompt"])}],
                temperature=0,
                max_tokens=200,
                stream=True,
            ):
                pass
    assert small.client.post("/generate", json=SHORT).status_code == 200


def with_server(runs: dict[str, Path], use: Callable[[str, Server], None], **settings: Any) -> None:
    with in_process(run=str(runs["helper"]), context=512, **settings) as (url, server):
        use(url, server)


def test_a_deadline_ends_an_answer_streamed_or_not(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def use(url: str, server: Server) -> None:
        with slowly(monkeypatch):
            whole = httpx.post(f"{url}/generate", json=LONG, timeout=30)
            assert whole.status_code == 504 and whole.json()["error"]["code"] == "deadline_exceeded"
            assert whole.headers["x-should-retry"] == "false"
            with httpx.stream("POST", f"{url}/generate", json={**LONG, "stream": True}, timeout=30) as answer:
                assert answer.status_code == 200
                last = [line for line in answer.iter_lines() if line][-1]
            assert json.loads(last[6:])["error"]["code"] == "deadline_exceeded"
            until(lambda: idle(server))

    with_server(runs, use, timeout=0.6)


def test_a_body_that_does_not_come_is_given_up(runs: dict[str, Path]) -> None:
    def use(url: str, server: Server) -> None:
        parts = urlsplit(url)
        with socket.create_connection((parts.hostname, parts.port)) as connection:
            connection.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
            answer = b"".join(iter(lambda: connection.recv(4096), b""))  # and then it is closed
        assert b" 408 " in answer.split(b"\r\n")[0] and b"body_timeout" in answer

    with_server(runs, use, timeout=0.3)


def test_keys_and_origins(runs: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("shop good\nbatch scarce 1\n")

    def use(url: str, server: Server) -> None:
        def ask(key: str | None, **headers: str) -> httpx.Response:
            given = {"authorization": f"Bearer {key}"} if key else {}
            return httpx.post(f"{url}/generate", json=SHORT, headers={**given, **headers})

        refused = ask(None)
        assert refused.status_code == 401 and refused.json()["error"]["type"] == "authentication_error"
        assert ask("bad").status_code == 401 and ask("good").status_code == 200
        assert ask("scarce").status_code == 200
        limited = ask("scarce")
        assert limited.status_code == 429 and limited.json()["error"]["code"] == "rate_limit_exceeded"
        assert int(limited.headers["retry-after"]) > 50
        for route in ("/health", "/metrics", "/docs", "/openapi.json"):
            assert httpx.get(url + route).status_code == 200
        assert httpx.get(f"{url}/v1/models").status_code == 401
        schemes = httpx.get(f"{url}/openapi.json").json()["components"]["securitySchemes"]
        assert schemes == {"key": {"type": "http", "scheme": "bearer"}}
        from_page = ask("good", origin="https://a.example")
        assert from_page.headers["access-control-allow-origin"] == "https://a.example"
        assert "access-control-allow-origin" not in ask("good", origin="https://b.example").headers
        asks = "authorization,content-type,x-stainless-arch,x-stainless-retry-count"  # as OpenAI's client in a browser
        preflight = {"access-control-request-method": "POST", "access-control-request-headers": asks}
        route = f"{url}/v1/chat/completions"
        allowed = httpx.options(route, headers={**preflight, "origin": "https://a.example"})
        assert allowed.status_code == 200 and allowed.headers["access-control-allow-headers"] == asks
        assert httpx.options(route, headers={**preflight, "origin": "https://b.example"}).status_code == 400

    with_server(runs, use, api_keys_file=str(file), cors_origins="https://a.example")


def test_pages_of_other_origins_are_not_let_in_by_default(small: Served) -> None:
    answer = small.client.post("/generate", json=SHORT, headers={"origin": "https://a.example"})
    assert "access-control-allow-origin" not in answer.headers
    preflight = {"origin": "https://a.example", "access-control-request-method": "POST"}
    assert small.client.options("/generate", headers=preflight).status_code == 405


def test_prompts_are_logged_only_if_asked_for(
    runs: dict[str, Path], caplog: pytest.LogCaptureFixture, small: Served
) -> None:
    secret = {"prompt": "my secret question", "max_tokens": 2}
    with caplog.at_level("INFO", logger="app.serve"):
        small.client.post("/generate", json=secret, headers={"x-request-id": "quiet"})
        with_server(
            runs,
            lambda url, _: void(httpx.post(f"{url}/generate", json=secret, headers={"x-request-id": "loud"})),
            log_prompts=True,
        )
    by_id = {vars(record).get("request_id"): vars(record) for record in caplog.records}
    assert "my secret question" in str(by_id["loud"]) and "my secret question" not in str(by_id["quiet"])
    assert len(by_id["loud"]["answers"]) == 1 and "answers" not in by_id["quiet"]
    assert by_id["quiet"]["answer_tokens"] == 2 and by_id["quiet"]["status"] == 200


def void(_: object) -> None:
    """Drops a value."""


def test_loading_and_failing_are_told(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    broken = threading.Event()

    def load(*_: object, **__: object) -> None:
        broken.wait(30)
        raise AssertionError("broken, in /a/path/of/ours")

    monkeypatch.setattr("app.serve.assemble.open_runs", load)
    server = assemble(read_settings({}, {"run": str(runs["helper"])}), stored=Path)
    with listening(Opened(server)) as url:
        for status in ("loading", "failed"):
            until(lambda expected=status: server.status == expected)
            health = httpx.get(f"{url}/health")
            assert health.status_code == 503 and health.json()["status"] == status
            answer = httpx.post(f"{url}/generate", json=SHORT)
            assert answer.status_code == 503 and answer.json()["error"]["code"] == status
            assert httpx.post(f"{url}/tokenize", json={"prompt": "x"}).status_code == 503
            assert "/a/path" not in answer.text + health.text
            assert httpx.get(f"{url}/v1/models").status_code == 200
            broken.set()
