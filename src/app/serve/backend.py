"""What the routes need of whoever generates: this application's engine, or vLLM."""

from typing import Any, Literal, Protocol

from app.serve.job import Done, Job
from app.serve.vocabulary import Vocabulary

State = Literal["loading", "ready", "failed"]


class Backend(Protocol):
    """Generates answers. `open` and `close` are called once each; all methods on the event loop.

    Attributes:
        state: "loading" until requests can be taken; "failed" once they never can.
        vocabulary: text to token ids; set before the state is "ready".
        context: tokens that prompt and answer may have together.
    """

    state: State
    vocabulary: Vocabulary
    context: int

    def open(self) -> None:
        """Begins to load, and returns at once."""

    def submit(self, job: Job, done: Done) -> None:
        """Starts an answer, or queues it; ``done`` is called on the event loop once it no longer takes a place."""

    def running(self) -> int:
        """Answers being written."""

    def waiting(self) -> int:
        """Answers not begun."""

    def cache_use(self) -> float:
        """Share of the cache that is in use, in [0, 1]."""

    def memory(self) -> dict[str, Any]:
        """Memory of the device that the model is on, in bytes."""

    async def close(self) -> None:
        """Stops; what still runs is ended."""
