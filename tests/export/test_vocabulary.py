"""llama.cpp tokenises conversations with the exported vocabulary as training did: 500 nasty texts each."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import PreTrainedTokenizerFast

from app.data.render import render
from app.data.tokenize import GOLDEN_MESSAGES
from app.errors import ModelError
from app.export.check import check_tokenizer
from app.export.gguf_file import write_gguf
from app.export.scorers import TransformersScorer
from app.export.strings import nasty_strings
from app.export.target import publish
from app.export.tuned import TunedModel, open_tuned
from app.export.vocabulary import BYTE, CONTROL, NORMAL, UNUSED, chat_template, read_vocabulary
from app.families import Family, get_family
from app.generate.session import Session
from conftest import TinyCheckpoint
from export.conftest import MakeRun
from support.real_tokenizer import SOURCES, real_tokenizer
from support.tiny import tiny_checkpoint


def differing(tuned: TunedModel, folder: Path) -> list[str]:
    """The nasty strings that llama.cpp sees otherwise."""
    pytest.importorskip("llama_cpp")
    from app.export.runtime import LlamaCpp

    file = folder / "model.gguf"
    write_gguf(tuned, file, quant="f16", advance=lambda amount: None)
    publish(file)
    with LlamaCpp(file, context=64) as model:
        return list(check_tokenizer(model, tuned).differing)


def test_the_families_tokenizers(family: Family, make_run: MakeRun, tiny: TinyCheckpoint, tmp_path: Path) -> None:
    assert differing(open_tuned(make_run(tiny(family.name), family.name)), tmp_path) == []


def test_the_files_template_is_the_renderers_in_any_engine(family: Family) -> None:
    jinja = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(chat_template(family))
    for length in (1, 2, 4):
        turns = GOLDEN_MESSAGES[:length] if length > 1 else GOLDEN_MESSAGES[1:2]
        messages = [{"role": message.role, "content": message.content} for message in turns]
        expected = render(turns, family.chat, answer_next=True).text
        assert jinja.render(messages=messages, add_generation_prompt=True) == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_the_published_tokenizers(name: str, make_run: MakeRun, tmp_path: Path) -> None:
    base = tmp_path / "base"
    published = real_tokenizer(name)
    tiny_checkpoint(name, base, vocab_size=len(published), num_hidden_layers=1)
    published.save_pretrained(base)
    assert differing(open_tuned(make_run(base, name)), tmp_path) == []


def test_a_wrong_vocabulary_is_noticed(make_run: MakeRun, tiny: TinyCheckpoint) -> None:
    tuned = open_tuned(make_run(tiny("smollm2"), "smollm2"))
    described = json.loads(tuned.tokenizer.backend_tokenizer.to_str())
    described["pre_tokenizer"] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    from tokenizers import Tokenizer

    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(described)))
    session = Session(model=_Nothing(), tokenizer=other, family=tuned.family, manifest=None)  # type: ignore[arg-type]
    found = check_tokenizer(TransformersScorer(session), tuned)
    assert 0 < len(found.differing) < found.strings


class _Nothing:
    """Stands where a model would be: tokenizers are compared without one."""

    def eval(self) -> "_Nothing":
        return self


def test_tokens_scores_and_types_of_sentencepiece(tiny: TinyCheckpoint) -> None:
    family = get_family("mistral")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny("mistral"))
    vocabulary = read_vocabulary(tokenizer, family, size=1100)
    described = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    assert len(vocabulary.tokens) == len(vocabulary.types) == len(vocabulary.scores) == 1100
    assert vocabulary.types[1099] == UNUSED
    assert vocabulary.types[described["vocab"]["<0x0A>"]] == BYTE
    assert vocabulary.types[described["vocab"]["[INST]"]] == CONTROL
    assert not vocabulary.merges and not vocabulary.add_space_prefix
    made = ["".join(merge) for merge in described["merges"]]
    scores = [vocabulary.scores[described["vocab"][piece]] for piece in dict.fromkeys(made)]
    assert scores == sorted(scores, reverse=True) and scores[0] == 0


def test_merges_and_types_of_byte_level(tiny: TinyCheckpoint) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny("llama3"))
    vocabulary = read_vocabulary(tokenizer, get_family("llama3"), size=len(tokenizer))
    assert vocabulary.pre == "llama-bpe" and not vocabulary.scores
    assert all(len(merge.split(" ")) == 2 for merge in vocabulary.merges)
    assert set(vocabulary.types) == {NORMAL, CONTROL}


def test_more_tokens_than_rows_are_refused(tiny: TinyCheckpoint) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny("llama3"))
    with pytest.raises(ModelError, match="no row"):
        read_vocabulary(tokenizer, get_family("llama3"), size=len(tokenizer) - 5)


@settings(max_examples=20)
@given(st.integers(min_value=1, max_value=800), st.integers(min_value=0, max_value=9))
def test_nasty_strings_are_as_many_as_asked_for_and_all_different(count: int, seed: int) -> None:
    strings = nasty_strings(count, seed=seed)
    assert len(strings) == len(set(strings)) == count
    assert strings == nasty_strings(count, seed=seed)
