"""The same properties on the published tokenizers, and ids equal to the publishers' own encoders."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from transformers import PreTrainedTokenizerFast

from app.data.records import Message
from app.data.tokenize import GOLDEN_MESSAGES, encode, load_tokenizer, special_ids
from app.families import Family, get_family
from support.conversations import check_encoding, conversations
from support.real_tokenizer import SOURCES, real_tokenizer

GOLDEN = json.loads((Path(__file__).parent / "official" / "golden_ids.json").read_text())

UNWRITABLE = {"smollm2": frozenset(b"\x04\x06\x13\x14\x16\x1d\xf1\xf2")}
"""Bytes that a published vocabulary has no token for, so that it drops them: a few control characters, and characters
beyond U+3FFFF, none of which is assigned to writing."""


@pytest.fixture(
    scope="module",
    params=[
        *(pytest.param(name, marks=[pytest.mark.slow] if name == "phi3" else []) for name in SOURCES),
        "smollm2",
    ],
)
def published(request: pytest.FixtureRequest) -> tuple[PreTrainedTokenizerFast, Family]:
    family = get_family(request.param)
    if family.name == "smollm2":
        return load_tokenizer(str(request.getfixturevalue("smollm2")), family), family
    return real_tokenizer(family.name), family


@settings(max_examples=50, derandomize=True)
@given(messages=conversations())
def test_the_answers_and_their_ends_are_trained_and_nothing_else(
    messages: tuple[Message, ...], published: tuple[PreTrainedTokenizerFast, Family]
) -> None:
    tokenizer, family = published
    unwritable = UNWRITABLE.get(family.name, frozenset())
    writable = tuple(
        Message(role=m.role, content="".join("x" if unwritable & set(c.encode()) else c for c in m.content))
        for m in messages
    )
    check_encoding(writable, tokenizer, family)


def test_special_tokens_have_the_published_ids(published: tuple[PreTrainedTokenizerFast, Family]) -> None:
    tokenizer, family = published
    ids = special_ids(tokenizer, family)
    if family.chat.bos:
        assert ids[family.chat.bos] == family.config["bos_token_id"]
    eos = family.stop_tokens[1] if family.gguf.eot_token else family.stop_tokens[0]
    assert ids[eos] == family.config["eos_token_id"]
    assert max(ids.values()) < family.config["vocab_size"]


@pytest.mark.parametrize("name", list(GOLDEN))
def test_ids_are_those_of_the_publishers_own_encoder(name: str) -> None:
    tokenizer = real_tokenizer(name)
    assert encode(GOLDEN_MESSAGES, tokenizer, get_family(name), answer_next=False).input_ids == GOLDEN[name]
