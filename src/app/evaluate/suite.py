"""The suite: a run and its base on the same held-out rows, and the report of it."""

import dataclasses
import json
import random
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.progress import Progress

from app.artifact import RunDirectory, write_atomic
from app.data.records import Conversation
from app.evaluate.heldout import Split, choose_split, open_heldout
from app.evaluate.perplexity import Perplexity, measure_perplexity
from app.evaluate.rouge import Rouge, measure_rouge
from app.generate.engine import Engine
from app.generate.sampling import Sampling
from app.generate.session import open_run
from app.model.load import Device

REPORT = "evaluation.json"


@dataclass(frozen=True, kw_only=True)
class Scores:
    """One model's results; ``rouge`` is None where no answers were generated."""

    perplexity: Perplexity
    rouge: Rouge | None


@dataclass(frozen=True, kw_only=True)
class Example:
    """One held-out question with its reference and both models' answers."""

    id: str
    question: str
    reference: str
    base: str
    tuned: str


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """``reports/evaluation.json``: base against tuned on one split."""

    run: str
    split: Split
    base: Scores
    tuned: Scores
    examples: Sequence[Example]


def evaluate_run(
    run: Path,
    *,
    split: Split | None = None,
    data: str | None = None,
    answers: int = 24,
    max_tokens: int = 128,
    batch_size: int = 8,
    device: Device = "auto",
    progress: Progress,
) -> Evaluation:
    """Measures the run and its base and writes the report.

    Args:
        run: the run directory.
        split: what to measure on; by default the test split, or where that is empty the validation split.
        data: where the data is now, if it has moved.
        answers: how many held-out questions (drawn with the run's seed) are answered greedily for ROUGE.
        max_tokens: of each answer.
        batch_size: rows at a time.
        device: where to run.
        progress: shows how far it is.

    Raises:
        RunError, DataError, ModelError, MachineError: see `open_run` and `open_heldout`.
    """
    directory = RunDirectory(run)
    module = open_heldout(directory.read_manifest(), data=data, batch_size=batch_size)
    chosen = choose_split(module, split)
    session = open_run(run, device=device)
    samples = draw_questions(module.conversations[chosen], answers, seed=module.seed)
    batches = module.test_dataloader() if chosen == "test" else module.val_dataloader()
    engine = Engine(session, slots=batch_size) if samples else None

    scores, texts = {}, {}
    for name in ("base", "tuned"):
        with session.base() if name == "base" else nullcontext():
            task = progress.add_task(f"{name}: perplexity", total=len(module.rows[chosen]))
            perplexity = measure_perplexity(session, batches, progress=partial(progress.advance, task))
            texts[name] = generate_answers(engine, samples, max_tokens, f"{name}: answers", progress) if engine else []
        references = [sample.messages[-1].content for sample in samples]
        rouge = measure_rouge(texts[name], references) if samples else None
        scores[name] = Scores(perplexity=perplexity, rouge=rouge)

    evaluation = Evaluation(
        run=str(run),
        split=chosen,
        base=scores["base"],
        tuned=scores["tuned"],
        examples=[
            Example(
                id=sample.id,
                question=sample.messages[-2].content,
                reference=sample.messages[-1].content,
                base=base,
                tuned=tuned,
            )
            for sample, base, tuned in zip(samples, texts["base"], texts["tuned"], strict=True)
        ],
    )
    write_atomic(
        directory.reports / REPORT, json.dumps(dataclasses.asdict(evaluation), indent=2, ensure_ascii=False) + "\n"
    )
    return evaluation


def draw_questions(conversations: Sequence[Conversation], count: int, *, seed: int) -> list[Conversation]:
    """``count`` of them, the same ones for the same seed."""
    chosen = random.Random(seed).sample(range(len(conversations)), min(count, len(conversations)))
    return [conversations[index] for index in sorted(chosen)]


def generate_answers(
    engine: Engine, samples: Sequence[Conversation], max_tokens: int, title: str, progress: Progress
) -> list[str]:
    """Greedy answers to the last question of each conversation."""
    task = progress.add_task(title, total=len(samples))
    prompts = [sample.messages[:-1] for sample in samples]
    found = engine.generate(
        prompts, Sampling(temperature=0, max_tokens=max_tokens), progress=lambda _: progress.advance(task)
    )
    return [answer.text for answer in found]
