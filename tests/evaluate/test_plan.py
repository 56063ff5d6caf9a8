"""What is asked of both models, for conversations of several turns too."""

from dataclasses import replace
from pathlib import Path

import pytest

from app.data.module import SFTDataModule
from app.data.records import Conversation, Message, dump_line
from app.evaluate.heldout import heldout_rows
from app.evaluate.plan import Plan, make_plan
from conftest import TinyCheckpoint


def conversation(number: int, turns: int, words: int) -> Conversation:
    messages = []
    for turn in range(turns):
        messages.append(Message(role="user", content=f"Question {number} turn {turn}?"))
        messages.append(Message(role="assistant", content=f"Answer {number} turn {turn}." + " word" * words))
    return Conversation(id="same", group=f"g{number // 2}", messages=tuple(messages), file="x", line=number)


@pytest.fixture(scope="module")
def module(tiny: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> SFTDataModule:
    """Ten conversations of one and of two turns, two of them too long."""
    folder = tmp_path_factory.mktemp("plan")
    held_out = [conversation(n, 1 + n % 2, 400 if n in (3, 8) else n) for n in range(10)]
    for name, rows in (("train", [conversation(99, 1, 2)]), ("val", []), ("test", held_out)):
        (folder / f"{name}.jsonl").write_text("".join(map(dump_line, rows)))
    made = SFTDataModule(path=str(folder), base=str(tiny("mistral")), family="mistral", max_length=256)
    made.setup("test")
    return made


def plan(module: SFTDataModule, **options: object) -> Plan:
    return make_plan(module, "test", **{"answers": 3, "max_tokens": 9, "general": True, "prompts": [], **options})


def test_rows_are_those_that_fit_would_train_on(module: SFTDataModule) -> None:
    rows = heldout_rows(module, "test")
    assert [row.conversation.line for row in rows] == [0, 1, 2, 4, 5, 6, 7, 9]
    for row in rows:
        text = module.tokenizer.decode(row.encoding.input_ids)
        assert f"Question {row.conversation.line} turn 0?" in text
    found = plan(module)
    assert found.left_out == 2
    assert [row.id for row in found.rows if row.task == "heldout"] == [f"{n}:same" for n in range(8)]


def test_question_pairs_score_the_last_answer_alone(module: SFTDataModule) -> None:
    rows = plan(module).rows
    right = {row.id: row for row in rows if row.task == "right"}
    swapped = {row.id: row for row in rows if row.task == "swapped"}
    assert list(right) == list(swapped) and len(right) == 8
    by_id = {f"{n}:same": row.conversation for n, row in enumerate(heldout_rows(module, "test"))}
    for identity, own in right.items():
        other, said = swapped[identity], by_id[identity].messages[-1].content
        scored = [
            [token for token, trained in zip(row.encoding.input_ids, row.encoding.trained, strict=True) if trained]
            for row in (own, other)
        ]
        assert scored[0] == scored[1]  # the same tokens after another question
        assert module.tokenizer.decode(scored[0]).replace(module.family.stop_tokens[0], "").strip() == said
        assert own.encoding.input_ids != other.encoding.input_ids
        assert f"Question {by_id[identity].line} " not in module.tokenizer.decode(other.encoding.input_ids)


def test_questions_end_before_the_answer(module: SFTDataModule) -> None:
    asked = [each for each in plan(module).questions if each.task == "heldout"]
    assert len(asked) == 3
    for each in asked:
        text = module.tokenizer.decode(each.prompt)
        assert each.messages[-1].content in text and each.reference not in text
        assert each.sampling.max_tokens == 9


def test_another_seed_asks_the_same(module: SFTDataModule) -> None:
    first = plan(module)
    module.seed, before = 43, module.seed
    other = plan(module)
    module.seed = before
    assert other == first


def test_a_long_row_does_not_take_the_place_of_one_that_begins_it(tiny: TinyCheckpoint, tmp_path: Path) -> None:
    short, longer = conversation(1, 1, 1), conversation(1, 2, 1)
    longer = replace(longer, messages=(*longer.messages[:-1], Message(role="assistant", content="word " * 400)))
    for name, rows in (("train", [conversation(99, 1, 2)]), ("val", []), ("test", [longer, short])):
        (tmp_path / f"{name}.jsonl").write_text("".join(map(dump_line, rows)))
    made = SFTDataModule(path=str(tmp_path), base=str(tiny("mistral")), family="mistral", max_length=256)
    made.setup("test")
    assert [row.conversation.messages for row in heldout_rows(made, "test")] == [short.messages]


def test_fingerprints_tell_what_differs(module: SFTDataModule) -> None:
    first = plan(module).fingerprints
    assert plan(module).fingerprints == first
    changed = {
        name for name, value in plan(module, answers=4, general=False).fingerprints.items() if value != first[name]
    }
    assert changed == {"questions", "general"}
