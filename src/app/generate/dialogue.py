"""A conversation in progress: its turns, kept within the context, on disk as a prepared record."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from app.artifact import write_atomic
from app.data.records import Conversation, Message, dump_line, parse_record
from app.data.render import role_fault
from app.errors import DataError


class Dialogue:
    """The turns of a chat.

    Attributes:
        system: text of the system turn, "" for none (the family's default then applies).
        turns: questions and answers, in pairs.
    """

    def __init__(self, system: str = "") -> None:
        self.system = system
        self.turns: list[tuple[str, str]] = []

    def copy(self) -> "Dialogue":
        """The same turns, to be changed without changing these."""
        dialogue = Dialogue(self.system)
        dialogue.turns = list(self.turns)
        return dialogue

    def messages(self, question: str | None = None) -> tuple[Message, ...]:
        """The conversation, with a new question at its end if one is given."""
        texts = [Message(role="system", content=self.system)] if self.system else []
        for asked, answered in self.turns:
            texts += [Message(role="user", content=asked), Message(role="assistant", content=answered)]
        if question is not None:
            texts.append(Message(role="user", content=question))
        return tuple(texts)

    def fit(self, question: str, count: Callable[[Sequence[Message]], int], room: int) -> int:
        """Drops the oldest turns until the conversation with ``question`` has at most ``room`` tokens.

        Args:
            question: what is about to be asked.
            count: tokens of a conversation.
            room: tokens it may have; a question that is longer alone stays.

        Returns:
            how many turns were dropped.
        """
        dropped = 0
        while self.turns and count(self.messages(question)) > room:
            del self.turns[0]
            dropped += 1
        return dropped

    def undo(self) -> str:
        """Takes back the last turn and returns its question.

        Raises:
            DataError: there is none.
        """
        if not self.turns:
            raise DataError("there is no turn to take back", remedy="ask something first")
        return self.turns.pop()[0]

    def save(self, path: Path) -> None:
        """Writes the conversation as one line of prepared JSONL: `load`, `prepare` and `fit` all read it.

        Raises:
            DataError: there is nothing to save, or the file cannot be written.
        """
        if not self.turns:
            raise DataError("there is nothing to save yet", remedy="ask something first")
        record = Conversation(id=path.stem, group=path.stem, messages=self.messages(), file="", line=0)
        try:
            write_atomic(path, dump_line(record))
        except OSError as fault:
            raise DataError(
                f"{path} cannot be written: {fault.strerror}", where="/save", remedy="choose another file"
            ) from fault

    def load(self, path: Path) -> None:
        """Replaces the conversation by the first one in a file that `save` (or `prepare`) wrote.

        Raises:
            DataError: the file cannot be read, or holds no such conversation.
        """
        remedy = "name a file that /save wrote"
        try:
            with path.open(encoding="utf-8") as lines:
                messages = list(parse_record(json.loads(lines.readline())).messages)
        except OSError as fault:
            raise DataError(f"{path} cannot be read: {fault.strerror}", where="/load", remedy=remedy) from fault
        except ValueError as fault:
            raise DataError(f"{path} holds no conversation: {fault}", where="/load", remedy=remedy) from fault
        fault_of_order = role_fault(messages)
        if fault_of_order is not None or messages[-1].role != "assistant":
            raise DataError(
                f"{path} holds no finished conversation: {fault_of_order or 'the last turn has no answer'}",
                where="/load",
                remedy=remedy,
            )
        self.system = messages.pop(0).content if messages[0].role == "system" else ""
        self.turns = [(q.content, a.content) for q, a in zip(messages[::2], messages[1::2], strict=True)]
