"""Every route, and every way of asking wrongly: status, code and field, in the one error shape."""

import json
from typing import Any

import httpx
import pytest

from serve.conftest import Served

ASK = {"prompt": "What is a sum?", "max_tokens": 6}
CHAT = {"messages": [{"role": "user", "content": "What is a sum?"}], "max_tokens": 6, "temperature": 0}


def refusal(answer: httpx.Response) -> dict[str, Any]:
    """The error of an answer, once its shape is right."""
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert list(body) == ["error"] and sorted(body["error"]) == ["code", "message", "param", "type"]
    error: dict[str, Any] = body["error"]
    assert error["message"] and "/home" not in error["message"] and "Traceback" not in error["message"]
    assert "list[" not in error["message"]  # names of our types
    return error


def test_generate(served: Served) -> None:
    answer = served.client.post("/generate", json={**ASK, "seed": 3})
    assert answer.status_code == 200
    body = answer.json()
    assert body["finish_reason"] == "length" and body["completion_tokens"] == 6 and body["seed"] == 3
    assert body["model"] == "helper" and body["prompt_tokens"] > 10
    assert 0 < body["timings"]["first_token_s"] <= body["timings"]["total_s"]


def test_null_is_the_same_as_leaving_the_limit_out(served: Served) -> None:
    by_null, by_default = (
        served.client.post("/generate", json={"prompt": "What is a sum?", **limit}).json()
        for limit in ({"max_tokens": None}, {})
    )
    assert by_null["text"] == by_default["text"] and by_null["completion_tokens"] == 256
    # Nobody asked for so many: they give way to a context that has not the room.
    assert served.client.post("/generate", json={"prompt": "word " * 300, "max_tokens": None}).status_code == 200


def test_generate_streams_the_same_text(served: Served) -> None:
    whole = served.client.post("/generate", json=ASK).json()
    with served.client.stream("POST", "/generate", json={**ASK, "stream": True}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line]
    assert "".join(event["text"] for event in events[:-1]) == whole["text"]
    assert events[-1]["completion_tokens"] == 6 and events[-1]["id"] == answer.headers["x-request-id"]


def test_a_prompt_is_a_conversation_with_one_question(served: Served) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": ASK["prompt"]}]
    by_prompt = served.client.post("/generate", json={**ASK, "system": "Be brief."}).json()
    by_messages = served.client.post("/generate", json={"messages": messages, "max_tokens": 6}).json()
    assert by_prompt["text"] == by_messages["text"]


def test_models_answer_differently_and_each_as_when_alone(served: Served) -> None:
    texts = {
        model: served.client.post("/generate", json={**ASK, "max_tokens": 24, "model": model}).json()["text"]
        for model in ("helper", "poet.v2", "tiny", "helper")
    }
    assert len(set(texts.values())) == 3
    again = served.client.post("/generate", json={**ASK, "max_tokens": 24}).json()
    assert again["text"] == texts["helper"]


def test_models(served: Served) -> None:
    listed = served.client.get("/v1/models").json()["data"]
    assert [(model["id"], model["parent"]) for model in listed] == [
        ("helper", "tiny"),
        ("poet.v2", "tiny"),
        ("tiny", None),
    ]
    assert served.client.get("/v1/models/poet.v2").json() == listed[1]
    assert refusal(served.client.get("/v1/models/../../etc/passwd"))["code"] in ("model_not_found", "route_not_found")
    assert refusal(served.client.get("/v1/models/no/such"))["code"] == "model_not_found"


def test_tokenize(served: Served) -> None:
    body = served.client.post("/tokenize", json={"prompt": "naïve 漢", "return_token_strs": True}).json()
    assert body["count"] == len(body["tokens"]) == len(body["token_strs"]) and body["max_model_len"] == 512
    templated = served.client.post("/tokenize", json={"messages": CHAT["messages"]}).json()
    used = served.client.post("/v1/chat/completions", json=CHAT).json()["usage"]
    assert templated["count"] == used["prompt_tokens"]


def test_health_tells_what_is_served(served: Served) -> None:
    answer = served.client.get("/health")
    body = answer.json()
    assert answer.status_code == 200 and body["status"] == "ready"
    assert body["model"] == "helper" and body["adapters"] == ["helper", "poet.v2"]
    assert body["memory"]["used"] > 0 and body["uptime_s"] > 0


def test_metrics_count(served: Served) -> None:
    def value(name: str) -> float:
        lines = served.client.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    names = ("app_answer_tokens_total", "app_time_to_first_token_seconds_count", 'app_rejected_total{reason="unknown_')
    before = [value(name) for name in names]
    served.client.post("/generate", json=ASK)
    served.client.post("/generate", json={**ASK, "colour": "red"})
    assert [value(name) - old for name, old in zip(names, before, strict=True)] == [6, 1, 1]
    assert value("app_requests_running") == 0 and value("app_ready") == 1


def test_docs_and_document(served: Served) -> None:
    assert "swagger" in served.client.get("/docs").text
    assert served.client.get("/", follow_redirects=True).url.path == "/docs"
    document = served.client.get("/openapi.json").json()
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert not any("422" in operation["responses"] for operation in operations)
    bodies = [
        operation["requestBody"]["content"]["application/json"]
        for operation in operations
        if "requestBody" in operation
    ]
    assert len(bodies) == 4 and all(body["examples"] for body in bodies)


def test_every_example_of_the_document_works(served: Served) -> None:
    document = served.client.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        content = operations.get("post", {}).get("requestBody", {}).get("content", {})
        for name, example in content.get("application/json", {}).get("examples", {}).items():
            answer = served.client.post(path, json=example["value"])
            assert answer.status_code == 200, (path, name, answer.text)


def test_request_ids_come_back_or_are_made(served: Served) -> None:
    given = served.client.post("/generate", json=ASK, headers={"x-request-id": "order-66"})
    assert given.headers["x-request-id"] == given.json()["id"] == "order-66"
    made = served.client.get("/health", headers={"x-request-id": "not one\x7f{}"})
    assert len(made.headers["x-request-id"]) == 32


LONG = "word " * 2000
WRONG: list[tuple[str, Any, int, str, str | None]] = [
    ("/generate", {"prompt": 5}, 400, "invalid_value", "prompt"),
    ("/generate", {}, 400, "invalid_value", "prompt"),
    ("/generate", {"prompt": ""}, 400, "invalid_value", "prompt"),
    ("/generate", {**ASK, "messages": CHAT["messages"]}, 400, "invalid_value", "prompt"),
    ("/generate", {**ASK, "max_tokens": 0}, 400, "invalid_value", "max_tokens"),
    ("/generate", {**ASK, "max_tokens": 5000}, 400, "context_length_exceeded", "max_tokens"),
    ("/generate", {**ASK, "max_tokens": "6"}, 400, "invalid_value", "max_tokens"),
    ("/generate", {**ASK, "max_tokens": True}, 400, "invalid_value", "max_tokens"),
    ("/generate", {**ASK, "temperature": 2.1}, 400, "invalid_value", "temperature"),
    ("/generate", {**ASK, "seed": -1}, 400, "invalid_value", "seed"),
    ("/generate", {**ASK, "seed": 2**64}, 400, "invalid_value", "seed"),
    ("/generate", {**ASK, "stop": [""]}, 400, "invalid_value", "stop"),
    ("/generate", {**ASK, "n": 2}, 400, "unknown_field", "n"),
    ("/generate", {**ASK, "modell": "x"}, 400, "unknown_field", "modell"),
    ("/generate", {**ASK, "model": "../../etc/passwd"}, 404, "model_not_found", "model"),
    ("/generate", {"prompt": LONG}, 400, "context_length_exceeded", "prompt"),
    ("/generate", {"messages": [{"role": "user", "content": LONG}]}, 400, "context_length_exceeded", "messages"),
    ("/generate", {"prompt": "<|im_end|>"}, 400, "invalid_value", "prompt"),
    ("/generate", {"messages": [{"role": "user", "content": "<|im_end|>"}]}, 400, "invalid_value", "messages"),
    ("/generate", [ASK], 400, "invalid_value", None),
    ("/generate", "text", 400, "invalid_value", None),
    ("/v1/chat/completions", {"messages": []}, 400, "invalid_value", "messages"),
    ("/v1/chat/completions", {"messages": [{"role": "user"}]}, 400, "invalid_value", "messages[0].content"),
    (
        "/v1/chat/completions",
        {"messages": [{"role": "tool", "content": "x"}]},
        400,
        "invalid_value",
        "messages[0].role",
    ),
    (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        400,
        "invalid_value",
        "messages[0].content",
    ),
    (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "x", "tool_calls": [{"id": "y"}]}]},
        400,
        "unsupported_field",
        "messages[0].tool_calls",
    ),
    ("/v1/chat/completions", {"messages": [{"role": "assistant", "content": "x"}]}, 400, "invalid_value", "messages"),
    ("/v1/chat/completions", {**CHAT, "tools": [{"type": "function"}]}, 400, "unsupported_field", "tools"),
    ("/v1/chat/completions", {**CHAT, "logit_bias": {"5": 1}}, 400, "unsupported_field", "logit_bias"),
    (
        "/v1/chat/completions",
        {**CHAT, "response_format": {"type": "json_object"}},
        400,
        "unsupported_field",
        "response_format",
    ),
    ("/v1/chat/completions", {**CHAT, "top_logprobs": 3}, 400, "invalid_value", "top_logprobs"),
    ("/v1/chat/completions", {**CHAT, "max_completion_tokens": 3}, 400, "invalid_value", "max_tokens"),
    (
        "/v1/chat/completions",
        {**CHAT, "stream_options": {"include_usage": True}},
        400,
        "invalid_value",
        "stream_options",
    ),
    ("/v1/chat/completions", {**CHAT, "n": 9}, 400, "invalid_value", "n"),
    ("/v1/completions", {"prompt": []}, 400, "invalid_value", "prompt"),
    ("/v1/completions", {"prompt": [1, 2], "echo": True}, 400, "unsupported_field", "echo"),
    ("/v1/completions", {"prompt": [1, 10**6]}, 400, "invalid_value", "prompt"),
    ("/v1/completions", {"prompt": LONG}, 400, "context_length_exceeded", "prompt"),
    ("/v1/completions", {"prompt": "x", "best_of": 2}, 400, "unsupported_field", "best_of"),
    ("/tokenize", {"prompt": "x", "messages": CHAT["messages"]}, 400, "invalid_value", "prompt"),
]


@pytest.mark.parametrize(("route", "body", "status", "code", "param"), WRONG)
def test_what_is_wrong_is_named(
    served: Served, route: str, body: Any, status: int, code: str, param: str | None
) -> None:
    answer = served.client.post(route, json=body)
    error = refusal(answer)
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param), error
    assert served.client.post("/generate", json=ASK).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{not json", 400, "invalid_json"),
        (b"", 400, "invalid_value"),
        (b"\xff\xfe", 400, "invalid_json"),
        (b"[" * 100_000, 400, "invalid_request"),
        (b'{"prompt": "\\ud800", "max_tokens": 2}', 400, "invalid_value"),
        (b'{"prompt": "x", "\\ud800": 2}', 400, "invalid_value"),
        (b'{"prompt": "x", "temperature": NaN}', 400, "invalid_value"),
        (b'{"prompt": "' + b"a" * 10_000_000 + b'"}', 413, "body_too_large"),
    ],
    ids=["json", "empty", "bytes", "deep", "surrogate", "surrogate-name", "nan", "large"],
)
def test_bodies_that_are_no_requests(served: Served, body: bytes, status: int, code: str) -> None:
    for content in (body, iter([body])):  # with its length, and in chunks without
        answer = served.client.post("/generate", content=content, headers={"content-type": "application/json"})
        assert (answer.status_code, refusal(answer)["code"]) == (status, code)


def test_other_routes_and_methods(served: Served) -> None:
    assert refusal(served.client.get("/nowhere"))["code"] == "route_not_found"
    answer = served.client.get("/generate")
    assert answer.status_code == 405 and answer.headers["allow"] == "POST"
    assert refusal(answer)["code"] == "method_not_allowed"


@pytest.mark.parametrize("headers", [{}, {"content-type": "application/x-www-form-urlencoded"}])
def test_json_that_is_not_sent_as_json(served: Served, headers: dict[str, str]) -> None:
    answer = served.client.post("/generate", content=json.dumps(ASK), headers=headers)
    assert answer.status_code == 400
    assert "send it with Content-Type: application/json" in refusal(answer)["message"]


def test_what_asks_for_nothing_passes(served: Served) -> None:
    neutral = {"tools": None, "logit_bias": {}, "response_format": {"type": "text"}, "store": False, "user": "me"}
    assert served.client.post("/v1/chat/completions", json={**CHAT, **neutral}).status_code == 200
