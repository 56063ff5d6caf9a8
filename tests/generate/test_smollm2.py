"""The engine against transformers on the real small model: NF4 and adapter, 50 prompts."""

import itertools
from pathlib import Path

import pytest
import torch

from app.data.records import prompt
from app.data.tokenize import encode
from app.generate.engine import Engine
from app.generate.sampling import Sampling
from support.opening import open_float32

SUBJECTS = [
    "rain",
    "prime numbers",
    "the French Revolution",
    "recursion",
    "bread",
    "gravity",
    "Größe",
    "漢字",
    "chess",
    "tea",
]
FORMS = ["What is {}?", "Write two lines about {}.", "List facts about {}:\n-", "Is {} hard? Answer yes or no.", "{}"]
TOKENS = 12


@pytest.mark.slow
def test_fifty_greedy_answers_are_those_of_transformers(smollm2: Path) -> None:
    session = open_float32(smollm2, "smollm2", alpha=2)
    prompts = [prompt(form.format(subject)) for form, subject in itertools.product(FORMS, SUBJECTS)]
    encoded = [encode(p, session.tokenizer, session.family, answer_next=True).input_ids for p in prompts]
    answers = Engine(session, slots=25, context=256).generate(prompts, Sampling(max_tokens=TOKENS))
    stop = session.tokenizer.convert_tokens_to_ids(list(session.family.stop_tokens))
    session.tokenizer.padding_side = "left"
    differing = []
    for start in range(0, 50, 25):
        batch = session.tokenizer.pad({"input_ids": encoded[start : start + 25]}, return_tensors="pt")
        width = batch["input_ids"].shape[1]
        with torch.inference_mode():
            out = session.model.generate(
                **batch, max_new_tokens=TOKENS, do_sample=False, eos_token_id=stop, pad_token_id=stop[0]
            )
        for number, row in enumerate(out[:, width:].tolist(), start=start):
            ours = list(answers[number].token_ids)
            if row[: len(ours)] != ours or (len(ours) < TOKENS and ours[-1] not in stop):
                differing.append((prompts[number][0].content, row, ours))
    assert not differing
    assert len({a.text for a in answers}) > 40, "the answers are not worth comparing"
