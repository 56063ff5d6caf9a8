"""The one shape of every answer that is not a success: OpenAI's error object."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field


class ApiError(Exception):
    """A request that is refused, or failed.

    Args:
        status: HTTP status.
        message: what is wrong and what to do; no paths, no internals.
        code: for programs.
        param: the field at fault, such as ``messages[0].content``.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        # Quoted input may hold halves of surrogate pairs, which JSON can write and UTF-8 cannot.
        self.message = message.encode("utf-8", "replace").decode()
        self.code = code
        self.param = param.encode("utf-8", "replace").decode() if param is not None else None
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON object."""
        return {"error": {"message": self.message, "type": _kind(self.status), "param": self.param, "code": self.code}}


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str = Field(description="For people.", examples=["max_tokens: Input should be greater than 0"])
    type: str = Field(description="Whose fault it is.", examples=["invalid_request_error"])
    param: str | None = Field(description="The field at fault.", examples=["max_tokens"])
    code: str | None = Field(description="For programs.", examples=["invalid_value"])


class ErrorBody(BaseModel):
    """The body of every answer with a status of 400 and above."""

    error: ErrorDetail


def _kind(status: int) -> str:
    """OpenAI's ``type`` for a status."""
    kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
    return kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
