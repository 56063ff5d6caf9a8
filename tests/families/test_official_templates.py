"""Our text is the text of the official Jinja template, and where it differs on purpose, the test says how."""

from pathlib import Path

import pytest
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from app.data.records import Message
from app.data.render import render
from app.families import Family

OFFICIAL = Path(__file__).parent / "official"

SYSTEM = Message(role="system", content="Be brief.")
ONE_TURN = (Message(role="user", content="Hi?"), Message(role="assistant", content="Hello.\n\n    x = 'é'"))
TWO_TURNS = (*ONE_TURN, Message(role="user", content="<b>Bye</b>"), Message(role="assistant", content="Ciao 🙂"))

SAMPLE_ENDS = {"phi3": "<|endoftext|>"}
"""What the official template adds after a conversation that ends with an answer. Phi-3's end of text would stand after
the end of the turn, where generation has stopped already: it is neither written nor trained here."""


def official(messages: tuple[Message, ...], tokenizer: PreTrainedTokenizerFast, family: Family) -> str:
    template = (OFFICIAL / f"{family.name}.jinja").read_text(encoding="utf-8")
    text = tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in messages],
        chat_template=template,
        tokenize=False,
        add_generation_prompt=messages[-1].role == "user",
    )
    assert isinstance(text, str)
    return text


def ours(messages: tuple[Message, ...], family: Family) -> str:
    return render(messages, family.chat, answer_next=messages[-1].role == "user").text


@pytest.mark.parametrize("messages", [ONE_TURN[:1], TWO_TURNS[:3]], ids=["one turn", "two turns"])
def test_prompts_are_the_official_ones(
    messages: tuple[Message, ...], tokenizer: PreTrainedTokenizerFast, family: Family
) -> None:
    assert ours(messages, family) == official(messages, tokenizer, family)


@pytest.mark.parametrize("messages", [ONE_TURN, TWO_TURNS], ids=["one turn", "two turns"])
def test_samples_are_the_official_ones(
    messages: tuple[Message, ...], tokenizer: PreTrainedTokenizerFast, family: Family
) -> None:
    assert ours(messages, family) + SAMPLE_ENDS.get(family.name, "") == official(messages, tokenizer, family)


@pytest.mark.parametrize(
    "messages",
    [ONE_TURN[:1], ONE_TURN, TWO_TURNS[:3], TWO_TURNS],
    ids=["prompt", "sample", "two-turn prompt", "two-turn sample"],
)
def test_system_texts_stand_where_the_official_template_puts_them(
    messages: tuple[Message, ...], tokenizer: PreTrainedTokenizerFast, family: Family
) -> None:
    """Or, for a family without a system role, in front of the first question.

    Gemma's template refuses a system message. Mistral's puts it before the last question if that is the last message,
    so that it moves on with every turn and vanishes from a conversation that ends with an answer; trained like that,
    no answer but the last would have seen it. With one question to answer, the two agree.
    """
    text = ours((SYSTEM, *messages), family)
    if family.chat.system is None:
        first = Message(role="user", content=f"{SYSTEM.content}\n\n{messages[0].content}")
        assert text == ours((first, *messages[1:]), family)
    if family.name == "gemma":
        with pytest.raises(TemplateError, match="System role not supported"):
            official((SYSTEM, *messages), tokenizer, family)
    elif family.name == "mistral" and len(messages) > 1:
        assert text != official((SYSTEM, *messages), tokenizer, family)
    else:
        end = SAMPLE_ENDS.get(family.name, "") if len(messages) % 2 == 0 else ""
        assert text + end == official((SYSTEM, *messages), tokenizer, family)


def test_outer_white_space_is_trimmed_whether_or_not_the_official_template_does(
    tokenizer: PreTrainedTokenizerFast, family: Family
) -> None:
    """Llama 3 and Gemma trim, the others do not; here all do, so that a stray blank in a CSV is never trained."""
    padded = (Message(role="user", content=" Hi?\n"), Message(role="assistant", content="\tHello.  "))
    bare = (Message(role="user", content="Hi?"), Message(role="assistant", content="Hello."))
    assert ours(padded, family) + SAMPLE_ENDS.get(family.name, "") == official(bare, tokenizer, family)
