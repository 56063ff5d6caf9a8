"""Small tokenizers of each family's real kind, trained in under a second: no download, every special token in place.

The kind follows from the family's own facts: byte-level BPE with the pre-tokenizer that ``gguf.pre`` names, or
SentencePiece-like BPE with byte fallback, with or without a space put before the text.
"""

import argparse
import inspect
import json
import statistics
import textwrap
from collections.abc import Iterator

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import GemmaTokenizer, PreTrainedTokenizerFast

from app.families import Family

VOCABULARY = 1024
"""Tokens in all: a multiple of 64, small enough that embeddings weigh nothing."""

RSTRIP = frozenset({"phi3"})
"""Families whose turn tokens swallow the white space on their right (Phi-3's tokenizer.json)."""

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The split of Llama 3's tokenizer.json; llama.cpp calls it ``llama-bpe``."""


def tiny_tokenizer(family: Family) -> PreTrainedTokenizerFast:
    """A tokenizer of ``VOCABULARY`` tokens that behaves like the family's own around special tokens and white space."""
    stop, chat = family.stop_tokens, family.chat
    # The EOS token of the published tokenizers: the second stop token where the end of a turn has one of its own.
    eos = stop[1] if family.gguf.eot_token else stop[0]
    bos = chat.bos or ("<s>" if family.gguf.tokenizer_model == "llama" else stop[-1])
    unk = "<unk>" if family.gguf.tokenizer_model == "llama" else None
    first = [token for token in (unk, bos, eos) if token]
    # transformers rebuilds Gemma's tokenizer in its own class, which adds <mask>; the others it takes as they are.
    wrap = GemmaTokenizer if family.name == "gemma" else PreTrainedTokenizerFast
    mask = ["<mask>"] if wrap is GemmaTokenizer else []
    # llama.cpp loads no Phi-3 vocabulary without Llama-2's "</s>", which the published one has too.
    llama2 = ["</s>"] if family.name in RSTRIP else []
    control = list(dict.fromkeys([*first, *chat.tokens, *stop, family.pad_token, *mask, *llama2]))
    build = _sentencepiece if family.gguf.tokenizer_model == "llama" else _byte_level
    tokenizer = build(family, control)
    tokenizer.add_special_tokens(
        [
            AddedToken(token, normalized=False, special=True, rstrip=family.name in RSTRIP and token not in first)
            for token in control
        ]
    )
    if family.gguf.add_bos:
        tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    named = {"bos_token": bos, "eos_token": eos, **({"unk_token": unk} if unk else {})}
    return wrap(tokenizer_object=tokenizer, pad_token=family.pad_token, padding_side="left", **named)


def _byte_level(family: Family, control: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(BPE(ignore_merges=family.gguf.pre == "llama-bpe"))
    if family.gguf.pre == "llama-bpe":
        split = pre_tokenizers.Split(Regex(LLAMA3_PATTERN), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    else:
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=control,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return tokenizer


def _sentencepiece(family: Family, control: list[str]) -> Tokenizer:
    learner = Tokenizer(BPE())
    # SentencePiece's pieces never cross a space or a line.
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", behavior="isolated"),
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never"),
        ]
    )
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    trainer = BpeTrainer(vocab_size=VOCABULARY, special_tokens=[*control, *bytes_], show_progress=False)
    learner.train_from_iterator(_corpus(), trainer)
    model = json.loads(learner.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Tokenizer(BPE(model["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))

    decode = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if family.gguf.add_space_prefix is False:  # Gemma
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    elif family.name in RSTRIP:  # Phi-3: a space before every piece of text between special tokens
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        decode.append(decoders.Strip(" ", left=1))
    else:  # Mistral: a space before the text's first character only
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
        decode.append(decoders.Strip(" ", left=1))
    tokenizer.decoder = decoders.Sequence(decode)
    return tokenizer


def _corpus() -> Iterator[str]:
    """English and code that every machine has."""
    for module in (argparse, statistics, textwrap):
        yield from inspect.getsource(module).splitlines(keepends=True)
