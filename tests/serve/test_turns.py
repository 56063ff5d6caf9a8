"""Turns of adapters: order, batches, and that nobody waits for ever."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from app.serve.turns import TurnQueue

ARRIVALS = st.lists(st.tuples(st.sampled_from(["a", "b", None]), st.integers(0, 3)), max_size=40)


@given(ARRIVALS, st.integers(1, 4))
def test_everybody_is_served_once_and_in_order_within_an_adapter(
    arrivals: list[tuple[str | None, int]], slots: int
) -> None:
    queue: TurnQueue[int] = TurnQueue(slots)
    running: list[tuple[str | None, int]] = []
    served: list[tuple[str | None, int]] = []
    for number, (adapter, steps) in enumerate(arrivals):
        queue.push(adapter, number)
        for _ in range(steps):  # the engine goes on between arrivals
            fill(queue, running, served, slots)
            running[:1] = []
    while queue or running:
        fill(queue, running, served, slots)
        assert running, "work waits, and none of it was started"
        running[:1] = []
    assert Counter(number for _, number in served) == Counter(range(len(arrivals)))
    for adapter in ("a", "b", None):
        mine = [number for whose, number in served if whose == adapter]
        assert mine == sorted(mine)


def fill(
    queue: TurnQueue[int], running: list[tuple[str | None, int]], served: list[tuple[str | None, int]], slots: int
) -> None:
    """Starts what may start, as the engine's thread does."""
    while len(running) < slots and (number := queue.pop(len(running))) is not None:
        assert all(adapter == queue.adapter for adapter, _ in running), "two adapters at once"
        running.append((queue.adapter, number))  # type: ignore[arg-type]
        served.append(running[-1])


def test_a_stream_of_one_adapter_does_not_keep_others_waiting() -> None:
    queue: TurnQueue[str] = TurnQueue(2)
    queue.push("a", "a0")
    queue.push("b", "b0")
    order = []
    running = 0
    for number in range(1, 20):
        queue.push("a", f"a{number}")  # as fast as they are taken
        item = queue.pop(running)
        if item is None:
            running = 0  # the turn runs dry
            continue
        running = 1
        order.append(item)
    assert order.index("b0") == 2


def test_a_batch_fills_with_requests_of_the_turn_that_came_later() -> None:
    queue: TurnQueue[str] = TurnQueue(4)
    for adapter, name in (("a", "a0"), ("b", "b0"), ("a", "a1"), ("b", "b1")):
        queue.push(adapter, name)
    assert [queue.pop(running) for running in range(3)] == ["a0", "a1", None]
    assert [queue.pop(0), queue.pop(1), queue.pop(2)] == ["b0", "b1", None]


def test_unwanted_requests_leave() -> None:
    queue: TurnQueue[str] = TurnQueue(2)
    for name in ("a0", "a1", "b0"):
        queue.push(name[0], name)
    assert queue.remove(lambda name: name in ("a0", "b0")) == ["a0", "b0"]
    assert len(queue) == 1 and queue.pop(0) == "a1" and queue.pop(0) is None
