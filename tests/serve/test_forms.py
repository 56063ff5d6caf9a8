"""The shapes of answers, where a served model would not show them for sure."""

import asyncio
from typing import TYPE_CHECKING, Any

from app.families import Family
from app.generate.sampling import TokenLogprob
from app.serve.forms import CompletionForm
from app.serve.job import Piece
from app.serve.vocabulary import Vocabulary
from app.serve.work import Work

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TEXT = "Emoji: 🎉 party, 漢字 kanji, 🚀"


def test_completions_place_and_name_tokens_that_are_parts_of_characters(
    family: Family, tokenizer: "PreTrainedTokenizerFast"
) -> None:
    vocabulary = Vocabulary(tokenizer, family)
    ids = vocabulary.text(TEXT, special=False)
    raw = [vocabulary.token_bytes(token) for token in ids]
    form = CompletionForm("cmpl-1", vocabulary, fingerprint="fp", logprobs=True, usage=False)
    work = Work([], asyncio.Queue(), model="helper", prompt_tokens=0, deadline=0)
    chances: list[dict[str, Any]] = []
    for token in ids:  # as a stream: a character is spread over several chunks
        best = ((token, -1.0), *((other, -2.0) for other in set(ids) - {token}))
        (chunk,) = form.piece(work, 0, Piece(text="", logprobs=(TokenLogprob(token_id=token, logprob=-1.0, top=best),)))
        chances.append(chunk["choices"][0]["logprobs"])

    whole = b"".join(raw).decode()
    offsets = [chance["text_offset"][0] for chance in chances]
    assert offsets == [len(b"".join(raw[:place]).decode("utf-8", "ignore")) for place in range(len(ids))]
    assert offsets[-1] < len(whole)
    for chance in chances:
        ((name,), (top,)) = chance["tokens"], chance["top_logprobs"]
        assert len(top) == len(set(ids)) and top[name] == -1.0
        assert "\ufffd" not in name
    names = [chance["tokens"][0] for chance in chances]
    assert any(name.startswith("bytes:") for name in names) == any(_partial(part) for part in raw)


def _partial(raw: bytes) -> bool:
    return raw.decode("utf-8", "ignore").encode() != raw
