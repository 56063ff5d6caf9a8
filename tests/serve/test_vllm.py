"""vLLM behind the routes: its command line from a run, and the proxy, against a server that speaks its protocol."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from app.errors import ConfigError
from app.serve.catalogue import read_catalogue
from app.serve.settings import Settings, read_settings
from app.serve.vllm_arguments import launch_arguments
from conftest import TinyCheckpoint
from export.conftest import write_run
from serve.conftest import Served
from support.serving import in_process, listening, until

OPTIONS = frozenset((Path(__file__).parent / "vllm_options.txt").read_text(encoding="utf-8").split())
"""What the parser of vLLM 0.33.0 knows (``make_arg_parser`` of vllm/entrypoints/common/cli_args.py)."""


def arguments(run: object, **settings: object) -> list[str]:
    chosen: Settings = read_settings({}, {"run": run, "engine": "vllm", **settings})
    return launch_arguments(chosen, read_catalogue(chosen, Path), port=8123)


def value(of: list[str], option: str) -> str:
    return of[of.index(option) + 1]


def test_a_run_becomes_a_command_line(runs: dict[str, Path], tiny: TinyCheckpoint) -> None:
    made = arguments([str(run) for run in runs.values()], context=2048, slots=32, base_name="tiny", vllm_gpus=2)
    assert made[:2] == ["serve", str(tiny("smollm2"))]
    assert {part for part in made if part.startswith("--")} <= OPTIONS
    assert value(made, "--quantization") == "bitsandbytes" and value(made, "--served-model-name") == "tiny"
    assert value(made, "--max-model-len") == "2048" and value(made, "--max-num-seqs") == "32"
    assert value(made, "--host") == "127.0.0.1" and value(made, "--tensor-parallel-size") == "2"
    assert "--enable-lora" in made and value(made, "--max-loras") == "2" and value(made, "--max-lora-rank") == "8"
    modules = [json.loads(part) for part in made if part.startswith("{")]
    assert [module["name"] for module in modules] == list(runs)
    assert all((Path(module["path"]) / "adapter_model.safetensors").is_file() for module in modules)


def test_vllm_itself_takes_it(runs: dict[str, Path]) -> None:
    pytest.importorskip("vllm")
    from vllm.entrypoints.common.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(arguments(str(runs["helper"]))[1:])
    assert [module.name for module in parsed.lora_modules] == ["helper"]


def test_a_base_alone_has_no_adapters(tiny: TinyCheckpoint) -> None:
    made = arguments([], base=str(tiny("llama3")), family="llama3", quantization="none")
    assert "--enable-lora" not in made and "--quantization" not in made


def test_ranks_are_those_vllm_takes(tiny: TinyCheckpoint, tmp_path: Path) -> None:
    write_run(tmp_path, tiny("llama3"), "llama3", quantization="nf4", strength=0.1, rank_pattern={"o_proj": 20})
    assert value(arguments(str(tmp_path)), "--max-lora-rank") == "32"


def test_what_vllm_does_not_run_is_refused(tiny: TinyCheckpoint, tmp_path: Path, runs: dict[str, Path]) -> None:
    write_run(tmp_path, tiny("llama3"), "llama3", quantization="nf4", strength=0.1, use_dora=True)
    with pytest.raises(ConfigError, match="plain LoRA only"):
        arguments(str(tmp_path))
    with pytest.raises(ConfigError, match="--port is set by the application"):
        arguments(str(runs["helper"]), vllm_args="--enforce-eager --port=3")
    with pytest.raises(ConfigError, match="No closing quotation"):
        arguments(str(runs["helper"]), vllm_args="'open")
    assert arguments(str(runs["helper"]), vllm_args="--enforce-eager --seed 3")[-3:] == [
        "--enforce-eager",
        "--seed",
        "3",
    ]


class AsVllm:
    """Our own completions route with what vLLM's adds to it: ``token_id:N`` for tokens where that is asked for."""

    def __init__(self, server: str) -> None:
        self.server = server
        self.asked: list[dict[str, object]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        async with httpx.AsyncClient(base_url=self.server, timeout=60) as client:
            if request.method == "GET":
                answer = await client.get(request.url.path)
                await JSONResponse(answer.json())(scope, receive, send)
                return
            body = await request.json()
            self.asked.append(dict(body))
            if body.pop("return_tokens_as_token_ids", False):
                body["logprobs"] = None  # the alternatives' ids are not in our route's answer
            inner = await client.send(client.build_request("POST", request.url.path, json=body), stream=True)
            if inner.status_code != 200:
                await inner.aread()
                await JSONResponse(inner.json(), inner.status_code)(scope, receive, send)
                return
            try:
                await StreamingResponse(inner.aiter_raw(), media_type="text/event-stream")(scope, receive, send)
            finally:
                await inner.aclose()


@pytest.fixture(scope="module")
def proxied(served: Served, runs: dict[str, Path]) -> Iterator[tuple[Served, AsVllm]]:
    """The routes over a backend that is not the local engine."""
    upstream = AsVllm(served.url)
    settings = {"run": [str(run) for run in runs.values()], "base_name": "tiny", "engine": "vllm"}
    with (
        listening(upstream) as address,
        in_process(**settings, vllm_url=address) as (url, server),
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        yield Served(url, server, client), upstream


ASKS = (
    ("/generate", {"prompt": "What is a sum?", "max_tokens": 12}),
    ("/generate", {"prompt": "What is a sum?", "max_tokens": 12, "temperature": 0.9, "seed": 4, "model": "poet.v2"}),
    (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9, "temperature": 0, "n": 2},
    ),
    ("/v1/completions", {"prompt": "def add(a, b):", "max_tokens": 9, "temperature": 0, "model": "tiny"}),
)


@pytest.mark.parametrize(("route", "body"), ASKS)
def test_answers_are_the_same_behind_the_same_routes(
    proxied: tuple[Served, AsVllm], served: Served, route: str, body: dict[str, object]
) -> None:
    through, direct = (s.client.post(route, json=body).json() for s in (proxied[0], served))
    for answer in (through, direct):
        for name in ("id", "created", "timings", "system_fingerprint", "seed"):
            answer.pop(name, None)
    assert through == direct
    with proxied[0].client.stream("POST", route, json={**body, "stream": True}) as stream:
        lines = [line for line in stream.iter_lines() if line]
    assert stream.status_code == 200 and len(lines) > 2


def test_it_is_given_token_ids_and_the_adapter_s_name(proxied: tuple[Served, AsVllm], served: Served) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    proxied[0].client.post("/generate", json={"messages": messages, "max_tokens": 3, "model": "poet.v2", "top_k": 5})
    asked = proxied[1].asked[-1]
    assert asked["prompt"] == served.client.post("/tokenize", json={"messages": messages}).json()["tokens"]
    assert asked["model"] == "poet.v2" and asked["top_k"] == 5 and asked["stream"] is True


def test_checks_come_before_it(proxied: tuple[Served, AsVllm]) -> None:
    before = len(proxied[1].asked)
    client = proxied[0].client
    assert client.post("/generate", json={"prompt": "x", "max_tokens": 600}).status_code == 400
    assert client.post("/generate", json={"prompt": "x", "model": "gpt"}).status_code == 404
    assert client.post("/v1/chat/completions", json={"messages": [], "tools": [1]}).status_code == 400
    assert len(proxied[1].asked) == before and client.get("/health").json()["engine"] == "vllm"


def test_its_refusal_is_passed_on(proxied: tuple[Served, AsVllm]) -> None:
    answer = proxied[0].client.post("/v1/completions", json={"prompt": [1, 10**6], "max_tokens": 2})
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "invalid_value"


def test_a_client_that_leaves_ends_it_there_too(proxied: tuple[Served, AsVllm], served: Served) -> None:
    with proxied[0].client.stream("POST", "/generate", json={"prompt": "x y", "max_tokens": 400, "stream": True}):
        until(lambda: served.server.backend.running() == 1)
    until(lambda: served.server.backend.running() == 0 and proxied[0].server.gate.taken == 0, seconds=5)


def test_log_probabilities_are_read_by_token_id() -> None:
    from app.serve.vllm import _logprobs

    given = {
        "tokens": ["token_id:5", "token_id:7"],
        "token_logprobs": [-0.5, -1.0],
        "top_logprobs": [{"token_id:5": -0.5, "token_id:9": -2.0}, None],
    }
    first, second = _logprobs(given)
    assert (first.token_id, first.logprob, first.top) == (5, -0.5, ((5, -0.5), (9, -2.0)))
    assert (second.token_id, second.top) == (7, ()) and _logprobs(None) == ()
