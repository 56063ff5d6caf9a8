"""The FastAPI application over a server: routes, one error shape, and the OpenAPI document that tells the truth."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from app import __version__
from app.serve.api_error import ApiError, ErrorBody
from app.serve.middleware import BodyLimit, Guard, Reception, record_of
from app.serve.requests import (
    ChatRequest,
    CompletionRequest,
    GenerateRequest,
    StreamOptions,
    TextPart,
    TokenizeRequest,
    Turn,
)
from app.serve.routes import generation_routes
from app.serve.server import Server
from app.serve.status_routes import status_routes

_DESCRIPTION = """A fine-tuned model behind OpenAI's protocol and a plain one of its own.

Every error has one shape: `{"error": {"message", "type", "param", "code"}}`. Fields that are unknown or not supported
are refused, never ignored. Answers carry `x-request-id`; a request may bring its own."""

_FIELDS = frozenset(
    name
    for model in (GenerateRequest, ChatRequest, CompletionRequest, TokenizeRequest, Turn, TextPart, StreamOptions)
    for name in model.model_fields
)
_MESSAGE = 2000
"""Characters of a refusal: a body may be wrong in a thousand places."""

_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text}
    for status, text in {
        400: "The request is wrong; `param` names the field",
        401: "No right API key",
        404: "No such model",
        408: "The body did not come in time",
        413: "The body is too large",
        429: "The queue is full, or the key's rate is used up; `Retry-After` says when to come back",
        500: "The server failed",
        503: "Loading, failed, or stopping",
        504: "Not complete within the time a request may take",
    }.items()
}


def create_app(server: Server) -> ASGIApp:
    """The ASGI application; whoever runs it opens and closes the server."""
    app = FastAPI(
        title="app",
        version=__version__,
        description=_DESCRIPTION,
        responses=_REFUSALS,
        redirect_slashes=False,
        redoc_url=None,
    )
    app.include_router(generation_routes(server))
    app.include_router(status_routes(server))
    app.add_exception_handler(ApiError, _refuse)
    app.add_exception_handler(RequestValidationError, _refuse_invalid)
    app.add_exception_handler(HTTPException, _refuse_http)
    app.add_exception_handler(Exception, _fail)
    _truthful_openapi(app, keys=server.keys.required)
    served: ASGIApp = Reception(Guard(BodyLimit(app, server), server), server)
    if server.settings.cors_origins:
        served = CORSMiddleware(
            served,
            allow_origins=server.settings.cors_origins,
            allow_methods=["GET", "POST"],
            # OpenAI's client sends a dozen x-stainless-… of its own. Origins are what keeps pages out.
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    return served


async def _refuse(request: Request, fault: Exception) -> JSONResponse:
    assert isinstance(fault, ApiError)
    record_of(request.scope)["error"] = fault.code
    return JSONResponse(fault.body(), fault.status, headers=fault.headers)


async def _fail(request: Request, fault: Exception) -> JSONResponse:
    """A bug of ours: the log has its trace, the client does not."""
    return await _refuse(request, ApiError(500, "the server failed on this request", code="internal_error"))


async def _refuse_invalid(request: Request, fault: Exception) -> JSONResponse:
    """A body that is no JSON, or not what the route takes: the first fault gives the field, all give the message."""
    assert isinstance(fault, RequestValidationError)
    if isinstance(fault.body, bytes):  # not parsed, for it was not sent as JSON: `curl -d` says it is a form
        text = "the body was not sent as JSON: send it with Content-Type: application/json"
        return await _refuse(request, ApiError(400, text, code="invalid_json"))
    named = [(_field(error), error) for error in fault.errors()]
    texts = [
        error["msg"] if not field or "field" in error.get("ctx", {}) else f"{field}: {error['msg']}"
        for field, error in named
    ]
    field, first = named[0]
    codes = {"json_invalid": "invalid_json", "extra_forbidden": "unknown_field", "unsupported": "unsupported_field"}
    code = codes.get(first["type"], "invalid_value")
    message = "; ".join(dict.fromkeys(texts))[:_MESSAGE]
    return await _refuse(request, ApiError(400, message, code=code, param=field or None))


def _field(error: dict[str, Any]) -> str:
    """The field at fault as clients write it: ``messages[0].content``; "" for the whole body."""
    # Where a field takes several types, their names stand in the place too; they say nothing to a client.
    last = len(error["loc"]) - 1
    places = [
        place
        for number, place in enumerate(error["loc"])
        if error["type"] != "json_invalid"
        and (isinstance(place, int) or place in _FIELDS or (error["type"] == "extra_forbidden" and number == last))
    ]
    if named := error.get("ctx", {}).get("field"):
        places.append(named)
    text = "".join(f"[{place}]" if isinstance(place, int) else f".{place}" for place in places)
    return text.removeprefix(".")


async def _refuse_http(request: Request, fault: Exception) -> JSONResponse:
    """Unknown routes, wrong methods, bodies that cannot be read."""
    assert isinstance(fault, HTTPException)
    known = {
        404: ("there is no such route; /docs lists them", "route_not_found"),
        405: ("this route has other methods", "method_not_allowed"),
    }
    message, code = known.get(fault.status_code, (str(fault.detail), "invalid_request"))
    return await _refuse(request, ApiError(fault.status_code, message, code=code, headers=fault.headers))


def _truthful_openapi(app: FastAPI, *, keys: bool) -> None:
    """Takes out of FastAPI's document what this server never does (422), and adds the key where one is asked for."""
    document = app.openapi()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            if keys and path not in ("/health", "/metrics"):
                operation["security"] = [{"key": []}]
    schemas = document["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    if keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
