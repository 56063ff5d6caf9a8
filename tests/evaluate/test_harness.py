"""lm-evaluation-harness on a session, with local tasks and data. Left out where it is not installed."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from app.__main__ import main
from app.artifact import RunDirectory
from app.errors import ConfigError
from app.generate.engine import Engine
from app.generate.sampling import Sampling
from app.generate.session import Session
from conftest import TinyCheckpoint
from support.opening import open_plain

pytest.importorskip("lm_eval", reason="needs the extra lm-eval")

from lm_eval.models.huggingface import HFLM

from app.evaluate.harness import SessionLM, evaluate_tasks, result_rows

FAMILIES = ("smollm2", "mistral")  # without and with BOS


def asked(*arguments: object) -> list[SimpleNamespace]:
    return [SimpleNamespace(args=each) for each in arguments]


@pytest.fixture(scope="module", params=FAMILIES)
def session(request: pytest.FixtureRequest, tiny: TinyCheckpoint) -> Session:
    return open_plain(tiny(request.param), request.param)


def by_hand(session: Session, before: list[int], wanted: list[int]) -> tuple[float, bool]:
    """From the whole logits of one row."""
    ids = torch.tensor([[*before, *wanted]])
    with torch.no_grad():
        logits = session.causal_lm(input_ids=ids).logits[0, len(before) - 1 : -1].float()
    chosen = torch.log_softmax(logits, -1).gather(-1, torch.tensor(wanted)[:, None])
    return float(chosen.sum()), logits.argmax(-1).tolist() == wanted


def plain(session: Session, text: str) -> list[int]:
    return session.tokenizer(text, add_special_tokens=False)["input_ids"]


def start(session: Session) -> list[int]:
    bos = session.family.chat.bos
    return [session.tokenizer.convert_tokens_to_ids(bos)] if bos else []


def test_loglikelihood_is_that_of_the_whole_logits(session: Session) -> None:
    model = SessionLM(session, batch_size=2)
    pairs = [("The quick brown", " fox jumps"), ("A question? ", "Yes"), ("One", " two three four five six")]
    found = model.loglikelihood(asked(*pairs))
    for (context, continuation), (likelihood, greedy) in zip(pairs, found, strict=True):
        whole = [*start(session), *plain(session, context + continuation)]
        before = [*start(session), *plain(session, context.rstrip())]
        expected = by_hand(session, whole[: len(before)], whole[len(before) :])
        assert likelihood == pytest.approx(expected[0], rel=1e-4)
        assert greedy == expected[1]


def test_likelihoods_are_those_of_the_harness_own_model(session: Session) -> None:
    own = HFLM(
        pretrained=session.causal_lm, tokenizer=session.tokenizer, batch_size=2, add_bos_token=bool(start(session))
    )
    ours = SessionLM(session, batch_size=2)
    pairs = asked(("The quick brown", " fox jumps"), ("A question? ", "Yes"), ("One two", " three four five six"))
    for mine, theirs in zip(ours.loglikelihood(pairs), own.loglikelihood(pairs, disable_tqdm=True), strict=True):
        assert mine[0] == pytest.approx(theirs[0], rel=1e-4)
        assert mine[1] == theirs[1]
    texts = asked(("She sells sea shells by the sea shore.",), ("One.",))
    if not start(session):  # where there is a BOS, the harness's own model reads and counts it twice
        theirs = own.loglikelihood_rolling(texts, disable_tqdm=True)
        assert ours.loglikelihood_rolling(texts) == pytest.approx(theirs, rel=1e-4)


def test_an_empty_context_and_a_greedy_continuation(session: Session) -> None:
    model = SessionLM(session, batch_size=4)
    prefix = [session.tokenizer.bos_token_id]
    ((likelihood, _),) = model.loglikelihood(asked(("", "Hello there")))
    assert likelihood == pytest.approx(by_hand(session, prefix, plain(session, "Hello there"))[0], rel=1e-4)
    assert model.loglikelihood([]) == []


def test_rolling_likelihood_predicts_each_token_once(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "She sells sea shells by the sea shore, and the shells she sells are sea shells for sure. " * 2
    ids = plain(session, text)
    prefix = [session.tokenizer.bos_token_id]
    model = SessionLM(session, batch_size=4)
    (whole,) = model.loglikelihood_rolling(asked((text,)))
    assert whole == pytest.approx(by_hand(session, prefix, ids)[0], rel=1e-4)
    monkeypatch.setattr(model, "_limit", 17)  # a model of 17 positions: windows of 16 tokens after one of context
    (windowed,) = model.loglikelihood_rolling(asked((text,)))
    expected, before = 0.0, prefix
    for at in range(0, len(ids), 16):
        part = ids[at : at + 16]
        filler = ids[max(0, at - 1 - (16 - len(part))) : at] if at else before
        expected += by_hand(session, filler, part)[0]
    assert windowed == pytest.approx(expected, rel=1e-4)


def test_generation_is_the_engines_and_stops_at_texts(session: Session) -> None:
    model = SessionLM(session, batch_size=2)
    prompt = [*start(session), *plain(session, "Once upon a time")] or [0]
    (answer,) = Engine(session, slots=1, context=64).generate([prompt], Sampling(max_tokens=10))
    options = {"until": [], "max_gen_toks": 10, "do_sample": False}
    assert model.generate_until(asked(("Once upon a time", options))) == [answer.text]
    stop = answer.text[3:5]
    (cut,) = model.generate_until(asked(("Once upon a time", {**options, "until": [stop]})))
    assert cut == answer.text[: answer.text.index(stop)]
    assert model.generate_until([]) == []


def test_chat_format_is_the_familys(session: Session) -> None:
    model = SessionLM(session, batch_size=1)
    text = model.apply_chat_template([{"role": "user", "content": "Hi"}])
    assert text.endswith(session.family.chat.answer_open) and "Hi" in text
    begun = model.apply_chat_template(
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well"}], add_generation_prompt=False
    )
    assert begun.endswith("Well")
    assert model.chat_template(True) == session.family.chat.jinja()
    ids = model._encode(text)
    assert ids[: len(start(session))] == start(session)
    assert ids[1:].count(ids[0]) == 0 or not start(session)  # BOS once


def test_local_tasks_run_on_base_and_run(
    trained: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = "A sum adds one number to another."
    rows = [
        {"question": f"What is {n} plus {n * 3}?", "choices": [sentence, " ".join(reversed(sentence.split()))]}
        for n in range(6)
    ]
    data = tmp_path / "sums.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
    (tmp_path / "choose.yaml").write_text(
        "task: local_choose\noutput_type: multiple_choice\n" + common + 'doc_to_text: "{{question}}"\n'
        'doc_to_choice: "{{choices}}"\ndoc_to_target: 0\n'
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    (tmp_path / "write.yaml").write_text(
        "task: local_write\noutput_type: generate_until\n" + common + 'doc_to_text: "{{question}}"\n'
        'doc_to_target: "{{choices[0]}}"\ngeneration_kwargs: {until: ["."], max_gen_toks: 6}\n'
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    )
    tasks = ["--lm-eval", "local_choose", "local_write", "--lm_eval_tasks", str(tmp_path), "--lm_eval_limit", "5"]
    assert main(["evaluate", "--run", str(trained.path), *tasks, "--device", "cpu"]) == 0
    assert "local_choose" in capsys.readouterr().out
    found = json.loads((trained.reports / "lm-eval.json").read_text())
    by_task = {row["task"]: row for row in found["results"]}
    assert set(by_task) == {"local_choose", "local_write"}
    assert by_task["local_choose"]["metric"] == "acc"
    assert by_task["local_choose"]["tuned"] == 1.0  # the run was trained on this sentence, not on its words in reverse
    assert 0 <= by_task["local_write"]["tuned"] <= 1
    with pytest.raises(ConfigError, match="did you mean local_choose"):
        evaluate_tasks(trained.path, ["local_chose"], folder=tmp_path, device="cpu")


def test_rows_of_results() -> None:
    values = {"alias": "x", "acc,none": 0.5, "acc_stderr,none": 0.1, "em,strict": 1, "em_stderr,strict": "N/A"}
    rows = result_rows({"base": {"t": values}, "tuned": {"t": {**values, "acc,none": 0.75}}})
    assert rows[0] == {
        "task": "t", "metric": "acc", "base": 0.5, "base_stderr": 0.1, "tuned": 0.75, "tuned_stderr": 0.1
    }  # fmt: skip
    assert (rows[1]["metric"], rows[1]["base_stderr"]) == ("em,strict", None)
