"""The real small model in NF4 with an adapter: against transformers, and against itself."""

import itertools
from pathlib import Path

import pytest
import torch

from app.data.records import prompt
from app.data.tokenize import encode
from app.generate.engine import Engine
from app.generate.forward import Forward, Row
from app.generate.sampling import Sampling
from support.opening import open_float32, open_tuned

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


@pytest.mark.slow
@pytest.mark.usefixtures("threads")
@pytest.mark.skipif(not torch.cpu.get_capabilities().get("avx512_bf16"), reason="not the CPU kernels this is true of")
def test_in_bfloat16_a_prompt_is_read_alike_whole_and_in_pieces(smollm2: Path) -> None:
    session = open_tuned(smollm2, "smollm2", alpha=16, dtype=torch.bfloat16)
    forward = Forward(session.model, slots=2, context=256)
    last = forward.cache.blocks[-1]
    prompts = torch.randint(40_000, (5, 60), generator=torch.Generator().manual_seed(0)).tolist()

    def read(slot: int, ids: list[int], pieces: list[int]) -> torch.Tensor:
        """The last layer's keys and values, in which every difference before shows."""
        length = len(ids)
        for start, end in itertools.pairwise([0, *pieces, length]):
            forward([Row(slot=slot, start=start, ids=ids[start:end], scored=1)])
        return torch.stack((last.keys[slot, :, :length], last.values[slot, :, :length])).clone()

    for ids, (length, pieces) in itertools.product(prompts, ((18, [5, 6, 7]), (30, [9]), (60, [13, 14]))):
        assert torch.equal(read(1, ids[:length], pieces), read(0, ids[:length], []))
