"""The routes that generate: `/generate`, and OpenAI's."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request

from app.serve import answers, examples
from app.serve.delivery import Delivery, Form
from app.serve.forms import ChatForm, CompletionForm, GenerateForm
from app.serve.middleware import record_of
from app.serve.requests import ChatRequest, CompletionRequest, GenerateRequest, OpenAIFields, SamplingFields
from app.serve.server import Server
from app.serve.vocabulary import Vocabulary

_STREAM: dict[str, Any] = {"text/event-stream": {}}


def generation_routes(server: Server) -> APIRouter:
    """Routes over that server."""
    router = APIRouter(tags=["generate"])

    async def deliver(
        request: Request,
        body: SamplingFields,
        form: Callable[[str], Form],
        *,
        field: str,
        prompts: Callable[[Vocabulary], list[list[int]]],
        count: int = 1,
        max_tokens: int | None,
        shorten: bool,
        temperature: float,
        logprobs: int | None = None,
    ) -> Delivery:
        record = record_of(request.scope)
        each = (body.n or 1) if isinstance(body, OpenAIFields) else 1
        if isinstance(body, OpenAIFields) and body.user is not None:
            record["user"] = body.user
        if server.settings.log_prompts:
            record["body"] = body.model_dump(exclude_none=True)
        work = await server.begin(
            arrived=request.scope["app.arrived"],
            model=body.model,
            field=field,
            prompts=prompts,
            count=count,
            each=each,
            max_tokens=max_tokens,
            shorten=shorten,
            sampling=lambda index, limit: body.sampling(
                index=index % each, default_temperature=temperature, max_tokens=limit, logprobs=logprobs
            ),
            record=record,
        )
        stream = bool(body.stream)
        record["stream"] = stream
        return Delivery(server, work, form(record["request_id"]), stream=stream, record=record)

    @router.post(
        "/generate",
        summary="Answer a question or a conversation",
        response_model=answers.Generated,
        responses={200: {"content": _STREAM}},
    )
    async def generate(
        request: Request, body: Annotated[GenerateRequest, Body(openapi_examples=examples.GENERATE)]
    ) -> Delivery:
        """One answer. With `stream`, events `{"text": …}` and, last, one with all that is not text."""
        messages = body.conversation()
        field = "prompt" if body.messages is None else "messages"
        return await deliver(
            request,
            body,
            GenerateForm,
            field=field,
            prompts=lambda vocabulary: [vocabulary.conversation(messages, field=field)],
            max_tokens=body.max_tokens or 256,
            # Null is no wish either.
            shorten=body.max_tokens is None or "max_tokens" not in body.model_fields_set,
            temperature=0.0,
        )

    @router.post(
        "/v1/chat/completions",
        summary="Chat, as OpenAI's API does",
        response_model=answers.ChatCompletion,
        responses={200: {"content": _STREAM}},
    )
    async def chat(request: Request, body: Annotated[ChatRequest, Body(openapi_examples=examples.CHAT)]) -> Delivery:
        """Answers to a conversation, for OpenAI's clients."""
        messages = [turn.message() for turn in body.messages]
        asked = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        return await deliver(
            request,
            body,
            lambda name: ChatForm(
                f"chatcmpl-{name}",
                server.backend.vocabulary,
                fingerprint=server.fingerprint,
                logprobs=bool(body.logprobs),
                usage=_usage(body),
            ),
            field="messages",
            prompts=lambda vocabulary: [vocabulary.conversation(messages)],
            max_tokens=asked,
            shorten=False,
            temperature=1.0,
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        )

    @router.post(
        "/v1/completions",
        summary="Go on from a text, as OpenAI's API does",
        response_model=answers.Completion,
        responses={200: {"content": _STREAM}},
    )
    async def complete(
        request: Request, body: Annotated[CompletionRequest, Body(openapi_examples=examples.COMPLETION)]
    ) -> Delivery:
        """Continuations of texts or token ids as they stand: no template is put around them."""
        given = _prompts(body)
        return await deliver(
            request,
            body,
            lambda name: CompletionForm(
                f"cmpl-{name}",
                server.backend.vocabulary,
                fingerprint=server.fingerprint,
                logprobs=body.logprobs is not None,
                usage=_usage(body),
            ),
            field="prompt",
            prompts=lambda vocabulary: [vocabulary.text(part) if isinstance(part, str) else part for part in given],
            count=len(given),
            max_tokens=body.max_tokens or 16,
            shorten=False,
            temperature=1.0,
            logprobs=body.logprobs,
        )

    return router


def _usage(body: OpenAIFields) -> bool:
    return body.stream_options is not None and body.stream_options.include_usage


def _prompts(body: CompletionRequest) -> Sequence[str | list[int]]:
    """The prompts one by one, whichever of its four forms the field has."""
    if isinstance(body.prompt, str):
        return [body.prompt]
    ids = [part for part in body.prompt if isinstance(part, int)]
    return [ids] if ids else [part for part in body.prompt if not isinstance(part, int)]
