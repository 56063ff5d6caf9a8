"""The completion script knows every command and option, because it is made from their parsers, and needs no Python."""

import shutil
import subprocess
from pathlib import Path

import pytest

from app.__main__ import COMMANDS
from app.commands.completion import script

TRY = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
_python_m_app python "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "app.bash"
    path.write_text(script("bash"), "utf-8")
    return path


BASH = shutil.which("bash")


@pytest.mark.slow
@pytest.mark.skipif(BASH is None, reason="no bash")
def test_bash_completes_commands_options_and_values(bash_script: Path) -> None:
    def complete(line: str) -> set[str]:
        words = [*line.split(" ")]
        done = subprocess.run(
            [str(BASH), "-c", TRY, "bash", str(bash_script), *words], capture_output=True, text=True, env={"PATH": ""}
        )
        assert done.stderr == ""
        return set(done.stdout.split())

    assert complete("python -m app ") == set(COMMANDS)
    assert complete("python -m app pla") == {"plan"}
    assert complete("python -m app fit --model.quantization ") == {"nf4", "none"}
    assert {"--model.rank", "--model.lr"} <= complete("python -m app fit --model.")
    assert {"merged", "gguf", "ollama"} <= complete("python -m app export ")
    assert complete("python -m app runs best --met") == {"--metric"}
    assert {"val_loss", "tokens_per_second"} <= complete("python -m app runs best --metric ")
    assert complete("python -m pip ins") == set()


@pytest.mark.slow
def test_zsh_gets_every_command_and_no_argument_it_cannot_take() -> None:
    made = script("zsh")
    assert all(f"_shtab_app_{command}_options" in made for command in COMMANDS)
    assert "-->" not in made and "compdef _python_m_app python" in made
