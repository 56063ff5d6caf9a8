"""Rendered text to token ids with a flag per token: is it trained?

The mask comes from character spans and the tokenizer's own offsets, so it is right for every template and turn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, cast

from app.artifact import GoldenEncoding, sha256_text
from app.data.records import Message
from app.data.render import render
from app.data.validate import control_tokens
from app.errors import DataError, ModelError, RunError
from app.families import Family
from app.hub import checkpoint_faults

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoding:
    """Token ids and their train-mask, of equal length."""

    input_ids: list[int]
    trained: list[bool]


def load_tokenizer(base: str, family: Family, *, revision: str | None = None) -> "PreTrainedTokenizerFast":
    """The checkpoint's own fast tokenizer, with this family's pad token and chat template set.

    Raises:
        ModelError: the checkpoint cannot be had, or its vocabulary lacks one of the family's special tokens.
    """
    from transformers import AutoTokenizer

    with checkpoint_faults(base):
        # Where mistral-common is installed, transformers would load its tokenizer, which gives no offsets.
        loaded = AutoTokenizer.from_pretrained(base, revision=revision, trust_remote_code=False, mistral_format=False)
    tokenizer = cast("PreTrainedTokenizerFast", loaded)
    special_ids(tokenizer, family)
    tokenizer.pad_token = family.pad_token
    tokenizer.chat_template = family.chat.jinja()
    return tokenizer


def special_ids(tokenizer: "PreTrainedTokenizerFast", family: Family) -> dict[str, int]:
    """Id of each special token the family relies on.

    Raises:
        ModelError: the vocabulary lacks one.
    """
    tokens = dict.fromkeys([*family.chat.tokens, *family.stop_tokens, family.pad_token])
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in tokens if token not in vocabulary]
    if missing:
        raise ModelError(
            f"the tokenizer has no {', '.join(missing)}, which family {family.name!r} needs",
            where="model.base",
            remedy="use the family's own checkpoint, or the family that belongs to this one",
        )
    return {token: vocabulary[token] for token in tokens}


@lru_cache(maxsize=8)
def _control_ids(tokenizer: "PreTrainedTokenizerFast", tokens: tuple[str, ...]) -> frozenset[int]:
    """Ids that text must not forge: the format's own ``tokens``, and special ones that `prepare` refuses in texts.

    All others are plain text: Gemma has line breaks and HTML tags among its added tokens, and SmolLM2 calls
    ``<filename>`` special, as it stands in "git add <filename>". Remembered, because asking Mistral's tokenizer takes
    0.4 ms, more than encoding a short conversation.
    """
    special = {
        index
        for index, token in tokenizer.added_tokens_decoder.items()
        if token.special and control_tokens().fullmatch(token.content)
    }
    return frozenset(special | set(tokenizer.convert_tokens_to_ids(list(tokens))))


def encode(
    messages: Sequence[Message], tokenizer: "PreTrainedTokenizerFast", family: Family, *, answer_next: bool
) -> Encoding:
    """A conversation as ids and train-mask; see `render` for ``answer_next``.

    Raises:
        DataError: the roles are out of order, or a message holds a special token, which would forge a turn.
    """
    rendered = render(messages, family.chat, answer_next=answer_next)
    encoded = tokenizer(rendered.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids: list[int] = encoded["input_ids"]
    offsets: list[tuple[int, int]] = encoded["offset_mapping"]
    control = _control_ids(tokenizer, (*family.chat.tokens, *family.stop_tokens))
    trained = [False] * len(ids)
    spans, contents = iter(rendered.trained), iter(rendered.content)
    span, content = next(spans, None), next(contents, None)
    for index, (start, end) in enumerate(offsets):
        while content is not None and content[1] <= start:
            content = next(contents, None)
        if content is not None and ids[index] in control and start >= content[0] and end > start:
            raise DataError(
                f"a message holds the control token {rendered.text[start:end]!r}, which would forge a turn",
                remedy="remove it from the text, or write it with a space inside",
            )
        while span is not None and span[1] <= start:
            span = next(spans, None)
        # A token belongs to the answer if it begins inside it; one that merely ends inside began in the prompt.
        if span is not None and span[0] <= start < span[1]:
            trained[index] = True
    return Encoding(input_ids=ids, trained=trained)


GOLDEN_MESSAGES = (
    Message(role="system", content="You answer briefly."),
    Message(role="user", content="Größe of 3 apples?\n  Indented, “quoted” — 漢字 🙂."),
    Message(role="assistant", content="About 600 g.\n\ndef f(x):\n    return x"),
    Message(role="user", content="Thanks!"),
    Message(role="assistant", content="You're welcome."),
)
"""White space, accents, CJK, emoji and code, in two turns with a system message."""


def golden_encoding(tokenizer: "PreTrainedTokenizerFast", family: Family) -> GoldenEncoding:
    """What this tokenizer and family make of GOLDEN_MESSAGES, for a run's manifest."""
    encoding = encode(GOLDEN_MESSAGES, tokenizer, family, answer_next=False)
    return GoldenEncoding(
        template_hash=sha256_text(family.chat.jinja()),
        special_ids=special_ids(tokenizer, family),
        messages=[{"role": m.role, "content": m.content} for m in GOLDEN_MESSAGES],
        input_ids=encoding.input_ids,
        trained=encoding.trained,
    )


def check_golden(golden: GoldenEncoding, tokenizer: "PreTrainedTokenizerFast", family: Family) -> None:
    """Refuses a tokenizer or template other than the one a run was trained with.

    Raises:
        RunError: naming what differs.
    """
    messages = [Message(role=m["role"], content=m["content"]) for m in golden.messages]  # type: ignore[arg-type]
    now = encode(messages, tokenizer, family, answer_next=False)
    differing = []
    if golden.template_hash != sha256_text(family.chat.jinja()):
        differing.append("the chat template")
    if dict(golden.special_ids) != special_ids(tokenizer, family):
        differing.append("the special tokens' ids")
    if list(golden.input_ids) != now.input_ids or list(golden.trained) != now.trained:
        differing.append("the token ids of the golden conversation")
    if differing:
        raise RunError(
            f"the run was trained with another tokenizer or template: {', '.join(differing)} differ",
            remedy="use the base model and the version of this application that the run's manifest names",
        )
