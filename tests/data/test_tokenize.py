"""Encoding and its train-mask, for every family on a tiny tokenizer of its kind."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from app.data.records import Message, prompt
from app.data.render import render
from app.data.tokenize import check_golden, encode, golden_encoding, load_tokenizer, special_ids
from app.errors import DataError, ModelError, RunError
from app.families import Family, get_family
from support.conversations import check_encoding, conversations

thorough = settings(max_examples=50, derandomize=True)


@thorough
@given(messages=conversations())
def test_the_answers_and_their_ends_are_trained_and_nothing_else(
    messages: tuple[Message, ...], tokenizer: PreTrainedTokenizerFast, family: Family
) -> None:
    check_encoding(messages, tokenizer, family)


@thorough
@given(messages=conversations())
def test_the_jinja_template_gives_the_same_text_ids_and_mask(
    messages: tuple[Message, ...], tokenizer: PreTrainedTokenizerFast, family: Family
) -> None:
    """transformers, trl and vLLM go by ``tokenizer.chat_template``; ``{% generation %}`` marks what is trained."""
    turns = [{"role": m.role, "content": m.content} for m in messages]
    question = tokenizer.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=True)
    assert question == render(messages[:-1], family.chat, answer_next=True).text
    applied = tokenizer.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
    encoding = encode(messages, tokenizer, family, answer_next=False)
    assert applied["input_ids"] == encoding.input_ids
    assert applied["assistant_masks"] == [int(flag) for flag in encoding.trained]


@settings(max_examples=30, derandomize=True)
@given(data=st.data(), messages=conversations())
def test_a_control_token_in_a_message_is_refused(
    data: st.DataObject, messages: tuple[Message, ...], tokenizer: PreTrainedTokenizerFast, family: Family
) -> None:
    token = data.draw(st.sampled_from(sorted({*family.chat.tokens, *family.stop_tokens})))
    index = data.draw(st.sampled_from([i for i, m in enumerate(messages) if m.content.strip()]))
    content = messages[index].content.strip()
    cut = data.draw(st.integers(0, len(content)))
    forged = dataclasses.replace(messages[index], content=content[:cut] + token + content[cut:])
    with pytest.raises(DataError, match="forge a turn") as fault:
        encode((*messages[:index], forged, *messages[index + 1 :]), tokenizer, family, answer_next=False)
    assert token in fault.value.what


def test_another_familys_control_tokens_are_plain_text(tokenizer: PreTrainedTokenizerFast, family: Family) -> None:
    foreign = "[INST]" if family.name != "mistral" else "<|im_start|>"
    encode(prompt(f"What does {foreign} mean?"), tokenizer, family, answer_next=True)


def test_special_tokens_that_forge_no_turn_are_plain_text(tiny) -> None:
    """SmolLM2 calls fourteen words special that `prepare` accepts: <filename>, <reponame>, <issue_start> …"""
    family = get_family("smollm2")
    tokenizer = load_tokenizer(str(tiny("smollm2")), family)
    tokenizer.add_tokens(["<filename>"], special_tokens=True)
    encode(prompt("What does git add <filename> do?"), tokenizer, family, answer_next=True)


def test_added_tokens_that_are_not_special_are_plain_text(tmp_path, tiny) -> None:
    """Gemma's tokenizer.json lists line breaks and HTML tags as added tokens."""
    family = get_family("gemma")
    tokenizer = load_tokenizer(str(tiny("gemma")), family)
    tokenizer.add_tokens(["<table>", "\n\n"])
    messages = (*prompt("Make a <table>\n\nof it"), Message(role="assistant", content="<table>\n\nx"))
    encoding = encode(messages, tokenizer, family, answer_next=False)
    assert encoding.input_ids.count(tokenizer.convert_tokens_to_ids("<table>")) == 2
    check_encoding(messages, tokenizer, family)


def test_loading_sets_the_pad_token_and_the_template(tokenizer: PreTrainedTokenizerFast, family: Family) -> None:
    assert tokenizer.pad_token == family.pad_token
    assert tokenizer.chat_template == family.chat.jinja()
    assert tokenizer.is_fast


def test_a_tokenizer_without_the_familys_tokens_is_refused(tiny) -> None:
    with pytest.raises(ModelError, match=r"no <s>, \[INST\], \[/INST\]"):
        load_tokenizer(str(tiny("smollm2")), get_family("mistral"))


def test_special_ids_name_all_tokens_of_the_format(tokenizer: PreTrainedTokenizerFast, family: Family) -> None:
    ids = special_ids(tokenizer, family)
    assert {*family.chat.tokens, *family.stop_tokens, family.pad_token} == set(ids)
    assert all(tokenizer.convert_ids_to_tokens(index) == token for token, index in ids.items())


def test_a_golden_encoding_passes_its_own_check(tokenizer: PreTrainedTokenizerFast, family: Family) -> None:
    golden = golden_encoding(tokenizer, family)
    assert any(golden.trained) and not all(golden.trained)
    check_golden(golden, tokenizer, family)


def test_a_golden_encoding_refuses_what_differs(tokenizer: PreTrainedTokenizerFast, family: Family) -> None:
    golden = golden_encoding(tokenizer, family)
    flipped = [not flag for flag in golden.trained]
    for changed, named in (
        ({"template_hash": "0" * 64}, "the chat template"),
        ({"special_ids": {**golden.special_ids, family.pad_token: -1}}, "the special tokens' ids"),
        ({"input_ids": [*golden.input_ids[:-1], -1]}, "the token ids"),
        ({"trained": flipped}, "the token ids"),
    ):
        with pytest.raises(RunError, match=named):
            check_golden(dataclasses.replace(golden, **changed), tokenizer, family)


def test_a_golden_encoding_refuses_another_families_template(tiny) -> None:
    """Llama 3 and SmolLM2 share a model_type: only the golden encoding tells a mixed-up pair apart."""
    family = get_family("phi3")
    tokenizer = load_tokenizer(str(tiny("phi3")), family)
    golden = golden_encoding(tokenizer, family)
    reworded = dataclasses.replace(
        family, chat=dataclasses.replace(family.chat, user="<|user|>\nQ: {content}<|end|>\n")
    )
    with pytest.raises(RunError, match="the chat template, the token ids"):
        check_golden(golden, tokenizer, reworded)
