"""The fast path's logic on a CPU, with the kernels' plain references: steps are launched before the last is read."""

import itertools
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from app.data.tokenize import load_tokenizer
from app.families import Family, get_family
from app.generate.cache import CacheBits
from app.generate.engine import Engine
from app.generate.request import Request
from app.generate.sampling import Sampling
from app.generate.session import Session
from app.model.load import load_base
from generate.conftest import OpenTiny, questions


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines take the fast path; its kernels are the references."""
    monkeypatch.setattr("app.kernels.triton_support.triton", None)
    monkeypatch.setattr("app.generate.forward.has_kernels", lambda device: True)


@pytest.mark.usefixtures("fast")
def test_greedy_texts_are_those_of_the_reference(family: Family, open_tiny: OpenTiny) -> None:
    compare(open_tiny(family.name), 16)


@pytest.mark.usefixtures("fast")
def test_both_paths_read_the_same_8_bit_cache(open_tiny: OpenTiny) -> None:
    compare(open_tiny("phi3"), 8)


def compare(session: Session, bits: CacheBits) -> None:
    prompts, options = questions(5)[0], Sampling(max_tokens=20, logprobs=0)
    reference, ours = (
        Engine(session, slots=3, context=128, cache_bits=bits, fast=on).generate(prompts, options)
        for on in (False, True)
    )
    for theirs, mine in zip(reference, ours, strict=True):
        assert mine.token_ids == theirs.token_ids
        assert mine.logprobs is not None and theirs.logprobs is not None
        for a, b in zip(mine.logprobs, theirs.logprobs, strict=True):
            assert a.logprob == pytest.approx(b.logprob, abs=1e-3)


@pytest.mark.usefixtures("fast")
def test_a_text_is_the_same_alone_in_any_batch_and_with_drafts(open_tiny: OpenTiny) -> None:
    session = open_tiny("smollm2")
    prompts, options = questions(18)
    alone = Engine(session, slots=1, context=128, speculate=False)
    expected = [alone.generate([ids], option)[0] for ids, option in zip(prompts, options, strict=True)]
    drafts = 0
    for slots, speculate in ((3, True), (18, False)):
        answers = Engine(session, slots=slots, context=128, speculate=speculate).generate(prompts, options)
        assert [a.token_ids for a in answers] == [a.token_ids for a in expected]
        assert [a.text for a in answers] == [a.text for a in expected]
        drafts += sum(answer.drafts[1] for answer in answers)
    assert drafts > 10, "no draft was ever right: the test shows nothing"


@pytest.mark.slow
@pytest.mark.usefixtures("fast")
def test_random_schedules_lose_and_mix_nothing(open_tiny: OpenTiny) -> None:
    session = open_tiny("smollm2")
    prompts, options = questions(12)
    alone = Engine(session, slots=1, context=64, speculate=False)
    expected = [alone.generate([ids], option)[0] for ids, option in zip(prompts, options, strict=True)]
    rng = random.Random(42)
    engines = [Engine(session, slots=slots, context=64, reuse=slots == 4) for slots in (1, 3, 4)]
    for _ in range(60):
        engine = rng.choice(engines)
        joining = {which: rng.randrange(6) for which in rng.sample(range(12), rng.randint(1, 5))}
        leaving = {which: joining[which] + rng.randrange(6) for which in joining if rng.random() < 0.25}
        requests: dict[int, Request] = {}
        for step in itertools.count():
            for which in (w for w, at in joining.items() if at == step):
                requests[which] = engine.submit(prompts[which], options[which])
            for which in (w for w, at in leaving.items() if at == step):
                requests[which].cancel()
            if step >= 12 and not engine.busy:
                break
            engine.step()
            assert not any(requests[w].answer is None for w, at in leaving.items() if at == step)
        for which, request in requests.items():
            answer, known = request.answer, expected[which]
            assert answer is not None
            if answer.finish_reason == "cancelled":
                assert known.token_ids[: len(answer.token_ids)] == answer.token_ids
            else:
                assert (answer.token_ids, answer.text) == (known.token_ids, known.text)


@pytest.mark.usefixtures("fast")
def test_the_next_step_is_launched_before_the_last_one_is_read(
    open_tiny: OpenTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(open_tiny("smollm2"), slots=2, context=128, speculate=False)
    events: list[str] = []
    write, take = engine._forward.write, engine._take

    def watch(name: str, wrapped: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            events.append(name)
            return wrapped(*arguments, **named)

        return call

    monkeypatch.setattr(engine._forward, "write", watch("write", write))
    monkeypatch.setattr(engine, "_take", watch("take", take))
    engine.generate([[400, 401]], Sampling(max_tokens=6, ignore_stop=True))
    assert events == ["write", "write", "take", "write", "take", "write", "take", "write", "take", "take"]


@pytest.mark.usefixtures("fast")
def test_adapters_are_followed(tiny: Callable[[str], Path]) -> None:
    family = get_family("mistral")
    base = load_base(str(tiny("mistral")), family, device=torch.device("cpu"), dtype=torch.float32, trainable=True)
    targets = list(family.lora_targets)
    torch.manual_seed(1)
    model = get_peft_model(base, LoraConfig(r=3, lora_alpha=12, target_modules=targets, init_lora_weights=False))
    tokenizer = load_tokenizer(str(tiny("mistral")), family)
    session = Session(model=model.eval(), tokenizer=tokenizer, family=family, manifest=None)
    engine, reference = (Engine(session, slots=2, context=64, fast=on) for on in (True, False))
    options, prompts = Sampling(max_tokens=20), [[400, 401, 402], [500]]
    texts = set()

    def same() -> None:
        found = [answer.token_ids for answer in engine.generate(prompts, options)]
        assert found == [answer.token_ids for answer in reference.generate(prompts, options)]
        texts.add(tuple(found))

    same()
    # One that came later, with a higher rank than there was room for.
    model.add_adapter("other", LoraConfig(r=8, lora_alpha=40, target_modules=targets, init_lora_weights=False))
    model.set_adapter("other")
    same()
    with session.base():
        same()
    model.set_adapter("default")
    same()
    assert len(texts) == 3
    assert engine._forward.fast
    # What the kernels do not compute goes through transformers' modules.
    model.add_adapter("dora", LoraConfig(r=2, target_modules=targets, init_lora_weights=False, use_dora=True))
    model.set_adapter("dora")
    with pytest.warns(UserWarning, match="not one plain LoRA"):
        same()
    assert not engine._forward.fast
