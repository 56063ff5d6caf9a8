"""What shows on a terminal, what is left of it with NO_COLOR, on a dumb one, in a file, and with --quiet."""

import io
import subprocess
import sys
from contextlib import redirect_stderr
from pathlib import Path

import pytest

from app.__main__ import COMMANDS, main
from app.commands.completion import command_tree
from app.terminal import is_quiet, make_table, progress_bars, quieted
from conftest import TinyCheckpoint
from support.fitting import arguments, write_csv
from support.terminal import COLOUR, MOVED, on_terminal


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "questions.csv")


def test_bars_and_colours_on_a_terminal(csv: Path, tmp_path: Path) -> None:
    status, shown = on_terminal("prepare", csv.name, "--preview", "1", cwd=tmp_path)
    assert status == 0
    assert MOVED.search(shown) and COLOUR.search(shown)
    for text in ("read and check", "find near-duplicates", "write", "left", "0:00:00"):
        assert text in shown


def test_no_color_leaves_bars_without_colours(csv: Path, tmp_path: Path) -> None:
    status, shown = on_terminal("prepare", csv.name, "--preview", "1", cwd=tmp_path, NO_COLOR="1")
    assert status == 0
    assert MOVED.search(shown) and "find near-duplicates" in shown
    assert not COLOUR.search(shown)


def test_a_dumb_terminal_gets_plain_text(csv: Path, tmp_path: Path) -> None:
    status, shown = on_terminal("prepare", csv.name, cwd=tmp_path, TERM="dumb")
    assert status == 0 and "wrote data" in shown
    assert "\x1b" not in shown and "find near-duplicates" not in shown


def test_a_file_gets_plain_text(csv: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "app", "prepare", csv.name], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "wrote data" in done.stdout and "\x1b" not in done.stdout
    assert done.stderr == ""


def test_quiet_on_a_terminal_is_one_line(csv: Path, tmp_path: Path) -> None:
    status, shown = on_terminal("prepare", csv.name, "--quiet", cwd=tmp_path)
    assert status == 0
    assert shown.startswith("wrote data: train.jsonl") and shown.count("\n") == 1


class Screen(io.StringIO):
    """A terminal in this process."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def colourful(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of a usual terminal."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "160")
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)


def shown_by(*arguments: str) -> str:
    """What a command that succeeds writes to a terminal's stderr."""
    with redirect_stderr(Screen()) as screen:
        assert main(arguments) == 0
    return screen.getvalue()


def test_all_of_a_training_shows_how_far_it_is(
    tiny: TinyCheckpoint, csv: Path, tmp_path: Path, colourful: None, capsys: pytest.CaptureFixture[str]
) -> None:
    options = arguments(tiny("smollm2"), csv, tmp_path / "run", model__family="smollm2", trainer__max_steps=2)
    shown = shown_by("fit", *options)
    for stage in ("read and check", "tokenise train", "Loading weights", "preflight", "train  ", "validate  "):
        assert stage in shown, stage
    assert "2/2" in shown and "left" in shown
    capsys.readouterr()

    for quiet in ([], ["--quiet"]):
        shown = shown_by("test", *options, *quiet)
        assert ("test  " in shown) == (not quiet)
        assert "train  " not in shown
        assert capsys.readouterr().out.startswith("test/loss ")


@pytest.mark.slow
def test_a_quiet_training_is_one_line(
    tiny: TinyCheckpoint, csv: Path, tmp_path: Path, colourful: None, capsys: pytest.CaptureFixture[str]
) -> None:
    options = arguments(tiny("smollm2"), csv, tmp_path / "run", model__family="smollm2", trainer__max_steps=2)
    assert MOVED.search(shown_by("fit", *options, "--quiet")) is None
    assert capsys.readouterr().out == f"run {tmp_path / 'run'}\n"
    assert not is_quiet(), "the next command of this process is not"


def test_a_display_in_a_display_is_the_same(colourful: None) -> None:
    with redirect_stderr(Screen()) as screen, progress_bars() as outer, progress_bars() as inner:
        assert outer is inner
        inner.update(inner.add_task("inside", total=2), completed=1)
    assert "inside" in screen.getvalue() and "50%" in screen.getvalue()
    with redirect_stderr(Screen()) as screen, quieted(True), progress_bars() as display:
        display.add_task("unseen", total=1)
    assert screen.getvalue() == ""


def test_every_command_says_what_quiet_leaves() -> None:
    found = command_tree()._subcommands_action._name_parser_map
    assert set(found) == set(COMMANDS)
    for name, parser in found.items():
        kinds = parser._subcommands_action
        for each in kinds._name_parser_map.values() if kinds else [parser]:
            assert "What stays: " in " ".join(each.format_help().split()), name


def test_numbers_stand_at_the_right_and_nothing_is_framed() -> None:
    from rich.console import Console

    table = make_table("run", "loss", right=("loss",))
    table.add_row("first", "1.5")
    table.add_row("second", "10.25")
    console = Console(file=io.StringIO(), width=40)
    console.print(table)
    head, line, first, second = console.file.getvalue().rstrip().split("\n")
    assert set(line.strip()) == {"─"} and head.split() == ["run", "loss"]
    assert first.rstrip().endswith("1.5") and len(first.rstrip()) == len(second.rstrip())
