"""What clients may send, and the check of it. Unknown fields, wrong types and values out of range are refused."""

import secrets
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from app.data.records import Message
from app.generate.sampling import Sampling

UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "metadata": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (),
    "prediction": (),
    "prompt_cache_key": (),
    "prompt_cache_options": (),
    "prompt_cache_retention": (),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Fields of OpenAI's API that are not served, with the values besides null that ask for nothing: those pass."""

UNSUPPORTED_IN_TURNS: dict[str, tuple[Any, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "name": (),
    "parsed": (),
    "refusal": (),
    "tool_calls": ([],),
}
"""The same of a message: OpenAI's clients send answers back with all the fields that its class has."""

Text = Annotated[str, Field(max_length=1 << 24)]
Ids = Annotated[list[Annotated[int, Field(ge=0, le=2**31)]], Field(min_length=1)]


class Strict(BaseModel):
    """A JSON object of exactly these fields, of exactly these types."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = UNSUPPORTED

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, value: Any) -> Any:
        """Names the field of OpenAI's API that is not served, and drops those that ask for nothing."""
        if not isinstance(value, dict):
            return value
        asked = [name for name in value if name in cls.unsupported and name not in cls.model_fields]
        for name in asked:
            if value[name] is not None and value[name] not in cls.unsupported[name]:
                raise PydanticCustomError("unsupported", "{field} is not supported by this server", {"field": name})
        return {name: part for name, part in value.items() if name not in asked}


class TextPart(Strict):
    """A part of a message; those that are no text are not served."""

    type: Literal["text"]
    text: Text


class Turn(Strict):
    """A message of a conversation: at most one of the system, first; then user and assistant in turn, user last."""

    unsupported = UNSUPPORTED_IN_TURNS

    role: Literal["system", "developer", "user", "assistant"] = Field(description="developer: the same as system.")
    content: Text | Annotated[list[TextPart], Field(min_length=1)] = Field(
        description="Parts become lines, as in vLLM."
    )

    def message(self) -> Message:
        """The same for the renderer."""
        role = "system" if self.role == "developer" else self.role
        content = self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)
        return Message(role=role, content=content)


class StreamOptions(Strict):
    """Options of a streamed answer."""

    include_usage: bool = Field(False, description="End the stream with a chunk that counts the tokens.")


class SamplingFields(Strict):
    """How an answer is written. ``null`` is the same as leaving a field out."""

    model: str | None = Field(None, description="One of `/v1/models`; the first of them by default.")
    temperature: float | None = Field(None, ge=0, le=2, description="0 always takes the most likely token.")
    top_p: float | None = Field(None, gt=0, le=1, description="The most likely tokens that hold this probability.")
    top_k: int | None = Field(None, ge=0, description="The k most likely tokens; 0 is off.")
    min_p: float | None = Field(None, ge=0, le=1, description="Tokens of this share of the best one's probability.")
    # Below a hundredth, scores leave float32 and the step fails, of everybody in the batch.
    repetition_penalty: float | None = Field(None, ge=0.01, le=10, description="Of tokens in prompt or answer (CTRL).")
    frequency_penalty: float | None = Field(None, ge=-2, le=2, description="For each time the answer holds a token.")
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="Once for each token the answer holds.")
    seed: int | None = Field(None, ge=0, le=2**63 - 1, description="The same seed gives the same answer.")
    stop: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=16)]
        | None
    ) = Field(None, description="Texts that end the answer and are not part of it.")
    stream: bool | None = Field(False, description="Server-sent events instead of one JSON object.")

    def sampling(self, *, index: int, default_temperature: float, max_tokens: int, logprobs: int | None) -> Sampling:
        """The engine's options for answer number ``index``, which has a seed of its own."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Sampling(
            temperature=default_temperature if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k or 0,
            min_p=self.min_p or 0.0,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            # Drawn here, where it is short enough for the numbers of JavaScript: answers give it back.
            seed=secrets.randbelow(1 << 53) if self.seed is None else self.seed + index,
            stop=tuple(stop),
            max_tokens=max_tokens,
            logprobs=logprobs,
        )


class OpenAIFields(SamplingFields):
    """What OpenAI's two routes share."""

    n: int | None = Field(1, ge=1, le=128, description="Answers to each prompt.")
    stream_options: StreamOptions | None = None
    user: Annotated[str, Field(max_length=256)] | None = Field(None, description="Written to the log.")

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> "OpenAIFields":
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError("invalid_value", "{field} needs stream: true", {"field": "stream_options"})
        return self


class ChatRequest(OpenAIFields):
    """`POST /v1/chat/completions`."""

    messages: list[Turn] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1, description="The most tokens of an answer; the context's rest if unset.")
    max_completion_tokens: int | None = Field(None, ge=1, description="The newer name of max_tokens.")
    logprobs: bool | None = Field(False, description="Report each token's log-probability.")
    top_logprobs: int | None = Field(None, ge=0, le=20, description="And the best alternatives; needs logprobs.")

    @model_validator(mode="after")
    def _agree(self) -> "ChatRequest":
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise PydanticCustomError(
                "invalid_value", "{field} was given under both its names", {"field": "max_tokens"}
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise PydanticCustomError("invalid_value", "{field} needs logprobs: true", {"field": "top_logprobs"})
        return self


class CompletionRequest(OpenAIFields):
    """`POST /v1/completions`: a text or token ids to go on from, without any template."""

    prompt: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
        | Ids
        | Annotated[list[Ids], Field(min_length=1)]
    )
    max_tokens: int | None = Field(16, ge=1, description="The most tokens of an answer.")
    logprobs: int | None = Field(None, ge=0, le=20, description="Report log-probabilities, with so many alternatives.")


class GenerateRequest(SamplingFields):
    """`POST /generate`: a question, or a conversation."""

    prompt: Annotated[str, Field(min_length=1, max_length=1 << 24)] | None = Field(
        None, description="A question: the same as messages with one of the user."
    )
    system: Text | None = Field(None, description="The system message; with prompt only.")
    messages: Annotated[list[Turn], Field(min_length=1)] | None = Field(None, description="Instead of prompt.")
    max_tokens: int | None = Field(256, ge=1, description="The most tokens of the answer.")

    @model_validator(mode="after")
    def _one_prompt(self) -> "GenerateRequest":
        if (self.prompt is None) == (self.messages is None):
            raise PydanticCustomError("invalid_value", "give either {field} or messages", {"field": "prompt"})
        if self.system is not None and self.messages is not None:
            raise PydanticCustomError("invalid_value", "{field} goes with prompt", {"field": "system"})
        return self

    def conversation(self) -> list[Message]:
        """The messages to answer."""
        if self.messages is not None:
            return [turn.message() for turn in self.messages]
        system = [Message(role="system", content=self.system)] if self.system else []
        return [*system, Message(role="user", content=self.prompt or "")]


class TokenizeRequest(Strict):
    """`POST /tokenize`: of a text as it stands, or of a conversation with the template around it."""

    model: str | None = Field(None, description="One of `/v1/models`; all of them share the tokenizer.")
    prompt: Text | None = None
    messages: Annotated[list[Turn], Field(min_length=1)] | None = None
    add_special_tokens: bool = Field(True, description="Begin a text as the model's texts begin.")
    return_token_strs: bool | None = Field(False, description="The tokens as text too.")

    @model_validator(mode="after")
    def _one_prompt(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise PydanticCustomError("invalid_value", "give either {field} or messages", {"field": "prompt"})
        return self
