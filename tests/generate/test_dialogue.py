from collections.abc import Sequence
from pathlib import Path

import pytest

from app.data.records import Message, prompt, read_prepared
from app.errors import DataError
from app.generate.dialogue import Dialogue


def words(messages: Sequence[Message]) -> int:
    return sum(len(message.content.split()) for message in messages)


def talk() -> Dialogue:
    dialogue = Dialogue("be kind")
    dialogue.turns = [("one two", "three"), ("four", "five six"), ("seven", "eight")]
    return dialogue


def test_messages_are_system_turns_and_the_new_question() -> None:
    roles = [m.role for m in talk().messages("nine")]
    assert roles == ["system", *["user", "assistant"] * 3, "user"]
    assert Dialogue().messages("why?") == prompt("why?")


@pytest.mark.parametrize(("room", "dropped"), [(11, 0), (10, 1), (8, 1), (7, 2), (5, 2), (4, 3), (0, 3)])
def test_the_oldest_turns_are_dropped_until_the_rest_fits(room: int, dropped: int) -> None:
    dialogue = talk()
    assert words(dialogue.messages("nine")) == 11
    assert dialogue.fit("nine", words, room) == dropped
    assert dialogue.turns == talk().turns[dropped:]
    assert dialogue.system == "be kind"


def test_a_copy_is_changed_by_itself() -> None:
    dialogue = talk()
    copy = dialogue.copy()
    assert (copy.system, copy.turns) == (dialogue.system, dialogue.turns)
    copy.undo()
    assert dialogue.turns == talk().turns


def test_undo_gives_the_question_back() -> None:
    dialogue = talk()
    assert dialogue.undo() == "seven"
    assert len(dialogue.turns) == 2
    with pytest.raises(DataError):
        Dialogue().undo()


def test_what_is_saved_is_a_prepared_record_and_loads_again(tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    talk().save(path)
    assert next(iter(read_prepared(path))).messages == talk().messages()
    loaded = Dialogue()
    loaded.load(path)
    assert (loaded.system, loaded.turns) == ("be kind", talk().turns)


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "no json",
        '{"messages": []}',
        '{"messages": [{"role": "user", "content": "a"}]}',
        '{"messages": [{"role": "assistant", "content": "a"}]}',
        '{"messages": [{"role": "system", "content": "a"}]}',
    ],
)
def test_a_file_without_a_finished_conversation_changes_nothing(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "talk.jsonl"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    dialogue = talk()
    with pytest.raises(DataError, match=r"talk\.jsonl"):
        dialogue.load(path)
    assert dialogue.turns == talk().turns


def test_faults_of_saving_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to save"):
        Dialogue().save(tmp_path / "talk.jsonl")
    with pytest.raises(DataError, match="cannot be written"):
        talk().save(tmp_path)
