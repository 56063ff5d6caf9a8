"""Runs a plan on an opened model, and keeps every result in the journal as it comes."""

import dataclasses
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Literal

from rich.progress import Progress

from app.errors import MachineError
from app.evaluate.journal import Journal
from app.evaluate.plan import Plan, Question, Row
from app.evaluate.samples import Answered, Scored
from app.evaluate.scoring import length_batches, score
from app.generate.cache import longest_context
from app.generate.engine import Engine
from app.generate.request import Chunk, Request
from app.generate.session import Session

Model = Literal["base", "tuned"]
MODELS: tuple[Model, ...] = ("base", "tuned")
_SCORE, _ANSWER = "score:", "answer:"


def is_complete(plan: Plan, journal: Journal) -> bool:
    """Whether the journal holds all results, so that no model need be opened."""
    return all(journal.has(model, _SCORE + row.task, row.id) for model in MODELS for row in plan.rows) and all(
        journal.has(model, _ANSWER + each.task, each.id) for model in MODELS for each in plan.questions
    )


def measure(session: Session, plan: Plan, journal: Journal, *, batch_size: int, progress: Progress) -> None:
    """Scores all rows and answers all questions that the journal does not hold yet, as base and as tuned model.

    Args:
        session: the run's.
        plan: the work.
        journal: where results go.
        batch_size: rows at a time.
        progress: shows how far it is.

    Raises:
        MachineError: the engine's cache does not fit.
    """
    for model in MODELS:
        with _as(session, model):
            score_rows(session, plan.rows, model, journal, batch_size=batch_size, progress=progress)
    if not plan.questions:
        return
    longest = max(len(each.prompt) + each.sampling.max_tokens for each in plan.questions)
    context = min(longest, longest_context(session.causal_lm.config))
    engine = open_engine(session, slots=batch_size, context=context)
    for model in MODELS:
        with _as(session, model):
            answer_questions(engine, plan.questions, model, journal, progress=progress)


def open_engine(session: Session, *, slots: int, context: int) -> Engine:
    """An engine with that many slots, or as many as the free memory holds (halved until they fit).

    Raises:
        MachineError: not even one fits.
    """
    while True:
        try:
            return Engine(session, slots=slots, context=context)
        except MachineError:
            if slots == 1:
                raise
            slots //= 2


def _as(session: Session, model: Model) -> AbstractContextManager[None]:
    return session.base() if model == "base" else nullcontext()


def score_rows(
    session: Session, rows: Sequence[Row], model: Model, journal: Journal, *, batch_size: int, progress: Progress
) -> None:
    """The likelihood of every row, in batches of like length that are the same at every start."""
    task = progress.add_task(f"{model}: perplexity", total=len(rows))
    pad_id = int(session.tokenizer.pad_token_id)
    for batch in length_batches([len(row.encoding.input_ids) for row in rows], batch_size):
        part = [rows[index] for index in batch]
        if not all(journal.has(model, _SCORE + row.task, row.id) for row in part):
            scored = score(session.causal_lm, [row.encoding for row in part], pad_id=pad_id)
            for row, result in zip(part, scored, strict=True):
                journal.add(model, _SCORE + row.task, row.id, dataclasses.asdict(result))
        progress.advance(task, len(part))


def answer_questions(
    engine: Engine, questions: Sequence[Question], model: Model, journal: Journal, *, progress: Progress
) -> None:
    """An answer to every question, longest prompts first; a prompt that leaves no room for one gets none."""
    task = progress.add_task(f"{model}: answers", total=len(questions))
    waiting = [each for each in questions if not journal.has(model, _ANSWER + each.task, each.id)]
    progress.advance(task, len(questions) - len(waiting))

    def keep(question: Question, chunk: Chunk) -> None:
        answer = chunk.answer
        if answer is None or answer.finish_reason == "cancelled":
            return
        result = {"text": answer.text, "token_ids": answer.token_ids, "ended": answer.finish_reason == "stop"}
        journal.add(model, _ANSWER + question.task, question.id, result)
        progress.advance(task)

    requests: list[Request] = []
    for each in sorted(waiting, key=lambda each: -len(each.prompt)):
        if len(each.prompt) >= engine.context:
            journal.add(model, _ANSWER + each.task, each.id, None)
            progress.advance(task)
            continue
        requests.append(engine.submit(each.prompt, each.sampling, partial(keep, each)))
    try:
        while engine.busy:
            engine.step()
    finally:
        if engine.busy:  # interrupted: the engine is left as it was found
            for request in requests:
                request.cancel()
            engine.step()


def scored(journal: Journal, model: Model, row: Row) -> Scored:
    """What was measured of a row."""
    return Scored(**journal.get(model, _SCORE + row.task, row.id))


def answered(journal: Journal, model: Model, question: Question) -> Answered | None:
    """What was answered; None where the prompt left no room for an answer."""
    found = journal.get(model, _ANSWER + question.task, question.id)
    if found is None:
        return None
    return Answered(
        text=found["text"],
        token_ids=tuple(found["token_ids"]),
        ended=found["ended"],
        reference=question.reference,
    )
