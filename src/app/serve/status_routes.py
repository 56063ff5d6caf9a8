"""The routes that tell: models, tokens, health, metrics."""

from typing import Annotated, Any

from fastapi import APIRouter, Body
from fastapi.responses import JSONResponse, RedirectResponse, Response

from app import __version__
from app.serve import answers, examples, metrics
from app.serve.api_error import ApiError
from app.serve.requests import TokenizeRequest
from app.serve.server import Server
from app.serve.vocabulary import Vocabulary


def status_routes(server: Server) -> APIRouter:
    """Routes over that server."""
    router = APIRouter(tags=["status"])

    def described(name: str) -> dict[str, Any]:
        catalogue = server.catalogue
        return {
            "id": name,
            "object": "model",
            "created": int(server.started),
            "owned_by": "app",
            "parent": catalogue.base_name if name in catalogue.runs else None,
            "max_model_len": server.backend.context or None,
        }

    @router.get("/health", summary="How the server is", response_model=answers.Health, responses=_unhealthy())
    async def health() -> JSONResponse:
        """200 while requests are taken; 503 while the model loads, when it failed, and while the server stops."""
        catalogue, backend = server.catalogue, server.backend
        body = {
            "status": server.status,
            "model": catalogue.names[0],
            "models": list(catalogue.names),
            "adapters": list(catalogue.runs),
            "engine": server.settings.engine,
            "version": __version__,
            "uptime_s": round(server.uptime, 3),
            "running": backend.running(),
            "waiting": max(server.gate.taken - backend.running(), 0),
            "memory": backend.memory() if server.status == "ready" else None,
        }
        return JSONResponse(body, 200 if server.status == "ready" else 503)

    @router.get("/metrics", summary="Metrics for Prometheus", response_class=Response, responses=_METRICS)
    async def read_metrics() -> Response:
        """README.md beside the source lists the names."""
        return Response(server.metrics.text(), headers={"Content-Type": metrics.CONTENT_TYPE})

    @router.get("/v1/models", summary="The models", response_model=answers.ModelList)
    async def models() -> dict[str, Any]:
        """The runs, and the base under them; the first is the default."""
        return {"object": "list", "data": [described(name) for name in server.catalogue.names]}

    @router.get("/v1/models/{model:path}", summary="A model", response_model=answers.Model)
    async def model(model: str) -> dict[str, Any]:
        """One of `/v1/models`."""
        server.catalogue.run_of(model)
        return described(model)

    @router.post("/tokenize", summary="Token ids of a text or a conversation", response_model=answers.Tokens)
    async def tokenize(
        body: Annotated[TokenizeRequest, Body(openapi_examples=examples.TOKENIZE)],
    ) -> dict[str, Any]:
        """What the model is given: with `messages`, the template included."""
        server.catalogue.run_of(body.model)
        if not body.add_special_tokens and body.messages is not None:
            raise ApiError(400, "conversations always have them", code="invalid_value", param="add_special_tokens")

        def encode(vocabulary: Vocabulary) -> dict[str, Any]:
            if body.messages is not None:
                ids = vocabulary.conversation([turn.message() for turn in body.messages])
            else:
                ids = vocabulary.text(body.prompt or "", special=body.add_special_tokens)
            texts = [vocabulary.token_text(token) for token in ids] if body.return_token_strs else None
            return {
                "count": len(ids),
                "max_model_len": server.backend.context,
                "tokens": ids,
                "token_strs": texts,
            }

        return await server.encode(encode)

    @router.get("/", include_in_schema=False)
    async def index() -> RedirectResponse:
        return RedirectResponse("docs")

    return router


def _unhealthy() -> dict[int | str, dict[str, Any]]:
    return {503: {"model": answers.Health, "description": "Loading, failed, or stopping"}}


_METRICS: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
