"""The one renderer: order of turns, trimming, system texts, and the spans it marks."""

import pytest

from app.data.records import Message, prompt
from app.data.render import render, role_fault
from app.errors import DataError
from app.families import Family, get_family


def system(text: str) -> Message:
    return Message(role="system", content=text)


def user(text: str) -> Message:
    return Message(role="user", content=text)


def answer(text: str) -> Message:
    return Message(role="assistant", content=text)


TWO_TURNS = (system("Be brief."), user("Hi"), answer("Hello"), user("Bye"), answer("Ciao"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mistral", "<s>[INST] Be brief.\n\nHi[/INST] Hello</s>[INST] Bye[/INST] Ciao</s>"),
        (
            "gemma",
            "<bos><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n"
            "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\nCiao<end_of_turn>\n",
        ),
        (
            "phi3",
            "<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello<|end|>\n"
            "<|user|>\nBye<|end|>\n<|assistant|>\nCiao<|end|>\n",
        ),
    ],
)
def test_two_turns_in_full(name: str, text: str) -> None:
    assert render(TWO_TURNS, get_family(name).chat, answer_next=False).text == text


def test_trained_spans_are_the_answers_with_their_ends(family: Family) -> None:
    rendered = render(TWO_TURNS, family.chat, answer_next=False)
    trained = [rendered.text[start:end] for start, end in rendered.trained]
    assert trained == [family.chat.answer.replace("{content}", text) for text in ("Hello", "Ciao")]


def test_content_spans_are_what_people_wrote(family: Family) -> None:
    rendered = render(TWO_TURNS, family.chat, answer_next=False)
    content = [rendered.text[start:end] for start, end in rendered.content]
    folded = ["Be brief.\n\nHi"] if family.chat.system is None else ["Be brief.", "Hi"]
    assert content == [*folded, "Hello", "Bye", "Ciao"]


def test_a_prompt_is_how_the_sample_begins(family: Family) -> None:
    asked = render(TWO_TURNS[:-1], family.chat, answer_next=True)
    sample = render(TWO_TURNS, family.chat, answer_next=False)
    assert sample.text[: sample.trained[-1][0]] == asked.text
    assert asked.trained == sample.trained[:-1]


def test_outer_white_space_is_dropped_and_inner_kept(family: Family) -> None:
    padded = (user(" \n  a  b\n"), answer("\tif x:\n  y\n "))
    bare = (user("a  b"), answer("if x:\n  y"))
    assert render(padded, family.chat, answer_next=False) == render(bare, family.chat, answer_next=False)


def test_text_is_not_formatted(family: Family) -> None:
    text = render(prompt("{content} {0} {{x}} %s"), family.chat, answer_next=True).text
    assert text.count("{content} {0} {{x}} %s") == 1


def test_a_blank_system_message_renders_no_system_turn(family: Family) -> None:
    blank = render((system(" "), user("Hi")), family.chat, answer_next=True).text
    assert blank == family.chat.bos + family.chat.user.replace("{content}", "Hi") + family.chat.answer_open


def test_the_default_system_text_stands_where_none_is_given(family: Family) -> None:
    text = render(prompt("Hi"), family.chat, answer_next=True).text
    default = family.chat.default_system
    assert (default in text) if default else ("system" not in text)


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ((), "no user message"),
        ((system("s"),), "no user message"),
        ((answer("a"),), "turn 1 is 'assistant'"),
        ((user("a"), user("b")), "turn 2 is 'user'"),
        ((user("a"), system("s")), "turn 2 is 'system'"),
        ((system("s"), system("t"), user("a")), "turn 1 is 'system'"),
        ((user("a"), answer("b"), answer("c")), "turn 3 is 'assistant'"),
    ],
)
def test_turns_out_of_order_are_refused(messages: tuple[Message, ...], fault: str) -> None:
    assert fault in (role_fault(messages) or "")
    with pytest.raises(DataError, match=fault):
        render(messages, get_family("smollm2").chat, answer_next=True)


def test_a_sample_ends_with_an_answer_and_a_prompt_with_a_question(family: Family) -> None:
    with pytest.raises(DataError, match="a sample must end with an answer"):
        render(prompt("Hi"), family.chat, answer_next=False)
    with pytest.raises(DataError, match="a prompt must end with a user message"):
        render((*prompt("Hi"), answer("Hello")), family.chat, answer_next=True)
