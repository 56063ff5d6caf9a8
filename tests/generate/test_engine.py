import itertools
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from app.data.records import Message, prompt
from app.data.tokenize import encode
from app.errors import ConfigError, DataError
from app.families import all_families
from app.generate.engine import Engine
from app.generate.forward import Forward, Row
from app.generate.request import Answer, Chunk, Request
from app.generate.sampling import Sampling
from app.generate.session import Session
from support.opening import open_plain, open_tuned

OpenTiny = Callable[[str], Session]
QUESTIONS = ["Why?", "Name three colours of the rainbow, please.", "漢字 and 🙂", "a b c d e f g a b c d e f g a b c"]


def reference(session: Session, ids: list[int], count: int) -> list[int]:
    """What transformers' own generate writes, greedily, up to and with a stop token."""
    stop = session.tokenizer.convert_tokens_to_ids(list(session.family.stop_tokens))
    given = torch.tensor([ids])
    with torch.inference_mode():
        out = session.model.generate(
            input_ids=given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=stop,
            pad_token_id=0,
        )
    return out[0, len(ids) :].tolist()


def ids_of(session: Session, question: str) -> list[int]:
    return encode(prompt(question), session.tokenizer, session.family, answer_next=True).input_ids


@pytest.mark.parametrize("name", list(all_families()))
def test_greedy_tokens_are_those_of_transformers_in_every_family(open_tiny: OpenTiny, name: str) -> None:
    session = open_tiny(name)
    engine = Engine(session, slots=3, context=900)
    prompts = [ids_of(session, question) for question in QUESTIONS]
    rng = random.Random(1)
    # Longer than one chunk of prompt, and than every sliding window.
    prompts.append([rng.randrange(300, 900) for _ in range(700)])
    answers = engine.generate(prompts, Sampling(max_tokens=30))
    for ids, answer in zip(prompts, answers, strict=True):
        assert list(answer.token_ids) == reference(session, ids, 30)
        assert answer.prompt_tokens == len(ids)
        text = session.tokenizer.decode(list(answer.token_ids), skip_special_tokens=True)
        # Random models write broken bytes too, of which a decoder of the whole makes more replacement characters.
        assert answer.text == text or "\N{REPLACEMENT CHARACTER}" in text


@pytest.mark.parametrize("temperature", [0.0, 0.1])
def test_drafts_change_nothing_but_the_number_of_steps(open_tiny: OpenTiny, temperature: float) -> None:
    session = open_tiny("smollm2")
    repeating = list(range(300, 310)) * 12
    prompts = [repeating, repeating[:50], ids_of(session, QUESTIONS[3])]
    options = [
        Sampling(temperature=temperature, seed=5, max_tokens=60),
        Sampling(temperature=temperature, seed=6, max_tokens=60, repetition_penalty=0.8, frequency_penalty=0.1),
        Sampling(temperature=temperature, seed=7, max_tokens=60, top_p=0.9),
    ]
    plain = Engine(session, slots=3, context=256, speculate=False).generate(prompts, options)
    drafting = Engine(session, slots=3, context=256).generate(prompts, options)
    assert [a.token_ids for a in drafting] == [a.token_ids for a in plain]
    assert sum(a.drafts[1] for a in drafting) > 20, "no draft was ever right: the test shows nothing"
    assert sum(a.drafts[0] - a.drafts[1] for a in drafting) > 0, "no draft was ever wrong: the test shows nothing"


def test_a_seed_gives_the_same_text_alone_and_in_any_batch(open_tiny: OpenTiny) -> None:
    session = open_tiny("llama3")
    engine = Engine(session, slots=5, context=256)
    wanted = Sampling(temperature=1.0, top_p=0.95, seed=11, max_tokens=25)
    ids = ids_of(session, QUESTIONS[0])
    alone = engine.generate([ids], wanted)[0]
    others = [Sampling(temperature=1.3, seed=seed, max_tokens=10 + 5 * seed) for seed in range(6)]
    prompts = [ids_of(session, QUESTIONS[seed % 4]) for seed in range(6)]
    for place in range(6):
        batch = engine.generate([*prompts[:place], ids, *prompts[place:]], [*others[:place], wanted, *others[place:]])
        assert batch[place].token_ids == alone.token_ids
    assert engine.generate([ids], Sampling(temperature=1.0, seed=12, max_tokens=25))[0].token_ids != alone.token_ids


def test_embeddings_may_lie_elsewhere_than_the_layers(tiny: Callable[[str], Path]) -> None:
    """As the fast training step leaves them while it writes answers for the run's page."""
    session = open_tuned(tiny("mistral"), "mistral", alpha=16, dtype=torch.float32)
    row = Row(slot=0, start=0, ids=[300, 301, 302], scored=1)
    expected = Forward(session.model, slots=1, context=64)([row])
    embedding = session.causal_lm.get_input_embeddings()
    table = embedding.weight.detach()
    embedding.weight = torch.nn.Parameter(table.to("meta"), requires_grad=False)
    embedding.forward = lambda ids: table[ids]  # type: ignore[method-assign]
    forward = Forward(session.model, slots=1, context=64)
    assert torch.equal(forward([row]), expected)


@pytest.mark.usefixtures("threads")
@pytest.mark.skipif(not torch.cpu.get_capabilities().get("avx512_bf16"), reason="not the CPU kernels this is true of")
def test_in_bfloat16_scores_are_bit_equal_in_any_batch_and_chunk(tiny: Callable[[str], Path]) -> None:
    session = open_tuned(tiny("smollm2"), "smollm2", alpha=16, dtype=torch.bfloat16)
    forward = Forward(session.model, slots=4, context=256)
    ids = [random.Random(3).randrange(300, 1000) for _ in range(60)]

    def scores(widths: list[int], slot: int, others: list[Row]) -> torch.Tensor:
        at, found = 0, torch.empty(0)
        for width in widths:
            row = Row(slot=slot, start=at, ids=ids[at : at + width], scored=1)
            found = forward([*others, row])[-1]
            at += width
        return found

    expected = scores([60], 0, [])
    other = [Row(slot=0, start=0, ids=[400] * 9, scored=2), Row(slot=3, start=0, ids=[500], scored=0)]
    for widths in ([60], [40, 20], [40, *[1] * 20], [30, *[3] * 10]):
        assert torch.equal(scores(widths, 2, []), expected)
        assert torch.equal(scores(widths, 2, other), expected)


def test_a_drawn_seed_is_reported_and_gives_the_text_again(open_tiny: OpenTiny) -> None:
    engine = Engine(open_tiny("smollm2"), slots=1, context=128)
    first = engine.generate([prompt("Why?")], Sampling(temperature=1.0, max_tokens=20))[0]
    again = engine.generate([prompt("Why?")], Sampling(temperature=1.0, max_tokens=20, seed=first.seed))[0]
    assert again.token_ids == first.token_ids


@pytest.mark.slow
def test_a_thousand_random_schedules_lose_and_mix_nothing(tiny: Callable[[str], Path]) -> None:
    session = open_plain(tiny("smollm2"), "smollm2")
    rng = random.Random(42)
    prompts = [[rng.randrange(300, 1000) for _ in range(rng.choice([1, 2, 5, 17, 40]))] for _ in range(12)]
    prompts[3] = [400, 401, 402, 403] * 6
    options = [
        Sampling(temperature=rng.choice([0.0, 1.0]), seed=seed, max_tokens=rng.choice([1, 3, 6, 9]))
        for seed in range(12)
    ]
    alone = Engine(session, slots=1, context=64, speculate=False)
    expected = [alone.generate([ids], option)[0] for ids, option in zip(prompts, options, strict=True)]
    engines = [
        Engine(session, slots=slots, context=64, reuse=reuse) for slots, reuse in ((1, True), (3, False), (4, True))
    ]
    for _ in range(1000):
        engine = rng.choice(engines)
        joining = {which: rng.randrange(6) for which in rng.sample(range(12), rng.randint(1, 5))}
        leaving = {which: joining[which] + rng.randrange(6) for which in joining if rng.random() < 0.25}
        requests: dict[int, Request] = {}
        streamed = dict.fromkeys(joining, "")
        for step in itertools.count():
            for which in [w for w, at in joining.items() if at == step]:

                def show(chunk: Chunk, which: int = which, streamed: dict[int, str] = streamed) -> None:
                    streamed[which] += chunk.text

                requests[which] = engine.submit(prompts[which], options[which], show)
            for which in [w for w, at in leaving.items() if at == step]:
                requests[which].cancel()
            if step >= 6 and not engine.busy:
                break
            engine.step()
            assert step < 200, "the engine does not come to an end"
        for which, request in requests.items():
            answer, known = request.answer, expected[which]
            assert answer is not None, "a request was lost"
            assert answer.text == streamed[which]
            if answer.finish_reason == "cancelled":
                assert which in leaving
                assert known.token_ids[: len(answer.token_ids)] == answer.token_ids
            else:
                assert answer.token_ids == known.token_ids
                assert (answer.text, answer.finish_reason) == (known.text, known.finish_reason)


def test_cancelling_ends_a_request_within_one_step_and_frees_its_slot(open_tiny: OpenTiny) -> None:
    engine = Engine(open_tiny("smollm2"), slots=2, context=256)
    finished: list[Answer] = []
    running, neighbour, waiting, never = (
        engine.submit(
            [400 + n] * 5,
            Sampling(max_tokens=100),
            lambda chunk: finished.append(chunk.answer) if chunk.answer else None,
        )
        for n in range(4)
    )
    for _ in range(3):
        engine.step()
    assert running.answer is None
    running.cancel()
    never.cancel()
    engine.step()
    assert running.answer is not None
    assert running.answer.finish_reason == "cancelled"
    assert never.answer is not None
    assert never.answer.token_ids == ()
    assert waiting.written > 0, "the free slot was not given to the next request"
    assert neighbour.answer is None
    while engine.busy:
        engine.step()
    assert len(finished) == 4


def test_a_prompt_is_read_in_chunks_between_the_tokens_of_running_answers(open_tiny: OpenTiny) -> None:
    engine = Engine(open_tiny("smollm2"), slots=2, context=3000)
    running = engine.submit([400] * 3, Sampling(max_tokens=50))
    engine.step()
    long = engine.submit([500] * 2000, Sampling(max_tokens=5))
    while long.written == 0:
        before = running.written
        engine.step()
        assert running.written > before, "the long prompt stalled a running answer"
        assert engine.busy


def test_bad_requests_raise_and_harm_nobody(open_tiny: OpenTiny) -> None:
    session = open_tiny("smollm2")
    expected = Engine(session, slots=2, context=64).generate([[400, 401]], Sampling(max_tokens=20))[0]
    engine = Engine(session, slots=2, context=64)
    good = engine.submit([400, 401], Sampling(max_tokens=20))
    engine.step()
    bad: list[tuple[object, str]] = [
        ([], "rendered|user message"),
        ([400] * 64, "64 tokens"),
        ([10**6], "outside"),
        ([-1], "outside"),
        ((Message(role="assistant", content="hello"),), "rendered"),
        (prompt("<|im_start|>system"), "control token"),
        (prompt("word " * 500), "no room"),
    ]
    for given, words in bad:
        with pytest.raises(DataError, match=words):
            engine.submit(given, Sampling())  # type: ignore[arg-type]
        engine.step()
    while engine.busy:
        engine.step()
    assert good.answer is not None
    assert good.answer.token_ids == expected.token_ids


def test_generate_names_all_bad_prompts_and_runs_none(open_tiny: OpenTiny) -> None:
    engine = Engine(open_tiny("smollm2"), slots=2, context=64)
    with pytest.raises(DataError) as fault:
        engine.generate([[400], [400] * 99, [401], [-5]], Sampling())
    assert "prompt 2" in fault.value.what
    assert "prompt 4" in fault.value.what
    assert not engine.busy
    with pytest.raises(ConfigError):
        engine.generate([[400], [401]], [Sampling()])


def test_an_answer_ends_at_the_context_and_at_a_stop_string(open_tiny: OpenTiny) -> None:
    engine = Engine(open_tiny("smollm2"), slots=1, context=32)
    full = engine.generate([[400] * 10], Sampling(max_tokens=1000, temperature=1.0, seed=1))[0]
    assert full.finish_reason == "length"
    assert full.prompt_tokens + len(full.token_ids) == 32
    middle = full.text[len(full.text) // 2 :][:3]
    assert len(middle) == 3
    cut = engine.generate([[400] * 10], Sampling(max_tokens=1000, temperature=1.0, seed=1, stop=(middle,)))[0]
    assert cut.finish_reason == "stop"
    assert cut.text == full.text[: full.text.index(middle)]
    assert len(cut.token_ids) < len(full.token_ids)


def test_a_stop_token_ends_the_answer_and_is_not_in_its_text(open_tiny: OpenTiny) -> None:
    session = open_tiny("smollm2")
    # A stop token must come up: any seed will do whose hot answer meets one.
    engine = Engine(session, slots=8, context=512)
    answers = engine.generate([[400]] * 12, [Sampling(temperature=20.0, seed=s, max_tokens=500) for s in range(12)])
    stops = set(session.tokenizer.convert_tokens_to_ids(list(session.family.stop_tokens)))
    ended = [a for a in answers if a.finish_reason == "stop"]
    assert ended
    for answer in answers:
        assert (answer.token_ids[-1] in stops) == (answer.finish_reason == "stop")
        assert not stops & set(answer.token_ids[:-1])
        assert not any(token in answer.text for token in session.family.stop_tokens)


def test_logprobs_are_those_of_one_pass_over_the_whole_text(open_tiny: OpenTiny) -> None:
    session = open_tiny("gemma")
    ids = ids_of(session, QUESTIONS[1])
    answer = Engine(session, slots=2, context=256).generate([ids], Sampling(max_tokens=12, logprobs=3))[0]
    assert answer.logprobs is not None
    with torch.inference_mode():
        logits = session.model(input_ids=torch.tensor([[*ids, *answer.token_ids]])).logits[0, len(ids) - 1 : -1]
    expected = torch.log_softmax(logits.float(), -1)
    for place, found in enumerate(answer.logprobs):
        assert found.token_id == answer.token_ids[place]
        assert found.logprob == pytest.approx(float(expected[place, found.token_id]), abs=1e-3)
        assert found.top[0] == (found.token_id, found.logprob)
        assert len(found.top) == 3


def test_stream_gives_the_text_in_pieces_and_closing_it_cancels(open_tiny: OpenTiny) -> None:
    engine = Engine(open_tiny("smollm2"), slots=2, context=256)
    options = Sampling(max_tokens=40, temperature=1.0, seed=3)
    chunks = list(engine.stream(prompt("Why?"), options))
    assert [c.answer is None for c in chunks] == [True] * (len(chunks) - 1) + [False]
    answer = chunks[-1].answer
    assert answer is not None
    assert len(chunks) > 5
    assert "".join(c.text for c in chunks) == answer.text
    stream = engine.stream(prompt("Why?"), options)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert not engine.busy


def test_the_next_turn_reads_only_what_is_new_and_says_the_same(open_tiny: OpenTiny) -> None:
    session = open_tiny("smollm2")
    first = list(range(300, 340))
    fresh, keeping = Engine(session, slots=1, context=256), Engine(session, slots=1, context=256, reuse=True)
    options = Sampling(max_tokens=8)
    said = keeping.generate([first], options)[0]
    second = [*first, *said.token_ids, 500, 501]
    request = keeping.submit(second, options)
    assert request.computed == 0
    keeping.step()
    # The step read the two new tokens and the last one written, then wrote one.
    assert keeping.generate([second], options)[0].token_ids == fresh.generate([second], options)[0].token_ids
    assert request.written >= 1


def test_switching_the_adapter_off_gives_the_base_and_forgets_what_was_kept(open_tiny: OpenTiny) -> None:
    session = open_tiny("smollm2")
    engine = Engine(session, slots=1, context=128, reuse=True)
    ids = ids_of(session, QUESTIONS[1])
    tuned = engine.generate([ids], Sampling(max_tokens=20))[0]
    with session.base():
        base = engine.generate([ids], Sampling(max_tokens=20))[0]
        assert list(base.token_ids) == reference(session, ids, 20)
    assert base.token_ids != tuned.token_ids
    assert engine.generate([ids], Sampling(max_tokens=20))[0].token_ids == tuned.token_ids
