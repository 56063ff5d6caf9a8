"""The one renderer: a conversation as the text a model sees, with the spans of it that are trained.

Training, evaluation, chat, serving and the Ollama template all go through it, and it works from the family's
ChatFormat alone, without torch and without a tokenizer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from app.data.records import Message
from app.errors import DataError
from app.families.base import ChatFormat


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendered:
    """A conversation as text.

    Attributes:
        text: what is tokenised, special tokens written out.
        trained: half-open character spans of the answers with their end-of-turn tokens, in order.
        content: half-open character spans of what people wrote (no special token may begin in one).
    """

    text: str
    trained: tuple[tuple[int, int], ...]
    content: tuple[tuple[int, int], ...]


def role_fault(messages: Sequence[Message]) -> str | None:
    """What is wrong with the order of the turns, or None.

    Allowed: at most one system message, first; then user and assistant in turn, user first.
    """
    turns = [m.role for m in messages]
    if turns[:1] == ["system"]:
        turns = turns[1:]
    if not turns:
        return "there is no user message"
    for index, role in enumerate(turns):
        expected = "user" if index % 2 == 0 else "assistant"
        if role != expected:
            return f"turn {index + 1} is {role!r} where {expected!r} belongs"
    return None


def render(messages: Sequence[Message], chat: ChatFormat, *, answer_next: bool) -> Rendered:
    """The text of a conversation.

    Args:
        messages: at most one system message, first; then user and assistant in turn.
        chat: the family's format.
        answer_next: whether the text ends with the opening of an answer (a prompt) or after the last one (a sample).

    Raises:
        DataError: the roles are out of order, or the last one does not fit ``answer_next``.
    """
    fault = role_fault(messages)
    if fault is None and (messages[-1].role == "user") != answer_next:
        fault = "a prompt must end with a user message" if answer_next else "a sample must end with an answer"
    if fault is not None:
        raise DataError(f"the conversation cannot be rendered: {fault}", remedy="correct the order of its messages")

    text = chat.bos
    trained: list[tuple[int, int]] = []
    content: list[tuple[int, int]] = []

    def append(form: str, value: str) -> None:
        nonlocal text
        before, after = form.split("{content}")
        start = len(text) + len(before)
        text += before + value + after
        content.append((start, start + len(value)))

    system = messages[0].content.strip() if messages[0].role == "system" else chat.default_system
    pending = ""
    if system and chat.system is not None:
        append(chat.system, system)
    elif system:
        pending = system + "\n\n"
    for message in messages:
        if message.role == "user":
            append(chat.user, pending + message.content.strip())
            pending = ""
        elif message.role == "assistant":
            text += chat.answer_open
            start = len(text)
            append(chat.answer, message.content.strip())
            trained.append((start, len(text)))
            text += chat.answer_close
    if answer_next:
        text += chat.answer_open
    return Rendered(text=text, trained=tuple(trained), content=tuple(content))
