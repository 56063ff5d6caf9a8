"""The OpenAPI document against the server: schemathesis makes requests from it, right ones and wrong ones.

Every answer must be one the document knows: status, content type and body. No request may be a 5xx, and none that the
document forbids may be accepted.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode

from support.serving import in_process

pytestmark = pytest.mark.slow

OPERATIONS = (
    ("POST", "/generate"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/tokenize"),
    ("GET", "/v1/models/{model}"),
    ("GET", "/v1/models"),
    ("GET", "/health"),
    ("GET", "/metrics"),
)

# A conversation whose roles are out of order, a prompt longer than the context and a model that is not there are
# refused, and JSON Schema cannot say so.
NOT_EXPRESSIBLE = [schemathesis.checks.positive_data_acceptance]


@pytest.fixture(scope="module")
def document(runs: dict[str, Path]) -> Iterator[Any]:
    """The document of a server with a context so short that every answer is soon complete."""
    with in_process(run=str(runs["helper"]), context=128, slots=4) as (url, _):
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


def test_all_operations_are_looked_at(document: Any) -> None:
    found = {(result.ok().method.upper(), result.ok().path) for result in document.get_all_operations()}
    assert found == set(OPERATIONS)


@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [
        *((method, path, GenerationMode.POSITIVE) for method, path in OPERATIONS),
        *((method, path, GenerationMode.NEGATIVE) for method, path in OPERATIONS if method == "POST"),
    ],
)
def test_every_answer_is_in_the_document(document: Any, method: str, path: str, mode: GenerationMode) -> None:
    operation = document[path][method]

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=25,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def check(case: schemathesis.Case) -> None:
        case.call_and_validate(excluded_checks=NOT_EXPRESSIBLE, timeout=60)

    check()
