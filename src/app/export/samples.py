"""The conversations an export is checked at: the run's own held-out data, or a few of this application's."""

from collections.abc import Sequence
from pathlib import Path

from app.artifact import Manifest
from app.data.records import Message, read_prepared
from app.data.tokenize import GOLDEN_MESSAGES, encode
from app.data.tokenized import prepared_folder
from app.errors import DataError
from app.export.equivalence import Sample
from app.export.tuned import TunedModel

LONGEST = 512
"""Tokens of a conversation that are looked at."""

TARGETS = 128
"""Answer tokens of a conversation that are compared; the first ones."""

BUILT_IN = (
    ("What is the capital of France?", "The capital of France is Paris."),
    ("Write a Python function that adds two numbers.", "def add(a, b):\n    return a + b"),
    ("Translate to German: good morning", "Guten Morgen"),
    ("List three primary colours.", "1. Red\n2. Yellow\n3. Blue"),
    ("Why is the sky blue?", "Air scatters blue light more than red light."),
    ("Summarise: The meeting was moved from Monday to Friday.", "The meeting is on Friday."),
    ('Return JSON with the keys "name" and "age" for Ann, 31.', '{"name": "Ann", "age": 31}'),
    ("How many minutes are there in a day?", "There are 24 × 60 = 1,440 minutes in a day."),
)  # fmt: skip


def held_out(tuned: TunedModel, *, data: Path | None, count: int) -> tuple[list[Sample], str]:
    """Samples, and in words where they come from.

    Args:
        tuned: whose tokenizer and format are used.
        data: a prepared JSONL file; by default the test (or val) split the run's manifest names.
        count: how many conversations at most.

    Raises:
        DataError: ``data`` is missing, is no prepared file, or has no answers; the run's raw data is damaged.
    """
    file = data or _own_split(tuned.manifest)
    if file is not None:
        conversations: Sequence[Sequence[Message]] = [entry.messages for entry in read_prepared(file)]
        source = f"{file.name} of the run's data" if data is None else file.name
    else:
        conversations = [
            GOLDEN_MESSAGES,
            *([Message(role="user", content=q), Message(role="assistant", content=a)] for q, a in BUILT_IN),
        ]
        source = "this application's own conversations (the run's data is not on this machine, or none was held out)"
    samples = []
    for messages in conversations:
        if messages[-1].role != "assistant":
            continue
        encoding = encode(messages, tuned.tokenizer, tuned.family, answer_next=False)
        trained = [index for index, flag in enumerate(encoding.trained[:LONGEST]) if flag and index > 0]
        if trained:
            question = next(message.content for message in messages if message.role == "user")
            samples.append(
                Sample(
                    ids=encoding.input_ids[:LONGEST], targets=trained[:TARGETS], prompt=trained[0], question=question
                )
            )
        if len(samples) == count:
            break
    if not samples:
        raise DataError(
            f"{file} has no conversation with an answer in its first {LONGEST} tokens",
            where="--data",
            remedy="name a prepared JSONL file with answers",
        )
    return samples, source


def _own_split(manifest: Manifest) -> Path | None:
    """The run's test split, or validation split; None where it has none, or its data is no longer on this machine.

    Raw data is prepared as `fit` did, or found as `fit` has left it.
    """
    source = Path(manifest.data.source).expanduser()
    if not source.exists():
        return None
    given = manifest.config["data"]
    options = {name: given[name] for name in ("val_fraction", "test_fraction", "columns")}
    folder = prepared_folder(str(source), seed=manifest.seed, **options)
    splits = (folder / name for name in ("test.jsonl", "val.jsonl"))
    return next((split for split in splits if split.is_file() and split.stat().st_size), None)
