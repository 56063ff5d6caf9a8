"""Answers to fixed questions, written by the model while it is in training."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from app.data.records import prompt
from app.data.tokenize import encode
from app.errors import ConfigError, several
from app.families import Family
from app.generate.attention import attention_instead
from app.generate.engine import Engine
from app.generate.sampling import Sampling
from app.generate.session import Session
from app.model.varlen_attention import NAME as VARLEN
from app.model.window import release_memory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LONGEST = 512
"""Tokens a question may have: 16 of them with answers of 512 tokens take 2 GiB of cache in Mistral-7B, three with 64
at most 220 MiB."""
SEEN = 200
"""Rows among which questions short enough are looked for."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked.

    Attributes:
        text: the last thing the user said.
        ids: the whole conversation, up to where the answer begins.
        expected: the answer in the data, None where nobody knows.
    """

    text: str
    ids: list[int]
    expected: str | None


def pick_questions(data: Any, prompts: Sequence[str], count: int) -> list[Question]:
    """The prompts; without any, the first questions of the validation split (or the training split, were that empty).

    Args:
        data: the data module.
        prompts: given by the user.
        count: how many to take where there are none; those that are too long are passed over.

    Raises:
        ConfigError: prompts are too long; all of them are named.
    """
    if prompts:
        asked = [_question(data, prompt(text), None) for text in prompts]
        faults = [f"{each.text[:60]!r} has {len(each.ids)} tokens" for each in asked if len(each.ids) > LONGEST]
        if faults:
            raise ConfigError(
                several(f"prompts may have {LONGEST} tokens with their template", faults),
                where="run_page.prompts",
                remedy="shorten them",
            )
        return asked
    rows = islice(data.stream("val" if data.rows["val"] else "train"), SEEN)
    found = (_question(data, row.messages[:-1], row.messages[-1].content) for row in rows)
    return list(islice((each for each in found if len(each.ids) <= LONGEST), count))


def _question(data: Any, messages: Any, expected: str | None) -> Question:
    ids = encode(messages, data.tokenizer, data.family, answer_next=True).input_ids
    return Question(text=messages[-1].content, ids=list(ids), expected=expected)


def answer(
    module: Any, tokenizer: "PreTrainedTokenizerFast", family: Family, asked: Sequence[Question], *, max_tokens: int
) -> list[str]:
    """Greedy answers of the model as it is now; neither it nor any random number is changed.

    Call it in eval mode, while the memory of the training step is free: at an evaluation's end. The fused kernels are
    left out: they would copy every adapter.

    Args:
        module: the QLoRAModule.
        tokenizer, family: the model's.
        asked: the questions.
        max_tokens: of each answer.

    Raises:
        MachineError: the cache does not fit.
    """
    session = Session(model=module.peft_model, tokenizer=tokenizer, family=family, manifest=None)
    context = max(len(each.ids) for each in asked) + max_tokens
    release_memory(module.device)  # what the evaluation has left counts as taken otherwise
    try:
        # What training attends with on a GPU knows no mask; generation needs one.
        with attention_instead(module.causal_lm.config, of=VARLEN, name="sdpa"):
            engine = Engine(session, slots=len(asked), context=context, speculate=False, fast=False)
            sampling = Sampling(temperature=0.0, seed=0, max_tokens=max_tokens)
            return [each.text for each in engine.generate([each.ids for each in asked], sampling)]
    finally:
        release_memory(module.device)
