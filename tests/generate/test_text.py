from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.data.tokenize import load_tokenizer
from app.families import get_family
from app.generate.text import Detokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedTokenizerFast

TEXTS = st.text(alphabet=st.sampled_from("ab \n.,Zé漢字🙂👩‍👩‍👧ॐא0"), max_size=30)
Tokenizers = "Callable[[str], PreTrainedTokenizerFast]"


@pytest.fixture(scope="module")
def tokenizer_of(tiny: "Callable[[str], Path]") -> "Callable[[str], PreTrainedTokenizerFast]":
    """Byte-level BPE (smollm2) and SentencePiece with byte fallback (mistral), both with many tokens a character."""

    @cache
    def load(name: str) -> "PreTrainedTokenizerFast":
        return load_tokenizer(str(tiny(name)), get_family(name))

    return load


def pieces(detokenizer: Detokenizer, ids: list[int]) -> list[str]:
    found = []
    for token in ids:
        found.append(detokenizer.push(token))
        if detokenizer.stopped:
            return found
    return [*found, detokenizer.finish()]


@pytest.mark.parametrize("name", ["smollm2", "mistral"])
@settings(max_examples=100)
@given(text=TEXTS)
def test_pieces_are_whole_characters_and_together_the_text(
    tokenizer_of: "Callable[[str], PreTrainedTokenizerFast]", name: str, text: str
) -> None:
    tokenizer = tokenizer_of(name)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    detokenizer = Detokenizer(tokenizer)
    found = pieces(detokenizer, ids)
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in found)
    assert "".join(found) == detokenizer.text == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("name", ["smollm2", "mistral"])
@settings(max_examples=100)
@given(text=TEXTS, stop=st.lists(st.text(alphabet=st.sampled_from("ab \n.é漢"), min_size=1, max_size=4), max_size=3))
def test_text_ends_before_the_first_stop_string_wherever_tokens_begin(
    tokenizer_of: "Callable[[str], PreTrainedTokenizerFast]", name: str, text: str, stop: list[str]
) -> None:
    tokenizer = tokenizer_of(name)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    ends = [at for at in map(whole.find, stop) if at >= 0]
    detokenizer = Detokenizer(tokenizer, stop)
    found = pieces(detokenizer, ids)
    assert detokenizer.stopped == bool(ends)
    # Nothing is shown and then taken back: what streamed out is a beginning of the whole without any stop string.
    assert "".join(found) == detokenizer.text
    assert whole.startswith(detokenizer.text)
    assert not any(text in detokenizer.text for text in stop)
    if not ends:
        assert detokenizer.text == whole


def test_a_beginning_of_a_stop_string_is_held_back_and_released(
    tokenizer_of: "Callable[[str], PreTrainedTokenizerFast]",
) -> None:
    tokenizer = tokenizer_of("smollm2")
    detokenizer = Detokenizer(tokenizer, ["abz"])
    shown = [detokenizer.push(t) for c in "xabab" for t in tokenizer(c, add_special_tokens=False)["input_ids"]]
    assert shown == ["x", "", "", "ab", ""]
    assert detokenizer.finish() == "ab"


def test_bytes_of_an_unfinished_character_are_dropped_at_the_end(
    tokenizer_of: "Callable[[str], PreTrainedTokenizerFast]",
) -> None:
    tokenizer = tokenizer_of("smollm2")
    ids = tokenizer("a🙂", add_special_tokens=False)["input_ids"]
    assert len(ids) > 2
    detokenizer = Detokenizer(tokenizer)
    assert "".join(pieces(detokenizer, ids[:-1])) == "a"


def test_bytes_that_never_make_a_character_do_not_hold_the_text_back(
    tokenizer_of: "Callable[[str], PreTrainedTokenizerFast]",
) -> None:
    tokenizer = tokenizer_of("smollm2")
    broken = tokenizer("🙂", add_special_tokens=False)["input_ids"][-1]
    letters = tokenizer("abc", add_special_tokens=False)["input_ids"]
    detokenizer = Detokenizer(tokenizer)
    shown = [detokenizer.push(token) for token in [broken] * 6]
    assert any(shown), "held back for ever"
    assert "".join([*shown, *pieces(detokenizer, letters)]).endswith("abc")
