"""Columns by any name people use, and every shape of row as messages."""

from typing import Any

import pytest

from app.data.shapes import RowError, find_shape, to_messages


def messages(row: dict[str, Any], **options: Any) -> list[tuple[str, str]]:
    shape = find_shape(tuple(row), **options)
    assert shape is not None, row
    return [(message.role, message.content) for message in to_messages(row, shape)]


ASKED = [("user", "Q"), ("assistant", "A")]


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Q", "answer": "A"},
        {"Question ": "Q", "ANSWER": "A"},
        {"prompt": "Q", "completion": "A"},
        {"prompt": "Q", "response": "A"},
        {"instruction": "Q", "input": "", "output": "A"},
        {"instruction": "Q", "input": None, "output": "A", "text": "### Instruction: Q ### Response: A"},
        {"input": "Q", "output": "A"},
        {"query": "Q", "context": "", "response": "A"},
        {"Frage": "Q", "Antwort": "A"},
        {"user": "Q", "assistant": "A"},
        {"id": "7", "question": "Q", "answer": "A", "group": "g"},
        {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
        {"messages": '[{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]'},
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
        {"prompt": [{"role": "user", "content": "Q"}], "completion": [{"role": "assistant", "content": "A"}]},
    ],
)
def test_names_and_shapes_are_found_out(row: dict[str, Any]) -> None:
    assert messages(row) == ASKED


def test_context_and_system_are_used() -> None:
    row = {"instruction": "Add.", "input": "2 and 3", "output": "5", "system": "You add."}
    assert messages(row) == [("system", "You add."), ("user", "Add.\n\n2 and 3"), ("assistant", "5")]
    row = {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "system": "S"}
    assert messages(row) == [("system", "S"), *ASKED]


def test_many_turns_stay_in_order() -> None:
    turns = [{"from": who, "value": str(n)} for n, who in enumerate(["system", "human", "gpt", "human", "gpt"])]
    assert [role for role, _ in messages({"conversations": turns})] == [
        "system", "user", "assistant", "user", "assistant"
    ]  # fmt: skip


def test_text_becomes_a_beginning_and_its_continuation() -> None:
    row = {"text": "It was a dark night. The wind blew.\nNobody was out."}
    assert messages(row) == [("user", "It was a dark night."), ("assistant", "The wind blew.\nNobody was out.")]


def test_the_user_says_otherwise() -> None:
    row = {"question": "not this", "answer": "A", "title": "Q"}
    assert messages(row, columns={"question": "title"}) == ASKED
    assert find_shape(("a", "b")) is None
    row = {"text": "One. Two.", "question": "Q", "answer": "A"}
    assert messages(row) == ASKED
    assert messages(row, wanted="text") == [("user", "One."), ("assistant", "Two.")]
    assert messages(row, columns={"text": "text"}) == [("user", "One."), ("assistant", "Two.")]


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"question": "Q", "answer": ""}, "empty-answer"),
        ({"question": "Q", "answer": " \n\t"}, "empty-answer"),
        ({"question": "Q", "answer": None}, "empty-answer"),
        ({"question": "", "answer": "A"}, "empty-prompt"),
        ({"question": "Q", "answer": 5}, "wrong-type"),
        ({"question": ["Q"], "answer": "A"}, "wrong-type"),
        ({"question": "Q", "answer": float("nan")}, "wrong-type"),
        ({"messages": []}, "empty-prompt"),
        ({"messages": None}, "missing-field"),
        ({"messages": "hello"}, "wrong-type"),
        ({"messages": "[oops"}, "wrong-type"),
        ({"messages": ["hello"]}, "wrong-type"),
        ({"messages": [{"role": "narrator", "content": "x"}]}, "role-order"),
        ({"messages": [{"role": "user", "content": ""}]}, "empty-prompt"),
        ({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": " "}]}, "empty-answer"),
        ({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant"}]}, "missing-field"),
        ({"messages": [{"role": "user", "content": ["Q"]}]}, "wrong-type"),
        ({"text": "One sentence only"}, "empty-answer"),
        ({"text": None}, "empty-answer"),
    ],
)
def test_every_fault_has_its_kind(row: dict[str, Any], kind: str) -> None:
    with pytest.raises(RowError) as fault:
        messages(row)
    assert fault.value.kind == kind and fault.value.detail


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        (("instruction", "input", "output"), "alpaca"),
        (("prompt", "completion"), "prompt-completion"),
        (("question", "answer", "id"), "question-answer"),
        (("Frage", "Antwort"), "question-answer"),
        (("messages",), "chat"),
        (("conversations",), "sharegpt"),
        (("text",), "text"),
    ],
)
def test_shapes_have_names_and_can_be_said(fields: tuple[str, ...], name: str) -> None:
    shape = find_shape(fields)
    assert shape is not None and shape.name == name
    assert find_shape(fields, wanted=shape.name) == shape
    others = {"alpaca", "prompt-completion", "chat", "sharegpt", "text"} - {name, "chat"}
    assert all(find_shape(fields, wanted=other) is None for other in others)  # type: ignore[arg-type]


def test_a_said_shape_chooses_among_columns() -> None:
    row = {"instruction": "I", "input": "", "output": "O", "prompt": "P", "completion": "C", "text": "One. Two."}
    assert messages(row, wanted="alpaca") == [("user", "I"), ("assistant", "O")]
    assert messages(row, wanted="prompt-completion") == [("user", "P"), ("assistant", "C")]
    assert messages(row, wanted="text") == [("user", "One."), ("assistant", "Two.")]
