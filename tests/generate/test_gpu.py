"""Generation on a GPU: fused kernels in CUDA graphs, against transformers' modules and against themselves."""

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from app.data.tokenize import load_tokenizer
from app.families import Family, get_family
from app.generate.engine import Engine
from app.generate.forward import Forward, Row, Wish
from app.generate.request import Request
from app.generate.sampling import Sampling
from app.generate.session import Session
from app.model.load import load_base
from generate.conftest import questions

pytestmark = pytest.mark.gpu

OpenOnGPU = Callable[[str], Session]
PROMPT = [random.Random(0).randrange(300, 1000) for _ in range(45)]


@pytest.fixture(scope="module")
def open_on_gpu(tiny: Callable[[str], Path]) -> OpenOnGPU:
    """A tiny model of the family in NF4 and bfloat16 with two adapters; sliding windows of 24."""

    @cache
    def opened(family_name: str) -> Session:
        family = get_family(family_name)
        folder = str(tiny(family_name))
        model = load_base(folder, family, device=torch.device("cuda"), dtype=torch.bfloat16)
        if family_name in ("mistral", "phi3"):
            model.config.sliding_window = 24
        torch.manual_seed(1)
        lora = LoraConfig(r=6, lora_alpha=6, target_modules=list(family.lora_targets), init_lora_weights=False)
        tuned = get_peft_model(model, lora)
        tuned.add_adapter("other", lora)
        return Session(model=tuned.eval(), tokenizer=load_tokenizer(folder, family), family=family, manifest=None)

    return opened


def scores(forward: Forward, *, chunk: int) -> torch.Tensor:
    """Of the last 13 places of the prompt: its beginning is read, the rest written one by one."""
    ids, wish = PROMPT, Wish(sampling=Sampling(), history=None, draw=0.0)
    for start in range(0, 32, chunk):
        forward.read([Row(slot=1, start=start, ids=ids[start : min(start + chunk, 32)], scored=1)])
    rows = []
    for place in range(32, len(ids)):
        flight = forward.write([Row(slot=1, start=place, ids=[ids[place]], scored=1)], [wish], keep_scores=True)
        assert flight.scores is not None
        rows.append(flight.scores[0].float())
    return torch.stack(rows)


@pytest.mark.parametrize("bits", [16, 8])
def test_scores_are_as_exact_as_those_of_transformers(family: Family, open_on_gpu: OpenOnGPU, bits: int) -> None:
    session = open_on_gpu(family.name)
    fast = Forward(session.model, slots=3, context=128, bits=bits)  # type: ignore[arg-type]
    assert fast.fast, "the fused kernels do not serve this family"
    plain = Forward(session.model, slots=3, context=128, fast=False)
    with torch.inference_mode():
        session.model.set_adapter("default")
        exact = exact_scores(session)
        bfloat16, fused = scores(plain, chunk=32), scores(fast, chunk=20)
    theirs, ours = float((bfloat16 - exact).norm()), float((fused - exact).norm())
    # int8 keys and values are off by up to 0.4 % of their largest element.
    allowed = 1.2 * theirs + (0.02 * float(exact.norm()) if bits == 8 else 0.0)
    print(family.name, bits, f"{ours:.4f} against {theirs:.4f} of {float(exact.norm()):.2f}")
    assert ours <= allowed


def exact_scores(session: Session) -> torch.Tensor:
    """The same places by transformers in float32, weights and adapters unchanged."""
    import copy

    import bitsandbytes as bnb

    model = copy.deepcopy(session.causal_lm)
    for path, module in list(model.named_modules()):
        if isinstance(module, bnb.nn.Linear4bit):
            linear = torch.nn.Linear(module.in_features, module.out_features, bias=False, device="cuda")
            linear.weight.copy_(bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state))
            model.set_submodule(path, linear)
    model.is_quantized = False  # or transformers refuses the cast
    logits: torch.Tensor = model.float()(input_ids=torch.tensor([PROMPT], device="cuda")).logits
    return logits[0, 32:]


def test_a_text_is_the_same_alone_in_any_batch_and_with_drafts(open_on_gpu: OpenOnGPU) -> None:
    session = open_on_gpu("smollm2")
    prompts, options = questions(24)
    alone = Engine(session, slots=1, context=256, speculate=False)
    expected = [alone.generate([ids], option)[0] for ids, option in zip(prompts, options, strict=True)]
    drafts = 0
    for slots, speculate in ((1, True), (3, True), (16, False), (20, True)):
        answers = Engine(session, slots=slots, context=256, speculate=speculate).generate(prompts, options)
        for answer, known in zip(answers, expected, strict=True):
            assert answer.token_ids == known.token_ids
            assert (answer.text, answer.finish_reason) == (known.text, known.finish_reason)
        drafts += sum(answer.drafts[1] for answer in answers)
    assert drafts > 10, "no draft was ever right: the test shows nothing"


def test_joining_leaving_and_cancelling_lose_and_mix_nothing(open_on_gpu: OpenOnGPU) -> None:
    session = open_on_gpu("smollm2")
    prompts, options = questions(12)
    alone = Engine(session, slots=1, context=128, speculate=False)
    expected = [alone.generate([ids], option)[0] for ids, option in zip(prompts, options, strict=True)]
    rng = random.Random(3)
    engine = Engine(session, slots=16, context=128)
    for _ in range(40):
        joining = {which: rng.randrange(6) for which in rng.sample(range(12), rng.randint(3, 12))}
        leaving = {which: joining[which] + rng.randrange(8) for which in joining if rng.random() < 0.25}
        requests: dict[int, Request] = {}
        step = 0
        while step < 7 or engine.busy:
            for which in (w for w, at in joining.items() if at == step):
                requests[which] = engine.submit(prompts[which], options[which])
            for which in (w for w, at in leaving.items() if at == step):
                requests[which].cancel()
            engine.step()
            for which in (w for w, at in leaving.items() if at == step):
                assert requests[which].answer is not None, "a cancelled request outlived its step"
            step += 1
        for which, request in requests.items():
            answer, known = request.answer, expected[which]
            assert answer is not None
            if answer.finish_reason == "cancelled":
                assert known.token_ids[: len(answer.token_ids)] == answer.token_ids
            else:
                assert answer.token_ids == known.token_ids


def test_adapters_may_be_switched_between_requests(open_on_gpu: OpenOnGPU) -> None:
    session = open_on_gpu("mistral")
    engine = Engine(session, slots=2, context=128)
    answers = {}
    for name in ("default", "other", "default"):
        session.model.set_adapter(name)
        answer = engine.generate([PROMPT], Sampling(max_tokens=30))[0]
        assert answers.setdefault(name, answer).token_ids == answer.token_ids
    with session.base():
        answers["base"] = engine.generate([PROMPT], Sampling(max_tokens=30))[0]
        plain = Engine(session, slots=1, context=128, fast=False).generate([PROMPT], Sampling(max_tokens=1))[0]
    assert answers["base"].token_ids[0] == plain.token_ids[0]
    assert len({answer.token_ids for answer in answers.values()}) == 3


def test_logprobs_and_long_prompts(open_on_gpu: OpenOnGPU) -> None:
    session = open_on_gpu("gemma")
    long = [random.Random(5).randrange(300, 1000) for _ in range(1500)]
    options = Sampling(max_tokens=8, logprobs=3)
    fast, plain = (Engine(session, slots=2, context=2048, fast=f).generate([long], options)[0] for f in (True, False))
    assert fast.logprobs is not None and plain.logprobs is not None
    assert fast.logprobs[0].logprob == pytest.approx(plain.logprobs[0].logprob, abs=0.1)
    assert [t.token_id for t in fast.logprobs] == list(fast.token_ids)
