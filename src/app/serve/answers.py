"""What the API answers with, as the OpenAPI document describes it."""

from typing import Literal

from pydantic import BaseModel, Field


class Usage(BaseModel):
    """Tokens counted."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TokenChance(BaseModel):
    """A token with its log-probability and its bytes."""

    token: str
    logprob: float
    bytes: list[int]


class ChosenToken(TokenChance):
    """A token of the answer, with the best ones at its place."""

    top_logprobs: list[TokenChance]


class ChatLogprobs(BaseModel):
    """The answer, token by token."""

    content: list[ChosenToken]


class AnswerMessage(BaseModel):
    """The answer's text."""

    role: Literal["assistant"]
    content: str


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    """The answers to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class CompletionLogprobs(BaseModel):
    """The answer, token by token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One continuation."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]


class Completion(BaseModel):
    """The continuations of the prompts."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage


class Timings(BaseModel):
    """Seconds, on the server's clock."""

    first_token_s: float = Field(description="From the request's arrival to the first token, waiting included.")
    total_s: float = Field(description="From the request's arrival to the last token.")
    tokens_per_second: float = Field(description="Of the tokens after the first.")


class Generated(BaseModel):
    """The answer to `POST /generate`; the last event of its stream is the same without the text."""

    id: str
    model: str
    text: str
    finish_reason: Literal["stop", "length"] = Field(description="A stop token or text; or max_tokens.")
    prompt_tokens: int
    completion_tokens: int
    seed: int | None = Field(description="That gives this answer again.")
    timings: Timings


class Model(BaseModel):
    """A model the API offers."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    parent: str | None = Field(description="The base that an adapter changes.")
    max_model_len: int | None = Field(description="Tokens of prompt and answer together; null while loading.")


class ModelList(BaseModel):
    """All of them; the first is the default."""

    object: Literal["list"]
    data: list[Model]


class Tokens(BaseModel):
    """A text's token ids."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Memory(BaseModel):
    """Of the device, or of the process on a CPU; bytes."""

    device: str
    used: int
    total: int


class Health(BaseModel):
    """How the server is."""

    status: Literal["ready", "loading", "failed", "draining"]
    model: str = Field(description="The default.")
    models: list[str]
    adapters: list[str] = Field(description="Those of the models that are adapters.")
    engine: Literal["local", "vllm"]
    version: str
    uptime_s: float
    running: int
    waiting: int
    memory: Memory | None
