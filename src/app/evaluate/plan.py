"""What an evaluation asks of both models: rows to score and questions to answer, and the fingerprints of them."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from app.cache import cache_key
from app.data.module import SFTDataModule
from app.data.records import Message, prompt
from app.data.tokenize import Encoding, encode
from app.errors import DataError, several
from app.evaluate.general import general_set
from app.evaluate.heldout import HeldOutRow, Split, heldout_rows
from app.evaluate.prompts import Prompt
from app.evaluate.question_use import ROWS
from app.families import Family
from app.generate.sampling import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SEED = 42
"""Of what is drawn from the held-out rows: not the run's, or runs of other seeds could not be compared."""

Task = Literal["heldout", "right", "swapped", "general_text", "general", "prompts"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """Tokens whose likelihood is measured."""

    task: Task
    id: str
    group: str
    encoding: Encoding


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question that is answered.

    Attributes:
        task, id, group: what it belongs to; of held-out rows the id is "NUMBER:ID", as IDs may repeat.
        messages: of the conversation, ending with the question.
        prompt: its tokens.
        sampling: how it is answered.
        reference: of held-out questions the right answer, of general ones the instruction's id.
    """

    task: Task
    id: str
    group: str
    messages: tuple[Message, ...]
    prompt: Sequence[int]
    sampling: Sampling
    reference: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All of an evaluation's work.

    Attributes:
        split: which rows are held out.
        rows: to score.
        questions: to answer.
        left_out: held-out conversations that `fit` would have left out (too long).
        prompts: the benchmark prompts behind the questions of that task.
        fingerprints: part -> hash; what two runs must share to be compared: "rows" (texts held out), "tokens" (the
            same rows as tokens), "questions", "pairs" (of question and answer), "general", "prompts".
    """

    split: Split
    rows: Sequence[Row]
    questions: Sequence[Question]
    left_out: int
    prompts: Sequence[Prompt]
    fingerprints: dict[str, str]


def make_plan(
    module: SFTDataModule,
    split: Split,
    *,
    answers: int,
    max_tokens: int,
    general: bool,
    prompts: Sequence[Prompt],
) -> Plan:
    """The work of evaluating a run.

    Args:
        module: the run's data, from `open_heldout`.
        split: to measure on.
        answers: held-out questions to answer, the same ones for the same rows.
        max_tokens: of each answer.
        general: whether the general set is measured.
        prompts: benchmark prompts.

    Raises:
        DataError: benchmark prompts cannot be encoded; all of them are named.
    """
    held_out = heldout_rows(module, split)
    tokenizer, family = module.tokenizer, module.family
    greedy = Sampling(temperature=0, max_tokens=max_tokens)
    rows = [
        Row(task="heldout", id=f"{number}:{row.conversation.id}", group=row.conversation.group, encoding=row.encoding)
        for number, row in enumerate(held_out)
    ]
    questions = [
        Question(
            task="heldout",
            id=f"{number}:{row.conversation.id}",
            group=row.conversation.group,
            messages=row.conversation.messages[:-1],
            prompt=encode(row.conversation.messages[:-1], tokenizer, family, answer_next=True).input_ids,
            sampling=greedy,
            reference=row.conversation.messages[-1].content,
        )
        for number, row in draw(held_out, answers)
    ]
    pairs = question_pairs(module, draw(held_out, ROWS))
    rows += pairs
    if general:
        rows += general_rows(tokenizer, family)
        questions += [
            Question(
                task="general",
                id=each.id,
                group=each.id,
                messages=prompt(each.question),
                prompt=encode(prompt(each.question), tokenizer, family, answer_next=True).input_ids,
                sampling=Sampling(temperature=0, max_tokens=48),
                reference=each.id,
            )
            for each in general_set().instructions
        ]
    questions += prompt_questions(prompts, tokenizer, family)
    return Plan(
        split=split,
        rows=rows,
        questions=questions,
        left_out=len(module.conversations[split]) - len(held_out),
        prompts=prompts,
        fingerprints={
            "rows": cache_key(rows=[row.conversation.to_json()["messages"] for row in held_out]),
            "tokens": cache_key(rows=[[row.encoding.input_ids, row.encoding.trained] for row in held_out]),
            "questions": _key(questions, "heldout"),
            "pairs": cache_key(pairs=[[row.id, row.encoding.input_ids] for row in pairs]),
            "general": cache_key(asked=_key(questions, "general"), set=repr(general_set()) if general else ""),
            "prompts": cache_key(asked=_key(questions, "prompts"), checks=[repr(each.checks) for each in prompts]),
        },
    )


def _key(questions: Iterable[Question], task: Task) -> str:
    return cache_key(
        questions=[
            [each.id, [(m.role, m.content) for m in each.messages], repr(each.sampling), each.reference]
            for each in questions
            if each.task == task
        ]
    )


def draw(rows: Sequence[HeldOutRow], count: int) -> list[tuple[int, HeldOutRow]]:
    """``count`` of them with their numbers, always the same ones."""
    chosen = random.Random(SEED).sample(range(len(rows)), min(count, len(rows)))
    return [(index, rows[index]) for index in sorted(chosen)]


def question_pairs(module: SFTDataModule, drawn: Sequence[tuple[int, HeldOutRow]]) -> list[Row]:
    """Each conversation's last answer after its own question ("right") and after another's ("swapped")."""
    rows = []
    for place, (number, row) in enumerate(drawn):
        other = drawn[(place + len(drawn) // 2) % len(drawn)][1].conversation.messages
        own = row.conversation.messages
        pair = [_last_answer(module, own), _last_answer(module, (*other[:-1], own[-1]))]
        if max(len(encoding.input_ids) for encoding in pair) <= module.max_length and other[:-1] != own[:-1]:
            identity, group = f"{number}:{row.conversation.id}", row.conversation.group
            rows.append(Row(task="right", id=identity, group=group, encoding=pair[0]))
            rows.append(Row(task="swapped", id=identity, group=group, encoding=pair[1]))
    return rows


def _last_answer(module: SFTDataModule, messages: Sequence[Message]) -> Encoding:
    """A conversation in which the last answer alone is trained."""
    whole = encode(messages, module.tokenizer, module.family, answer_next=False)
    before = len(encode(messages[:-1], module.tokenizer, module.family, answer_next=True).input_ids)
    return Encoding(input_ids=whole.input_ids, trained=[False] * before + whole.trained[before:])


def general_rows(tokenizer: "PreTrainedTokenizerFast", family: Family) -> list[Row]:
    """The general set's passages as plain text, and its instructions with their answers."""
    before = tokenizer.convert_tokens_to_ids([family.chat.bos]) if family.chat.bos else []
    rows = []
    for passage in general_set().passages:
        ids = tokenizer(passage.text, add_special_tokens=False)["input_ids"]
        encoding = Encoding(input_ids=[*before, *ids], trained=[False] * len(before) + [True] * len(ids))
        rows.append(Row(task="general_text", id=passage.id, group=passage.id, encoding=encoding))
    for instruction in general_set().instructions:
        encoding = encode(instruction.messages, tokenizer, family, answer_next=False)
        rows.append(Row(task="general", id=instruction.id, group=instruction.id, encoding=encoding))
    return rows


def prompt_questions(prompts: Sequence[Prompt], tokenizer: "PreTrainedTokenizerFast", family: Family) -> list[Question]:
    """Benchmark prompts, encoded.

    Raises:
        DataError: some hold control tokens; all of them are named.
    """
    questions, faults = [], []
    for each in prompts:
        try:
            ids = encode(each.messages, tokenizer, family, answer_next=True).input_ids
        except DataError as fault:
            faults.append(f"{each.id}: {fault.what}")
            continue
        questions.append(
            Question(
                task="prompts",
                id=each.id,
                group=each.id,
                messages=each.messages,
                prompt=ids,
                sampling=each.sampling,
                reference="",
            )
        )
    if faults:
        raise DataError(
            several(f"{len(faults)} prompts cannot be asked", faults), where="--prompts", remedy="correct their texts"
        )
    return questions
