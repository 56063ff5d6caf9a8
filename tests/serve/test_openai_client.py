"""OpenAI's own client against the server: what its documentation promises, and its typed errors."""

import math
from collections.abc import Iterator

import openai
import pytest
from openai import OpenAI

from serve.conftest import Served

MESSAGES: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "What is a sum, and why?"}]


@pytest.fixture
def client(served: Served) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_chat(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="helper", messages=MESSAGES, max_tokens=8, temperature=0)
    (choice,) = answer.choices
    assert choice.message.role == "assistant" and choice.message.content and choice.finish_reason == "length"
    assert answer.usage is not None and answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8
    assert answer.object == "chat.completion" and answer.model == "helper" and answer.id.startswith("chatcmpl-")
    assert answer._request_id and answer.system_fingerprint


def test_an_answer_goes_back_as_the_client_gives_it(client: OpenAI) -> None:
    options = {"model": "helper", "max_tokens": 6, "temperature": 0}
    message = client.chat.completions.create(**options, messages=MESSAGES).choices[0].message
    follow_up = {"role": "user", "content": "And why not?"}
    plain = {"role": "assistant", "content": message.content}
    texts = {
        client.chat.completions.create(**options, messages=[*MESSAGES, turn, follow_up]).choices[0].message.content
        for turn in (message, message.model_dump(), plain)
    }
    assert len(texts) == 1


def test_parts_and_developers_are_texts_and_systems(client: OpenAI, served: Served) -> None:
    def ids(*turns: tuple[str, str | list[dict[str, str]]]) -> list[int]:
        messages = [{"role": role, "content": content} for role, content in turns]
        found: list[int] = (
            served.client.post("/tokenize", json={"messages": messages}).raise_for_status().json()["tokens"]
        )
        return found

    parts = [{"type": "text", "text": text} for text in ("Add these:", "3 and 9")]
    assert ids(("developer", "Be brief."), ("user", parts)) == ids(
        ("system", "Be brief."), ("user", "Add these:\n3 and 9")
    )


def test_a_stream_is_the_same_text_in_pieces(client: OpenAI) -> None:
    options = {"model": "helper", "messages": MESSAGES, "max_tokens": 24, "temperature": 0.8, "seed": 5}
    whole = client.chat.completions.create(**options)
    stream = client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["length"]
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_without_usage_has_none(client: OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="helper", messages=MESSAGES, max_tokens=3, stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


def test_seeds_repeat_and_differ(client: OpenAI) -> None:
    def text(seed: int) -> str | None:
        answer = client.chat.completions.create(
            model="helper", messages=MESSAGES, max_tokens=16, temperature=1.0, seed=seed
        )
        return answer.choices[0].message.content

    assert text(1) == text(1) != text(2)


def test_n_answers_are_those_of_the_seeds_that_follow(client: OpenAI) -> None:
    options = {"model": "helper", "messages": MESSAGES, "max_tokens": 12, "temperature": 1.0}
    answer = client.chat.completions.create(**options, seed=10, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    alone = [client.chat.completions.create(**options, seed=seed).choices[0].message.content for seed in (10, 11, 12)]
    assert [choice.message.content for choice in answer.choices] == alone and len(set(alone)) == 3
    assert answer.usage is not None and answer.usage.completion_tokens == 36


def test_n_answers_stream_side_by_side(client: OpenAI) -> None:
    options = {"model": "helper", "messages": MESSAGES, "max_tokens": 12, "temperature": 1.0, "seed": 10, "n": 3}
    whole = client.chat.completions.create(**options)
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(**options, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]


def test_stop_texts_end_the_answer_and_are_not_in_it(client: OpenAI) -> None:
    options = {"model": "helper", "messages": MESSAGES, "max_tokens": 30, "temperature": 0}
    full = client.chat.completions.create(**options).choices[0].message.content or ""
    stop = full[9:12]
    answer = client.chat.completions.create(**options, stop=[stop, "never there"]).choices[0]
    assert answer.finish_reason == "stop" and answer.message.content == full[: full.index(stop)]
    pieces = client.chat.completions.create(**options, stop=stop, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in pieces) == answer.message.content


def test_logprobs_of_chat(client: OpenAI) -> None:
    options = {"model": "helper", "messages": MESSAGES, "max_tokens": 10, "temperature": 0}
    answer = client.chat.completions.create(**options, logprobs=True, top_logprobs=4).choices[0]
    assert answer.logprobs is not None and answer.logprobs.content is not None
    content = answer.logprobs.content
    assert len(content) == 10
    assert bytes(b for token in content for b in token.bytes or []).decode(errors="replace") == answer.message.content
    for token in content:
        assert len(token.top_logprobs) == 4
        # Greedy: the chosen one is the best.
        assert token.logprob == max(other.logprob for other in token.top_logprobs)
        assert sum(math.exp(other.logprob) for other in token.top_logprobs) <= 1 + 1e-6
    chunks = client.chat.completions.create(**options, logprobs=True, top_logprobs=4, stream=True)
    streamed = [
        token
        for chunk in chunks
        if chunk.choices[0].logprobs is not None
        for token in chunk.choices[0].logprobs.content or []
    ]
    assert streamed == content
    assert client.chat.completions.create(**options).choices[0].logprobs is None


def test_completions(client: OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt="def add(a, b):", max_tokens=9, temperature=0, logprobs=2)
    (choice,) = answer.choices
    assert answer.object == "text_completion" and choice.finish_reason == "length"
    chances = choice.logprobs
    assert chances is not None and chances.tokens is not None and chances.token_logprobs is not None
    assert chances.top_logprobs is not None and chances.text_offset is not None
    assert len(chances.tokens) == 9 and all(
        token in top for token, top in zip(chances.tokens, chances.top_logprobs, strict=True)
    )
    assert chances.text_offset[0] == 0 and chances.text_offset[1] == len(chances.tokens[0])
    pieces = client.completions.create(model="tiny", prompt="def add(a, b):", max_tokens=9, temperature=0, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == choice.text


def test_completions_take_texts_and_ids_one_or_several(client: OpenAI, served: Served) -> None:
    texts = ["def add(a, b):", "import"]
    ids = [served.client.post("/tokenize", json={"prompt": text}).json()["tokens"] for text in texts]
    options = {"model": "tiny", "max_tokens": 5, "temperature": 0}
    alone = [client.completions.create(**options, prompt=text).choices[0].text for text in texts]
    assert [c.text for c in client.completions.create(**options, prompt=texts).choices] == alone
    assert [c.text for c in client.completions.create(**options, prompt=ids).choices] == alone
    assert client.completions.create(**options, prompt=ids[0]).choices[0].text == alone[0]
    twice = client.completions.create(**options, prompt=texts, n=2).choices
    assert [c.text for c in twice] == [alone[0], alone[0], alone[1], alone[1]]
    assert [c.index for c in twice] == [0, 1, 2, 3]


def test_the_default_of_completions_is_16_tokens(client: OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt="x", temperature=0)
    assert answer.usage is not None and answer.usage.completion_tokens <= 16


def test_chat_without_max_tokens_goes_to_the_end_of_the_context(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="helper", messages=MESSAGES, temperature=0)
    assert answer.usage is not None
    assert answer.choices[0].finish_reason == "stop" or answer.usage.total_tokens == 512


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["helper", "poet.v2", "tiny"]
    assert client.models.retrieve("poet.v2").id == "poet.v2"


def test_more_sampling_options_by_extra_body(client: OpenAI) -> None:
    options = {"model": "helper", "messages": MESSAGES, "max_tokens": 12, "temperature": 1.0, "seed": 3}
    greedy = client.chat.completions.create(**{**options, "temperature": 0}).choices[0].message.content
    only_best = client.chat.completions.create(**options, extra_body={"top_k": 1}).choices[0].message.content
    assert only_best == greedy


def test_errors_are_typed(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(
            model="helper", messages=MESSAGES, tools=[{"type": "function", "function": {"name": "f"}}]
        )
    assert refused.value.param == "tools" and refused.value.code == "unsupported_field"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model="helper", messages=MESSAGES, max_tokens=100_000)
    assert long.value.code == "context_length_exceeded" and long.value.type == "invalid_request_error"
