"""The conversation of ``python -m app chat`` in the terminal: typed lines, commands, streamed Markdown."""

import dataclasses
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.panel import Panel
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from app.commands.chat_input import home_expanded, line_history, on_interrupt, only_utf8, parse_parameter, read_input
from app.data.records import Message
from app.errors import AppError, ConfigError, DataError
from app.generate.dialogue import Dialogue
from app.generate.engine import Engine
from app.generate.request import Answer, Chunk, Request
from app.generate.sampling import Sampling
from app.generate.session import Session

HELP = """\
/help                     this list
/system [TEXT]            set the system text (without TEXT: show it); starts over
/reset                    forget the conversation
/undo                     take back the last turn
/retry                    answer the last question again, with a new seed
/compare [QUESTION]       base and tuned side by side (default: the last question); not part of the conversation
/params [NAME=VALUE …]    show or set: temperature top_k top_p min_p repetition_penalty frequency_penalty
                          presence_penalty seed max_tokens stop (seed=none draws one, stop='["END"]')
/save FILE, /load FILE    the conversation as one line of JSONL
/exit                     leave (also ctrl-D, or ctrl-C twice)
A line that ends in \\ goes on in the next one; \"\"\" begins and ends a block of lines. ctrl-C stops an answer."""


class Terminal:
    """The conversation in the terminal."""

    def __init__(self, session: Session, engine: Engine, sampling: Sampling, *, system: str, history: Path) -> None:
        self._session = session
        self._engine = engine
        self._sampling = sampling
        self._dialogue = Dialogue(system)
        self._history = history
        self._console = Console()
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: self._console.print(HELP, markup=False, highlight=False),
            "/system": self._set_system,
            "/reset": self._reset,
            "/undo": self._undo,
            "/retry": self._retry,
            "/compare": self._compare,
            "/params": self._set_params,
            "/save": self._save,
            "/load": self._load,
        }

    def run(self) -> int:
        """Reads and answers until the user leaves; returns the exit status."""
        with line_history(self._history):
            base = self._session.model.config._name_or_path
            self._note(f"{self._session.family.title} ({base}), context {self._engine.context} tokens; /help for help")
            interrupted = False
            while True:
                try:
                    with only_utf8("the line typed"):
                        text = read_input()
                        text.encode()
                except DataError as fault:
                    self._complain(fault)
                    continue
                except KeyboardInterrupt:
                    if interrupted:
                        break
                    interrupted = True
                    self._console.print()
                    self._note("ctrl-C again, ctrl-D or /exit leaves")
                    continue
                except EOFError:
                    break
                interrupted = False
                if text.strip() == "/exit":
                    return 0
                if text.strip():
                    self._handle(text.strip())
        self._console.print()
        return 0

    def _handle(self, text: str) -> None:
        """One input: a command or a question. A fault of the user's is shown, and the chat goes on."""
        name, _, rest = text.partition(" ")
        try:
            if name in self._commands:
                self._commands[name](rest.strip())
            elif name.startswith("/") and "/" not in name[1:]:
                raise ConfigError(f"there is no command {name}", remedy="/help lists them")
            else:
                self._ask(self._dialogue.copy(), text, self._sampling)
        except AppError as fault:
            self._complain(fault)

    def _ask(self, dialogue: Dialogue, question: str, sampling: Sampling) -> None:
        """Answers in ``dialogue``, a copy that becomes the conversation once there is an answer."""
        messages = self._fitted(dialogue, question, sampling)
        (answer,) = self._stream(messages, sampling, [nullcontext()])
        if answer.text or answer.finish_reason != "cancelled":
            dialogue.turns.append((question, answer.text))
            self._dialogue = dialogue

    def _fitted(self, dialogue: Dialogue, question: str, sampling: Sampling) -> tuple[Message, ...]:
        """What is sent for a question: the turns for which the context has room, and it."""
        engine = self._engine
        # A question too long even by itself is refused before a note says which turns are left out for it.
        engine.encode(Dialogue(dialogue.system).messages(question))
        # Room is kept for the answer, but never more than half of the context.
        room = engine.context - min(sampling.max_tokens, engine.context // 2)
        dropped = dialogue.fit(question, engine.count, room)
        if dropped:
            self._note(f"the context of {engine.context} tokens is full: without the oldest {_count(dropped, 'turn')}")
        return dialogue.messages(question)

    def _stream(
        self,
        messages: Sequence[Message],
        sampling: Sampling,
        sides: Sequence[AbstractContextManager[None]],
        titles: Sequence[str] = (),
    ) -> list[Answer]:
        """Answers once under each of ``sides`` (contexts that switch the adapter), showing text as it comes."""
        texts = [""] * len(sides)
        answers: list[Answer] = []
        statuses: list[str] = []
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            for place, side in enumerate(sides):
                shown = 0.0

                def show(chunk: Chunk, place: int = place) -> None:
                    texts[place] += chunk.text

                with side:
                    request = self._engine.submit(messages, sampling, show)
                    with on_interrupt(request.cancel):
                        while request.answer is None:
                            self._engine.step()
                            # Laying out Markdown costs milliseconds: ten times a second is enough for the eye.
                            if time.perf_counter() - shown > 0.1:
                                shown = time.perf_counter()
                                live.update(_Tail(_layout(texts, titles), self._status(request)), refresh=True)
                answers.append(request.answer)
                statuses.append(self._status(request))
                if request.answer.finish_reason == "cancelled":
                    break
        self._console.print(_layout(texts, titles))
        self._note(" | ".join(statuses))
        return answers

    def _status(self, request: Request) -> str:
        context = self._engine.context
        ending = {"length": " · cut at max_tokens or the context's end", "cancelled": " · stopped"}
        reason = request.answer.finish_reason if request.answer is not None else ""
        return (
            f"{_count(request.written, 'token')} · {request.tokens_per_second:.1f} tokens/s · "
            f"context {request.used}/{context} ({request.used / context:.0%}){ending.get(reason, '')}"
        )

    def _set_system(self, text: str) -> None:
        if not text:
            return self._note(f"system: {self._dialogue.system or '(the default of the family)'}")
        self._dialogue.system = text
        return self._reset("")

    def _reset(self, _: str) -> None:
        self._dialogue.turns.clear()
        self._note("a new conversation")

    def _undo(self, _: str) -> None:
        self._note(f"took back: {self._dialogue.undo()}")

    def _retry(self, _: str) -> None:
        dialogue = self._dialogue.copy()
        self._ask(dialogue, dialogue.undo(), dataclasses.replace(self._sampling, seed=None))

    def _compare(self, question: str) -> None:
        if not self._engine.adapters:
            raise ConfigError("there is no adapter to compare with the base", remedy="open a run with --run")
        dialogue = self._dialogue.copy()
        if not question and not dialogue.turns:
            raise DataError("there is no question to compare", remedy="/compare QUESTION")
        messages = self._fitted(dialogue, question or dialogue.undo(), self._sampling)
        sides: list[AbstractContextManager[None]] = [self._session.base(), nullcontext()]
        self._stream(messages, self._sampling, sides, ["base", "tuned"])

    def _set_params(self, text: str) -> None:
        try:
            parts = shlex.split(text)
        except ValueError as fault:
            raise ConfigError(f"{text!r}: {fault}", where="/params", remedy="close the quotation mark") from fault
        changes = dict(map(parse_parameter, parts))
        self._sampling = dataclasses.replace(self._sampling, **changes)
        shown = {k: v for k, v in dataclasses.asdict(self._sampling).items() if k not in ("logprobs", "ignore_stop")}
        self._note(" ".join(f"{name}={value}" for name, value in shown.items()))

    def _save(self, name: str) -> None:
        path = _file(name, where="/save")
        self._dialogue.save(path)
        self._note(f"saved to {path}")

    def _load(self, name: str) -> None:
        path = _file(name, where="/load")
        self._dialogue.load(path)
        self._note(f"{path}: {_count(len(self._dialogue.turns), 'turn')}")

    def _complain(self, fault: AppError) -> None:
        self._console.print(f"error: {fault}", style="red", markup=False, highlight=False)

    def _note(self, text: str) -> None:
        self._console.print(text, style="dim", markup=False, highlight=False)


class _Tail:
    """The end of a text that may be higher than the screen, with a status line below: what a live display shows."""

    def __init__(self, body: RenderableType, status: str) -> None:
        self._body = body
        self._status = status

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._body, options, pad=False)
        for line in lines[-max(console.height - 3, 1) :]:
            yield from line
            yield Segment.line()
        yield Text(self._status, style="dim", no_wrap=True, overflow="ellipsis")


def _file(name: str, *, where: str) -> Path:
    if not name:
        raise ConfigError("a file name is missing", where=where, remedy=f"such as {where} talk.jsonl")
    return home_expanded(Path(name), where=where)


def _layout(texts: Sequence[str], titles: Sequence[str]) -> RenderableType:
    """One answer as Markdown, or several side by side under their titles."""
    if not titles:
        return Group(Markdown(texts[0]), "")
    table = Table.grid(expand=True, padding=(0, 1))
    for _ in titles:
        table.add_column(ratio=1)
    table.add_row(*(Panel(Markdown(text), title=title) for text, title in zip(texts, titles, strict=True)))
    return table


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
