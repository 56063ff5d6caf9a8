"""How long samples are in tokens: counted with a tokenizer, or estimated from characters; and shortening them."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from app.data.records import Message
from app.data.render import render
from app.families.base import ChatFormat

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TooLong = Literal["drop", "truncate", "error"]
ASCII_PER_TOKEN = 4.0
OTHER_BYTES_PER_TOKEN = 2.0
TOKENS_PER_TURN = 6
"""Estimates, measured with SmolLM2's tokenizer: English prose 4.1 ASCII characters a token, Python 3.4, German 2.0 (its
lengths are underestimated by a third), Russian 4 and Chinese 2 bytes."""


def estimate_tokens(messages: Sequence[Message]) -> int:
    """Tokens of a sample, from its characters."""
    total = 0.0
    for message in messages:
        text = message.content
        size = len(text)
        if text.isascii():
            total += size / ASCII_PER_TOKEN
        else:
            encoded = len(text.encode("utf-8", "surrogatepass"))
            plain = len(text.encode("ascii", "ignore"))
            total += plain / ASCII_PER_TOKEN + (encoded - plain) / OTHER_BYTES_PER_TOKEN
    return int(total) + TOKENS_PER_TURN * len(messages)


def count_tokens(messages: Sequence[Message], tokenizer: "Tokenizer", chat: ChatFormat) -> int:
    """Tokens of a sample, rendered by the family's template."""
    return len(tokenizer.encode(render(messages, chat, answer_next=False).text, add_special_tokens=False).ids)


def shorten(
    messages: Sequence[Message], limit: int, count: Callable[[Sequence[Message]], int]
) -> tuple[Message, ...] | None:
    """The sample with its last turns dropped, then its first question cut at the end, until it fits; or None.

    Answers are never cut: a model trained on one would learn to stop in the middle.
    """
    kept = list(messages)
    while len(kept) > 3 and count(kept) > limit:
        del kept[-2:]
    if count(kept) <= limit:
        return tuple(kept)
    index = 1 if kept[0].role == "system" else 0
    question = kept[index].content
    low, high = 0, len(question)
    while low < high:
        middle = (low + high + 1) // 2
        kept[index] = Message(role="user", content=question[:middle])
        low, high = (middle, high) if count(kept) <= limit else (low, middle - 1)
    # Less than an eighth of the question would no longer ask for the answer.
    if low < max(8, len(question) // 8) or not question[:low].strip():
        return None
    kept[index] = Message(role="user", content=question[:low])
    return tuple(kept)
