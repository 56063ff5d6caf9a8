"""Token ids as text and bytes, for every family's kind of tokenizer."""

from typing import TYPE_CHECKING

import pytest

from app.data.records import Message
from app.families import Family
from app.serve.api_error import ApiError
from app.serve.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TEXTS = ("Größe of 3 apples?\n  Indented", "漢字 🙂.", "def f(x):\n\treturn x\n", " leading", "x\x07y")


@pytest.mark.parametrize("text", TEXTS)
def test_the_bytes_of_tokens_are_those_of_their_text(
    text: str, family: Family, tokenizer: "PreTrainedTokenizerFast"
) -> None:
    vocabulary = Vocabulary(tokenizer, family)
    ids = vocabulary.text(text, special=False)
    raw = b"".join(vocabulary.token_bytes(token) for token in ids)
    # SentencePiece families put a space before a text, which their decoders take away again.
    assert raw.decode() in (text, " " + text)


def test_texts_begin_as_the_model_s_do(family: Family, tokenizer: "PreTrainedTokenizerFast") -> None:
    vocabulary = Vocabulary(tokenizer, family)
    begun, plain = vocabulary.text("Hello"), vocabulary.text("Hello", special=False)
    opening = [tokenizer.convert_tokens_to_ids(family.chat.bos)] if family.chat.bos else []
    assert begun[: len(opening)] == opening and len(begun) == len(plain) + len(opening)


def test_special_tokens_show_their_names(family: Family, tokenizer: "PreTrainedTokenizerFast") -> None:
    vocabulary = Vocabulary(tokenizer, family)
    stop = family.stop_tokens[0]
    assert vocabulary.token_text(tokenizer.convert_tokens_to_ids(stop)) == stop


def test_ids_beyond_the_vocabulary_show_nothing(family: Family, tokenizer: "PreTrainedTokenizerFast") -> None:
    vocabulary = Vocabulary(tokenizer, family)
    assert vocabulary.token_bytes(len(tokenizer) + 5) == b""


def test_a_conversation_that_is_none_is_refused(family: Family, tokenizer: "PreTrainedTokenizerFast") -> None:
    vocabulary = Vocabulary(tokenizer, family)
    with pytest.raises(ApiError) as refused:
        vocabulary.conversation([Message(role="assistant", content="x")])
    assert refused.value.status == 400 and refused.value.param == "messages"
