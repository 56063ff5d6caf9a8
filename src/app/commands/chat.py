"""``python -m app chat``: talk to a run or to a base model, in the terminal or from a script."""

import dataclasses
import json as jsonlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from app.commands import run_command
from app.commands.chat_input import home_expanded, on_interrupt, only_utf8
from app.commands.source import check_source, open_source
from app.errors import ConfigError, DataError
from app.terminal import is_quiet

if TYPE_CHECKING:
    from app.generate.engine import Engine
    from app.generate.request import Chunk
    from app.generate.sampling import Sampling

HISTORY = Path("~/.app_chat_history")


def main(argv: Sequence[str]) -> int:
    try:
        return run_command(chat, argv, name="chat", stays="answers")
    except BrokenPipeError:
        # Whoever read the answer has left, as `head` does: a shell's status for that, and nowhere for the rest to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def chat(
    run: Path | None = None,
    base: str | None = None,
    family: str | None = None,
    prompt: str | None = None,
    json: bool = False,
    system: str = "",
    temperature: float = 0.7,
    top_p: float = 0.9,
    max_tokens: int = 512,
    seed: int | None = None,
    context: int | None = None,
    cache_bits: Literal[16, 8] = 16,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    history: Path = HISTORY,
) -> int:
    """Talk to a fine-tuned run, or to a base model.

    In a terminal this is a conversation (/help lists its commands). With --prompt, or when standard input is not a
    terminal, one question is answered and the text goes to standard output.

    Args:
        run: directory that `fit` wrote.
        base: instead of a run, a base model: hub id or local folder; needs --family.
        family: the base model's family.
        prompt: answer this one question and leave; "-" reads it from standard input.
        json: with --prompt: one JSON object with the text, why it ended, token counts, seed and speed.
        system: system text; empty: the family's default.
        temperature: 0 always takes the most likely token.
        top_p: choose among the most likely tokens that together have this probability.
        max_tokens: the most tokens of an answer.
        seed: of the random choices; without it every answer draws its own.
        context: tokens of the whole conversation; by default what model and memory allow.
        cache_bits: 8 keeps the conversation's keys and values in int8: twice the context in the same memory.
        device: where the model runs.
        history: file that keeps the typed lines.
    """
    check_source(run, base, family, command="chat")
    with only_utf8("--system"):
        system.encode()
    question = _one_question(prompt)
    if json and question is None:
        raise ConfigError("--json needs a question", where="--json", remedy='add --prompt "…", or pipe it in')
    if question is None:
        history = home_expanded(history, where="--history")
    from app.generate.sampling import Sampling

    sampling = Sampling(temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed)
    if sys.stderr.isatty() and question is None and not is_quiet():
        print("loading …", file=sys.stderr)  # The imports alone take seconds; then a bar shows.
    from app.generate.engine import Engine

    session = open_source(run, base, family, device=device)
    engine = Engine(session, slots=1, context=context, reuse=True, cache_bits=cache_bits)
    if question is not None:
        return _answer_once(engine, question, system, sampling, json=json)
    from app.commands.chat_terminal import Terminal

    return Terminal(session, engine, sampling, system=system, history=history).run()


def _one_question(prompt: str | None) -> str | None:
    """The single question to answer, or None for a conversation in the terminal."""
    piped = prompt == "-" or (prompt is None and not sys.stdin.isatty())
    with only_utf8("standard input" if piped else "--prompt"):
        prompt = sys.stdin.read() if piped else prompt
        (prompt or "").encode()
    if prompt is not None and not prompt.strip():
        raise DataError("the question is empty", where="--prompt", remedy="give some text")
    return prompt


def _answer_once(engine: "Engine", question: str, system: str, sampling: "Sampling", *, json: bool) -> int:
    from app.data.records import prompt

    def show(chunk: "Chunk") -> None:
        if not json:
            print(chunk.text, end="", flush=True)

    request = engine.submit(prompt(question, system=system or None), sampling, show)
    with on_interrupt(request.cancel):
        while request.answer is None:
            engine.step()
    answer = request.answer
    if json:
        fields = dataclasses.asdict(answer)
        tokens = len(fields.pop("token_ids"))
        del fields["logprobs"]
        print(jsonlib.dumps({**fields, "tokens": tokens}, ensure_ascii=False), flush=True)
    else:
        print(flush=True)
    return 130 if answer.finish_reason == "cancelled" else 0
