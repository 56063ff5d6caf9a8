import codecs
import io
import json
import os
import pty
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from app.commands import chat_terminal
from app.commands.chat import main
from app.commands.chat_input import parse_parameter, read_input
from app.commands.chat_terminal import Terminal
from app.data.records import Message
from app.errors import ConfigError, DataError
from app.generate.engine import Engine
from app.generate.request import Request
from app.generate.sampling import Sampling
from support.opening import open_float32

Tiny = Callable[[str], Path]
Typed = Callable[..., str]


@pytest.fixture
def base(tiny: Tiny) -> list[str]:
    return ["--base", str(tiny("smollm2")), "--family", "smollm2", "--context", "256", "--device", "cpu"]


def test_one_question_is_answered_and_nothing_else_is_printed(
    base: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    options = [*base, "--prompt", "Why?", "--max_tokens", "12", "--seed", "4"]
    assert main(options) == 0
    plain = capfd.readouterr()
    assert main([*options, "--json", "true"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert plain.out == found["text"] + "\n"
    assert (found["tokens"], found["finish_reason"], found["seed"]) == (12, "length", 4)
    assert found["prompt_tokens"] > 10
    assert "token_ids" not in found
    assert plain.err == ""


@pytest.mark.parametrize("flags", [[], ["--prompt", "-"]])
def test_the_question_may_come_from_standard_input(
    base: list[str], flags: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Why?\n"))
    assert main([*base, *flags, "--json", "--max_tokens", "3", "--cache_bits", "8"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prompt", "x"], "either a run or a base"),
        (["--run", "a", "--base", "b", "--prompt", "x"], "either a run or a base"),
        (["--base", "b", "--prompt", "x"], "--family"),
        (["--run", "nowhere", "--prompt", "x"], "not a run directory"),
        (["--base", "b", "--family", "smolm2", "--prompt", "x"], "did you mean 'smollm2'"),
        (["--run", "nowhere", "--prompt", "  "], "question is empty"),
        (["--run", "nowhere", "--prompt", "x", "--temperature", "-1"], "temperature is -1"),
        (["--run", "nowhere", "--prompt", "\udcff hi"], "not UTF-8\n  where:  --prompt"),
        (["--run", "nowhere", "--prompt", "hi", "--system", "\udcff"], "not UTF-8\n  where:  --system"),
    ],
)
def test_faults_are_one_message_and_status_2(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(options) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "remedy:" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])  # Python's for a UTF-8 locale, and for none
def test_a_piped_question_that_is_not_utf_8_is_one_message(
    errors: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9 ?"), encoding="utf-8", errors=errors))
    assert main(["--run", "nowhere", "--prompt", "-"]) == 2
    assert "not UTF-8\n  where:  standard input" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_reader_that_leaves_ends_the_answer_without_a_word(
    flags: list[str], base: list[str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        assert main([*base, "--prompt", "Why?", "--max_tokens", "12", *flags]) == 141
        gone.flush()  # as the interpreter does at its end
    assert capfd.readouterr().err == ""


def test_a_prompt_that_is_too_long_says_so(base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*base, "--prompt", "word " * 600]) == 2
    assert "context of 256" in capsys.readouterr().err


def test_parameters_are_typed_and_named() -> None:
    assert parse_parameter("temperature=0.2") == ("temperature", 0.2)
    assert parse_parameter("top_k=5") == ("top_k", 5)
    assert parse_parameter("seed=none") == ("seed", None)
    assert parse_parameter('stop=["a", "b"]') == ("stop", ("a", "b"))
    for text in ("heat=1", "top_k=1.5", "top_k=", "temperature=warm", "top_p=true", "stop=END", "=1", "logprobs=3"):
        with pytest.raises(ConfigError):
            parse_parameter(text)


@pytest.fixture
def typed(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Typed]:
    """``typed("Why?", "/undo")``: what a whole conversation with these lines shows, on a tiny model with adapter."""
    session = open_float32(tiny("smollm2"), "smollm2", alpha=16)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*lines: str, context: int = 256) -> str:
        waiting = iter(lines)

        def answer_prompt(_: str) -> str:
            try:
                return next(waiting)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("builtins.input", answer_prompt)
        engine = Engine(session, slots=1, context=context, reuse=True)
        sampling = Sampling(temperature=0.8, seed=1, max_tokens=8)
        assert Terminal(session, engine, sampling, system="", history=tmp_path / "history").run() == 0
        return capsys.readouterr().out

    yield run


def test_the_conversation_goes_on_and_can_be_taken_back(typed: Typed, tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    shown = typed("Why?", "And how?", f"/save {path}", "/undo", "/retry", "/reset", "/undo", f"/load {path}", "/exit")
    record = json.loads(path.read_text(encoding="utf-8"))
    assert [m["role"] for m in record["messages"]] == ["user", "assistant"] * 2
    assert "took back: And how?" in shown
    assert shown.count("8 tokens · ") == 3
    assert "there is no turn to take back" in shown
    assert "2 turns" in shown


def test_options_and_the_system_text_can_be_changed(typed: Typed) -> None:
    shown = typed(
        "/params temperature=0 max_tokens=3", "Why?", "/params top_p=7", "/system Be brief.", "/system", "/xyz"
    )
    assert "temperature=0 " in shown
    assert "3 tokens · " in shown
    assert "top_p is 7" in shown
    assert "system: Be brief." in shown
    assert "there is no command /xyz" in shown


def test_compare_shows_base_and_tuned_and_leaves_the_conversation_alone(typed: Typed, tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    shown = typed("/compare", "Why?", "/compare", "/compare How?", f"/save {path}")
    assert "there is no question to compare" in shown
    assert shown.count(" base ") == shown.count(" tuned ") == 2
    assert len(json.loads(path.read_text(encoding="utf-8"))["messages"]) == 2


def test_a_line_that_is_not_utf_8_is_refused_and_the_chat_goes_on(
    typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, count = chat_terminal.read_input, 0

    def damaged() -> str:
        nonlocal count
        count += 1
        return b"caf\xe9 ?".decode() if count == 1 else "caf\udce9 ?" if count == 2 else read()

    monkeypatch.setattr(chat_terminal, "read_input", damaged)
    shown = typed("Why?")
    assert shown.count("the text is not UTF-8") == 2
    assert shown.count("8 tokens · ") == 1


def test_a_home_folder_that_nobody_knows_does_not_end_the_chat(typed: Typed, tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    shown = typed("Why?", "/save ~nobody9/x.jsonl", "/load ~nobody9/x.jsonl", f"/save {path}")
    assert shown.count("the home folder in ~nobody9/x.jsonl is not known") == 2
    assert "where:  /save" in shown and "where:  /load" in shown
    assert len(json.loads(path.read_text(encoding="utf-8"))["messages"]) == 2


def test_a_history_in_no_known_home_folder_is_said_before_anything_is_loaded(
    base: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    assert main([*base, "--history", "~nobody9/lines"]) == 2
    assert "the home folder in ~nobody9/lines is not known\n  where:  --history" in capsys.readouterr().err


def test_a_full_context_drops_the_oldest_turns_with_a_notice(typed: Typed) -> None:
    shown = typed("Why is it so?", "And then what?", "And after that?", "x " * 300, "Well?", context=70)
    assert "the context of 70 tokens is full" in shown
    assert "leaves no room" in shown
    assert shown.count("8 tokens · ") == 4


@pytest.mark.parametrize("ending", ["stopped", "refused"])
def test_a_turn_stays_until_a_new_answer_takes_its_place(
    ending: str, typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / "before.jsonl", tmp_path / "after.jsonl"]
    submit, number = Engine.submit, 0

    def third_fails(*arguments: Any, **options: Any) -> Request:
        nonlocal number
        number += 1
        if number == 3 and ending == "refused":
            raise DataError("no", remedy="none")
        request = submit(*arguments, **options)
        if number == 3:
            request.cancel()  # ctrl-C before the first word
        return request

    monkeypatch.setattr(Engine, "submit", third_fails)
    shown = typed("Why?", "How?", f"/save {paths[0]}", "/retry", f"/save {paths[1]}", "/retry")
    before, after = (json.loads(path.read_text(encoding="utf-8"))["messages"] for path in paths)
    assert before == after and len(after) == 4
    assert shown.count("8 tokens · ") == 3


def test_a_stopped_question_costs_no_turn(typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, submit = tmp_path / "talk.jsonl", Engine.submit

    def stopped_if_long(engine: Engine, messages: Sequence[Message], *arguments: Any) -> Request:
        request = submit(engine, messages, *arguments)
        if len(messages[-1].content) > 50:
            request.cancel()
        return request

    monkeypatch.setattr(Engine, "submit", stopped_if_long)
    shown = typed("Why is it so?", "x " * 40, f"/save {path}", context=100)
    assert "the context of 100 tokens is full" in shown
    assert json.loads(path.read_text(encoding="utf-8"))["messages"][0]["content"] == "Why is it so?"


def test_compare_leaves_out_the_oldest_turns_where_asking_would(typed: Typed, tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    shown = typed("Why is it so?", "/compare And then what?", f"/save {path}", context=70)
    assert "the context of 70 tokens is full" in shown
    assert shown.count(" base ") == shown.count(" tuned ") == 1
    assert len(json.loads(path.read_text(encoding="utf-8"))["messages"]) == 2


def test_input_may_have_several_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter(["one \\", "two", '"""', "a", "", "b", '"""'])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    assert read_input() == "one \ntwo"
    assert read_input() == "a\n\nb"


@pytest.mark.slow
def test_in_a_real_terminal_ctrl_c_stops_the_answer_and_not_the_chat(base: list[str], tmp_path: Path) -> None:
    history = tmp_path / "history"
    options = [*base, "--history", str(history), "--max_tokens", "5000", "--context", "8000", "--temperature", "0"]
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-m", "app", "chat", *options])
    seen = ""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a read may end inside a character

    def until(words: str, press_again: bytes = b"") -> None:
        nonlocal seen
        end, again = time.monotonic() + 120, time.monotonic() + 15
        while words not in seen:
            assert time.monotonic() < end, f"{words!r} did not come; the terminal shows:\n{seen}"
            if press_again and time.monotonic() > again:
                os.write(terminal, press_again)
                again = end
            if select.select([terminal], [], [], 1)[0]:
                seen += decoder.decode(os.read(terminal, 65536))
        seen = seen.split(words, 1)[1]

    try:
        until("/help for help")
        until("› ")
        os.write(terminal, b"Why?\n")
        until("tokens/s")  # the answer runs; greedy, this random model never ends it by itself
        os.write(terminal, b"\x03")
        until("stopped")
        until("› ")
        os.write(terminal, b"/undo\n")
        until("took back: Why?")
        until("› ")
        os.write(terminal, b"\x03")
        # Python hears of a signal that comes after readline's prompt and before its wait at the next key only.
        until("ctrl-C again", press_again=b"\x03")
        until("› ")
        os.write(terminal, b"\x04")
        _, status = os.waitpid(child, 0)
        child = 0
        assert os.waitstatus_to_exitcode(status) == 0
    finally:
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        os.close(terminal)
    assert history.read_text(encoding="utf-8").splitlines()[-2:] == ["Why?", "/undo"]
