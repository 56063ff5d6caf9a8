"""Random conversations, and what must hold of the encoding of every one of them."""

from itertools import groupby

from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from app.data.records import Message
from app.data.tokenize import encode
from app.families import Family, all_families

# What text can hold that templates and tokenizers might trip over: halves of control tokens, markup, white space.
_FRAGMENTS = (
    *("<|im_", "<|", "|>", "[/INST", "INST]", "<start_of", "</", "<b>x</b>", "{content}", "{{ x }}", "{% if %}"),
    *(" ", "  ", "\n", "\n\n", "\t", "\r\n", "\xa0", "'", '"', "\\n", "1234567", "漢字", "🙂", "e\u0301", "ﬁ", "\x1f"),
)
CONTROL = sorted(
    {token for each in all_families().values() for token in (*each.chat.tokens, *each.stop_tokens, each.pad_token)}
    | {"<mask>"}
)

# "▁" is a space to SentencePiece vocabularies and comes back as one; half a surrogate pair is no text.
_characters = st.characters(exclude_categories=("Cs",), exclude_characters="▁")
_texts = (
    st.lists(st.text(_characters, max_size=8) | st.sampled_from(_FRAGMENTS), min_size=1, max_size=6)
    .map("".join)
    .filter(lambda text: text.strip() and not any(token in text for token in CONTROL))
)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Message, ...]:
    """One to three questions with answers, with or without a system message (which may be blank)."""
    system = draw(st.none() | st.just(" \n") | _texts)
    messages = [] if system is None else [Message(role="system", content=system)]
    for _ in range(draw(st.integers(1, 3))):
        messages.append(Message(role="user", content=draw(_texts)))
        messages.append(Message(role="assistant", content=draw(_texts)))
    return tuple(messages)


def check_encoding(messages: tuple[Message, ...], tokenizer: PreTrainedTokenizerFast, family: Family) -> None:
    """Asserts that the answers with their end-of-turn tokens are trained and nothing else is, and that every prompt
    is a prefix of what was trained."""
    sample = encode(messages, tokenizer, family, answer_next=False)
    assert len(sample.input_ids) == len(sample.trained)

    runs = [list(run) for trained, run in groupby(range(len(sample.trained)), sample.trained.__getitem__) if trained]
    answers = [message.content.strip() for message in messages if message.role == "assistant"]
    texts = [
        tokenizer.decode([sample.input_ids[index] for index in run], clean_up_tokenization_spaces=False) for run in runs
    ]
    assert texts == [answer + family.stop_tokens[0] for answer in answers]
    end_of_turn = tokenizer.convert_tokens_to_ids(family.stop_tokens[0])
    assert all(sample.input_ids[run[-1]] == end_of_turn for run in runs)

    if family.chat.bos:
        bos = tokenizer.convert_tokens_to_ids(family.chat.bos)
        assert [index for index, token in enumerate(sample.input_ids) if token == bos] == [0]

    first = [index for index, message in enumerate(messages) if message.role == "assistant"]
    for index, run in zip(first, runs, strict=True):
        prompt = encode(messages[:index], tokenizer, family, answer_next=True)
        assert sample.input_ids[: run[0]] == prompt.input_ids
        assert sample.trained[: run[0]] == prompt.trained
