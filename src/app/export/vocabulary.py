"""A tokenizer as llama.cpp stores it, made from ``tokenizer.json`` alone.

transformers 5 saves no ``tokenizer.model``. SentencePiece's scores are only ever compared, to choose which pair to
join next, and the order of the BPE merges is that comparison: a piece's score is minus the rank of the first merge
that makes it.
"""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from app.errors import ModelError
from app.families import Family

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedTokenizerFast

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""llama.cpp's ``llama_token_type``."""

SPACE = "▁"
GENERATION_TAGS = ("{% generation %}", "{% endgeneration %}")
"""Marks for transformers' assistant mask; no other template engine knows them."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Tokens in order of id.

    Attributes:
        tokens: their text; byte-level BPE in its printable alphabet, SentencePiece with ▁ for a space.
        types: llama.cpp's token types.
        scores: SentencePiece scores, empty for byte-level BPE.
        merges: BPE merges in order, empty for SentencePiece.
        pre: llama.cpp's name for how text is cut before merging.
        add_space_prefix: whether llama.cpp must put a space before text, as the tokenizer does.
    """

    tokens: list[str]
    types: list[int]
    scores: list[float]
    merges: list[str]
    pre: str
    add_space_prefix: bool


def read_vocabulary(tokenizer: "PreTrainedTokenizerFast", family: Family, *, size: int) -> Vocabulary:
    """The tokenizer's vocabulary, filled up to ``size`` rows of the embedding matrix with unused tokens.

    Raises:
        ModelError: the tokenizer is no BPE, or has more tokens than the model has rows.
    """
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    model = described["model"]
    if model["type"] != "BPE":
        raise ModelError(
            f"the tokenizer is a {model['type']} model; the families here have BPE",
            where="tokenizer",
            remedy="use the family's own tokenizer",
        )
    pieces = family.gguf.tokenizer_model == "llama"
    tokens = [f"[PAD{index}]" for index in range(size)]
    types = [UNUSED] * size
    added = {entry["id"]: entry for entry in described["added_tokens"]}
    outside = [token for token, index in model["vocab"].items() if index >= size]
    outside += [entry["content"] for index, entry in added.items() if index >= size]
    if outside:
        raise ModelError(
            f"{len(outside)} tokens (such as {outside[0]!r}) have no row in the model's embeddings of {size} rows",
            where="tokenizer",
            remedy="use the tokenizer that belongs to the base model",
        )
    for token, index in model["vocab"].items():
        tokens[index] = token
        types[index] = _piece_type(token, model) if pieces else NORMAL
    for index, entry in added.items():
        content = entry["content"]
        # llama.cpp looks for these in raw text, where a space is a space.
        tokens[index] = content if entry["special"] else content.replace(SPACE, " ")
        if content == model.get("unk_token") and pieces:
            types[index] = UNKNOWN
        else:
            types[index] = CONTROL if entry["special"] else USER_DEFINED
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return Vocabulary(
        tokens=tokens,
        types=types,
        scores=_scores(tokens, model["merges"]) if pieces else [],
        merges=[] if pieces else merges,
        pre=_pre_name(described, family),
        add_space_prefix=pieces and _prefixes_space(described),
    )


def chat_template(family: Family) -> str:
    """The family's Jinja template, in what every engine knows of Jinja."""
    text = family.chat.jinja()
    for tag in GENERATION_TAGS:
        text = text.replace(tag, "")
    return text


def write_vocabulary(
    writer: "GGUFWriter", tokenizer: "PreTrainedTokenizerFast", family: Family, vocabulary: Vocabulary
) -> None:
    """The ``tokenizer.*`` metadata: tokens, special ids and their flags, chat template."""
    facts = family.gguf
    writer.add_tokenizer_model(facts.tokenizer_model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.add_space_prefix)
    writer.add_token_types(vocabulary.types)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    for identifier, add in (
        (tokenizer.bos_token_id, writer.add_bos_token_id),
        (tokenizer.eos_token_id, writer.add_eos_token_id),
        (tokenizer.unk_token_id, writer.add_unk_token_id),
        (tokenizer.pad_token_id, writer.add_pad_token_id),
    ):
        if identifier is not None:
            add(identifier)
    # The end of a turn ends an answer, whichever token the tokenizer calls EOS.
    turn_end = tokenizer.convert_tokens_to_ids(family.stop_tokens[0])
    writer.add_eot_token_id(turn_end)
    writer.add_add_bos_token(facts.add_bos)
    writer.add_add_eos_token(False)
    writer.add_chat_template(chat_template(family))


def _piece_type(token: str, model: dict[str, Any]) -> int:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return BYTE
    return UNKNOWN if token == model.get("unk_token") else NORMAL


def _scores(tokens: list[str], merges: list[str] | list[list[str]]) -> list[float]:
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault(left + right, rank)
    # What no merge makes (single characters, bytes, control tokens) is never the result of joining a pair.
    return [float(-ranks.get(token, len(merges))) for token in tokens]


def _prefixes_space(described: dict[str, Any]) -> bool:
    """Whether text between special tokens begins with an added space.

    ``prepend_scheme: first`` adds one only at the very start of a text. Here every text is a rendered conversation,
    whose start is a special token, so it never does; llama.cpp's flag means every stretch between special tokens.
    """
    text = json.dumps([described["normalizer"], described["pre_tokenizer"]], ensure_ascii=False)
    return '"Prepend"' in text or '"prepend_scheme": "always"' in text


def _pre_name(described: dict[str, Any], family: Family) -> str:
    """The name by what this tokenizer does, which need not be what its family's published one does.

    A tokenizer that transformers rebuilt from a GGUF file (SmolLM2 of the quickstart) has lost the family's split of
    digits: named "smollm", 11 of 500 texts were tokenised otherwise than in training.
    """
    cutter = described["pre_tokenizer"] or {}
    steps = cutter.get("pretokenizers", [cutter])
    shape = tuple((step.get("type"), step.get("use_regex")) for step in steps)
    if shape == (("ByteLevel", True),):
        return "gpt-2"
    if shape == (("Digits", None), ("ByteLevel", True)):
        return "smollm"
    return family.gguf.pre or "default"
