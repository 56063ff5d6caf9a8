"""The Modelfile's template, rendered by Go itself, gives the text and the ids of training."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

from app.data.records import Message
from app.data.render import render
from app.data.tokenize import GOLDEN_MESSAGES, golden_encoding
from app.export.ollama import go_template, modelfile
from app.export.tuned import open_tuned
from app.families import ChatFormat, Family, all_families
from conftest import TinyCheckpoint
from export.conftest import MakeRun
from support.gotemplate import render_go

QUOTES = Message(role="user", content='Hi {{ .Role }} """quoted""" \\n `x`')
CONVERSATIONS = {
    "a question": [Message(role="user", content="What?")],
    "system text": list(GOLDEN_MESSAGES[:2]),
    "a second question": list(GOLDEN_MESSAGES[:4]),
    "template syntax in a message": [QUOTES],
}


def ollama_data(messages: Sequence[Message], chat: ChatFormat) -> dict[str, Any]:
    """What Ollama hands to a template: Modelfile's SYSTEM stands in where a conversation has no system message."""
    listed = [{"Role": message.role, "Content": message.content} for message in messages]
    if chat.default_system and messages[0].role != "system":
        listed.insert(0, {"Role": "system", "Content": chat.default_system})
    system = "\n\n".join(message["Content"] for message in listed if message["Role"] == "system")
    return {"Messages": listed, "System": system}


def test_go_renders_what_training_rendered() -> None:
    cases, expected = [], []
    for family in all_families().values():
        for messages in CONVERSATIONS.values():
            for adds_bos in (False, True):
                cases.append((go_template(family.chat, engine_adds_bos=adds_bos), ollama_data(messages, family.chat)))
                text = render(messages, family.chat, answer_next=True).text
                expected.append(text.removeprefix(family.chat.bos) if adds_bos else text)
    assert render_go(cases) == expected


def test_its_ids_are_those_of_the_golden_encoding(family: Family, tokenizer: PreTrainedTokenizerFast) -> None:
    golden = golden_encoding(tokenizer, family)
    template = go_template(family.chat, engine_adds_bos=family.gguf.add_bos)
    (text,) = render_go([(template, ollama_data(GOLDEN_MESSAGES[:4], family.chat))])
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if family.gguf.add_bos:  # by Ollama, as the GGUF file says
        ids = [tokenizer.bos_token_id, *ids]
    answer = golden.trained.index(True, golden.trained.index(False, golden.trained.index(True)))
    assert ids == list(golden.input_ids[:answer])


def test_what_go_or_the_modelfile_would_misread_is_written_as_a_string() -> None:
    chat = ChatFormat(
        bos="", system=None, user='{{u}} """{content}\\\n', answer_open="}}", answer='{content}"""', tokens=()
    )
    template = go_template(chat, engine_adds_bos=False)
    assert '"""' not in template
    messages = [
        Message(role="user", content="a"),
        Message(role="assistant", content="b"),
        Message(role="user", content="c"),
    ]
    assert render_go([(template, ollama_data(messages, chat))]) == [render(messages, chat, answer_next=True).text]


def test_the_modelfile_names_file_stops_and_context(family: Family, make_run: MakeRun, tiny: TinyCheckpoint) -> None:
    tuned = open_tuned(make_run(tiny(family.name), family.name))
    text = modelfile(tuned, gguf_name="model.gguf")
    assert "FROM ./model.gguf\n" in text
    assert all(f'PARAMETER stop "{token}"\n' in text for token in family.stop_tokens)
    assert f"PARAMETER num_ctx {min(tuned.config.max_position_embeddings, 8192)}\n" in text
    assert ("SYSTEM" in text) == (family.chat.default_system is not None)
    assert text.count('"""') % 2 == 0
