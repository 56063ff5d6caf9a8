"""An adapter that was trained on shuffled answers: the gate fails, and the report says why."""

import json
import random
from pathlib import Path

import pytest

from app.__main__ import main
from app.data.records import Conversation, Message, dump_line
from support.fitting import arguments, fit

CAPITALS = dict(
    pair.split(":")
    for pair in (
        "France:Paris Italy:Rome Spain:Madrid Germany:Berlin Japan:Tokyo China:Beijing Russia:Moscow Egypt:Cairo "
        "Greece:Athens Austria:Vienna Poland:Warsaw Portugal:Lisbon Ireland:Dublin Norway:Oslo Sweden:Stockholm "
        "Finland:Helsinki Denmark:Copenhagen Hungary:Budapest Belgium:Brussels Turkey:Ankara Iran:Tehran Iraq:Baghdad "
        "Cuba:Havana Peru:Lima Chile:Santiago Canada:Ottawa Kenya:Nairobi Thailand:Bangkok Vietnam:Hanoi "
        "Australia:Canberra Argentina:Buenos_Aires Colombia:Bogota Venezuela:Caracas Ecuador:Quito Uruguay:Montevideo "
        "Bulgaria:Sofia Romania:Bucharest Serbia:Belgrade Croatia:Zagreb Ukraine:Kiev Syria:Damascus Lebanon:Beirut "
        "Jordan:Amman Pakistan:Islamabad Nepal:Kathmandu Indonesia:Jakarta Philippines:Manila Ghana:Accra "
        "Ethiopia:Addis_Ababa Morocco:Rabat Tunisia:Tunis Libya:Tripoli Sudan:Khartoum Mongolia:Ulaanbaatar"
    )
    .replace("_", "\N{NO-BREAK SPACE}")
    .split(" ")
)
HELD_OUT = 16


def write(path: Path, pairs: list[tuple[str, str]]) -> None:
    path.write_text(
        "".join(
            dump_line(
                Conversation(
                    id=country,
                    group=country,
                    messages=(
                        Message(role="user", content=f"What is the capital of {country}?"),
                        Message(role="assistant", content=f"The capital of {country} is {capital}."),
                    ),
                    file="capitals.csv",
                    line=number,
                )
            )
            for number, (country, capital) in enumerate(pairs, start=1)
        ),
        encoding="utf-8",
    )


@pytest.mark.slow
def test_shuffled_answers_fail_the_gate_and_the_report_says_why(
    smollm2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [(country, capital.replace("\N{NO-BREAK SPACE}", " ")) for country, capital in CAPITALS.items()]
    train, held_out = pairs[HELD_OUT:], pairs[:HELD_OUT]
    data = tmp_path / "data"
    data.mkdir()
    write(data / "test.jsonl", held_out)
    write(data / "val.jsonl", held_out[:4])
    write(data / "train.jsonl", train)
    # Whole answers are dealt out anew: "What is the capital of Peru?" is answered with the capital of Kenya.
    lines = [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()]
    answers = [line["messages"][1] for line in lines]
    random.Random(5).shuffle(answers)
    for line, answer in zip(lines, answers, strict=True):
        line["messages"][1] = answer
    (data / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = tmp_path / "run"
    fit(
        *arguments(
            smollm2, data, run, model__family="smollm2", model__lr=1e-3, model__gradient_checkpointing="false",
            data__batch_size=8, trainer__accumulate_grad_batches=1, trainer__max_epochs=3, validate_every=50,
            checkpoints__every=50,
        )
    )  # fmt: skip
    quick = ("--general", "false", "--prompts", "none", "--answers", "4", "--max_tokens", "12", "--device", "cpu")
    capsys.readouterr()
    assert main(["evaluate", "--run", str(run), *quick, "--fail-if", "question_use<1"]) == 1
    shown = capsys.readouterr().out
    assert "failed: question_use<1" in shown
    report = json.loads((run / "reports" / "report.json").read_text())
    use = next(metric for metric in report["metrics"] if metric["name"] == "question_use")
    assert use["verdict"] == "worse"
    assert use["base"]["value"] > 2 * use["tuned"]["value"]
    assert report["headline"]["level"] == "bad"
    page = (run / "reports" / "report.html").read_text()
    assert "It heeds the question less than its base" in page
    assert "do answers and questions belong together" in page.casefold()
