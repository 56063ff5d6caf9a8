"""The general set: what a model knew before, to see what fine-tuning cost.

``general.json`` is shipped with the package and never changes within a version: short passages of public-domain
books and of plain modern prose, and simple instructions with an answer and the words that any right answer holds.
No run is trained on it. Its licence stands in the file.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from app.data.records import Message, prompt
from app.evaluate.metric import Metric, Part
from app.evaluate.samples import Answered


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A text that is read without any template."""

    id: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """A simple question.

    Attributes:
        id: its name.
        question: what is asked.
        answer: a good answer.
        accept: words of which a right answer holds at least one.
    """

    id: str
    question: str
    answer: str
    accept: Sequence[str]

    @property
    def messages(self) -> tuple[Message, ...]:
        """The question with its good answer."""
        return (*prompt(self.question), Message(role="assistant", content=self.answer))

    def passes(self, text: str) -> bool:
        """Whether an answer holds one of the accepted words, as a word, in any case."""
        return any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) for word in self.accept)


@dataclass(frozen=True, kw_only=True)
class GeneralSet:
    """All of ``general.json``."""

    passages: Sequence[Passage]
    instructions: Sequence[Instruction]


@cache
def general_set() -> GeneralSet:
    """The set that is shipped."""
    value = json.loads(files("app.evaluate").joinpath("general.json").read_text("utf-8"))
    return GeneralSet(
        passages=[Passage(id=each["id"], text=each["text"]) for each in value["texts"]],
        instructions=[Instruction(**each) for each in value["instructions"]],
    )


def part(sample: Answered) -> Part:
    """1 if the answer holds what any right answer does; ``reference`` is the instruction's id."""
    instruction = next(each for each in general_set().instructions if each.id == sample.reference)
    return float(instruction.passes(sample.text)), 1.0


GENERAL_PASSED = Metric(
    name="general_passed",
    title="Simple instructions right",
    better="higher",
    unit="share of answers, 0 to 1",
    denominator="instructions of the general set",
    excludes="nothing",
    source="the answer holds a word that any right one does (src/app/evaluate/general.json)",
    part=part,
    binary=True,
)
