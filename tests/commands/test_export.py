"""`python -m app export`: every kind end to end, its exit status, its report, what it leaves behind."""

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.__main__ import main
from app.artifact import RunDirectory
from app.export import exporter, merged, scorers
from app.export.check import Verdict
from app.export.runtime import QUANTS
from conftest import TinyCheckpoint
from export.conftest import write_run


@pytest.fixture(scope="module")
def run(tiny: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fresh_run(tiny, tmp_path_factory.mktemp("runs"))


def fresh_run(tiny: TinyCheckpoint, parent: Path) -> Path:
    """A run of which nothing has been exported."""
    folder = parent / "tuned"
    write_run(folder, tiny("llama3"), "llama3", quantization="nf4", strength=0.1)
    return folder


def report(run: Path, kind: str) -> dict[str, object]:
    value: dict[str, object] = json.loads((RunDirectory(run).reports / f"export-{kind}.json").read_text())
    return value


def left(folder: Path) -> list[str]:
    """What is in it, hidden names too: unfinished work has those."""
    return sorted(path.name for path in folder.iterdir())


def test_merged(tiny: TinyCheckpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = fresh_run(tiny, tmp_path)
    assert main(["export", "merged", "--run", str(run), "--prompts", "3"]) == 0
    out = capsys.readouterr().out
    assert "same model" in out and "500 of 500 texts" in out
    assert left(run / "export") == ["merged"]
    (verdict,) = report(run, "merged")["verdicts"]  # type: ignore[misc]
    assert verdict["passed"] and verdict["kind"] == "bfloat16" and verdict["twin"]["kl"] < 5e-3
    assert left(run / "reports") == ["export-merged.json", "export-merged.md"]


def test_quiet_leaves_paths_and_what_is_wrong(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "merged"
    assert main(["export", "merged", "--run", str(run), "--prompts", "3", "--output", str(output), "--quiet"]) == 0
    assert capsys.readouterr().out == f"wrote {output}\n"


def test_exact_is_near_the_run_itself(run: Path, tmp_path: Path) -> None:
    options = ["--exact", "true", "--dtype", "float32", "--output", str(tmp_path / "exact"), "--prompts", "3"]
    assert main(["export", "merged", "--run", str(run), *options]) == 0
    (verdict,) = report(run, "merged-exact")["verdicts"]  # type: ignore[misc]
    assert verdict["run"]["kl"] < 0.02 and verdict["twin"]["kl"] < 1e-5


def test_gguf_of_several_types_with_one_command(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("llama_cpp")
    command = ["export", "gguf", "--run", str(run), "--quant", "f32,f16,bf16,q8_0", "--prompts", "3"]
    assert main(command) == 0
    names = [f"Llama-3-205K-{quant}.gguf" for quant in ("BF16", "F16", "F32", "Q8_0")]
    assert left(run / "export" / "gguf") == names
    capsys.readouterr()
    written = {name: (run / "export" / "gguf" / name).stat().st_mtime_ns for name in names}
    assert main(command) == 0
    assert {name: (run / "export" / "gguf" / name).stat().st_mtime_ns for name in names} == written


def test_small_types_alone_leave_no_large_file(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    # Not K types: their blocks are 256 wide, wider than this model.
    options = ["--quant", "q5_0,q4_1", "--output", str(tmp_path), "--name", "Mine", "--verify", "false"]
    assert main(["export", "gguf", "--run", str(run), *options]) == 0
    assert left(tmp_path) == ["Mine-205K-Q4_1.gguf", "Mine-205K-Q5_0.gguf"]


def test_a_type_too_coarse_for_the_model_is_status_1_and_no_file(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("llama_cpp")
    options = ["--quant", "f16,q5_1", "--output", str(tmp_path), "--prompts", "3"]
    assert main(["export", "gguf", "--run", str(run), *options]) == 1  # a random model chooses among near ties
    assert "NOT THE SAME MODEL" in capsys.readouterr().out
    assert left(tmp_path) == ["Llama-3-205K-F16.gguf"]


def test_lora_gguf(run: Path) -> None:
    pytest.importorskip("llama_cpp")
    assert main(["export", "lora-gguf", "--run", str(run), "--prompts", "3"]) == 0
    assert left(run / "export" / "lora-gguf") == ["Llama-3-205K-F32-LoRA.gguf"]


def test_ollama(run: Path) -> None:
    pytest.importorskip("llama_cpp")
    assert main(["export", "ollama", "--run", str(run), "--prompts", "3"]) == 0
    assert left(run / "export" / "ollama") == ["Llama-3-205K-Q8_0.gguf", "Modelfile"]
    assert "FROM ./Llama-3-205K-Q8_0.gguf" in (run / "export" / "ollama" / "Modelfile").read_text()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[None]:
    """An empty model store of BentoML's, which otherwise keeps the first it opened in a process."""
    from bentoml._internal.configuration.containers import BentoMLContainer
    from bentoml._internal.models import ModelStore

    with BentoMLContainer.model_store.patch(ModelStore(tmp_path)):
        yield


@pytest.mark.usefixtures("store")
def test_bento(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import bentoml

    assert main(["export", "bento", "--run", str(run), "--prompts", "2"]) == 0
    (model,) = bentoml.models.list()
    assert model.tag.name == "tuned" and str(model.tag) in capsys.readouterr().out
    copy = RunDirectory(model.path)
    assert copy.read_manifest() == RunDirectory(run).read_manifest()
    (verdict,) = report(run, "bento")["verdicts"]  # type: ignore[misc]
    assert verdict["run"]["kl"] == 0 and verdict["run"]["top1"] == 1


@pytest.mark.usefixtures("store")
def test_a_model_whose_check_was_stopped_does_not_stay_in_the_store(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import bentoml

    command = ["export", "bento", "--run", str(run), "--prompts", "2"]
    assert main([*command, "--verify", "false"]) == 0
    (checked,) = bentoml.models.list()

    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(exporter, "judge", interrupted)
    assert main(command) == 130
    assert "stopped: the store is as it was" in capsys.readouterr().err
    assert [model.tag for model in bentoml.models.list()] == [checked.tag]
    assert bentoml.models.get("tuned:latest").tag == checked.tag


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["mergd", "--run", "x"], "did you mean 'merged'"),
        (["merged", "--run", "/nowhere"], "not a run directory"),
        (["merged", "--run", "RUN", "--dtype", "nf4"], "95 %"),
        (["merged", "--run", "RUN", "--shard_gb", "0", "--prompts", "-1"], "--shard_gb is 0"),
        (["gguf", "--run", "RUN", "--quant", "q4_k_x"], QUANTS[0]),
        (["gguf", "--run", "RUN", "--quant", ""], "none given"),
        (["merged", "--run", "RUN", "--data", "/nowhere.jsonl"], "no data file"),
    ],
)
def test_faults_are_one_message_and_status_2(
    arguments: list[str], said: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [str(run) if argument == "RUN" else argument for argument in arguments]
    assert main(["export", *filled]) == 2
    err = capsys.readouterr().err
    assert said in err and "remedy" in err and "Traceback" not in err


def test_too_little_disk_is_said_before_anything_is_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert main(["export", "merged", "--run", str(run), "--output", str(tmp_path / "out")]) == 2
    assert "GiB of disk" in capsys.readouterr().err
    assert left(tmp_path) == []


@pytest.mark.parametrize("kind", ["merged", "ollama", "bento", "gguf"])
@pytest.mark.usefixtures("store")
def test_after_a_failed_export_nothing_is_said_to_be_written(
    kind: str, tiny: TinyCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind in ("ollama", "gguf"):
        pytest.importorskip("llama_cpp")
    run = fresh_run(tiny, tmp_path / "runs")
    judge = exporter.judge

    def failing(*arguments: Any, **options: Any) -> Verdict:
        return dataclasses.replace(judge(*arguments, **options), passed=False)

    monkeypatch.setattr(exporter, "judge", failing)
    assert main(["export", kind, "--run", str(run), "--prompts", "1"]) == 1
    out = capsys.readouterr().out
    assert "NOT THE SAME MODEL" in out and "wrote" not in out
    assert not [path for path in (run / "export").rglob("*") if path.is_file()]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("kind", "output", "said"),
    [
        ("merged", "tuned", "holds the run"),
        ("ollama", "tuned", "holds the run"),
        ("merged", ".", "holds the run"),
        ("merged", "base", "holds the base model"),
        ("ollama", "here", "holds the folder you are in"),
        ("merged", "tuned/adapter", "adapter_config.json, which no `export merged` wrote"),
        ("merged", "other", "no README.md"),
        ("merged", "notes", "notes.txt, which no `export merged` wrote"),
        ("ollama", "project", "src, which no `export ollama` wrote"),
        ("merged", "notes/notes.txt", "is a file"),
        ("gguf", "notes/notes.txt", "is a file"),
        ("lora-gguf", "notes/notes.txt/deeper", "is a file"),
    ],
)
def test_what_no_export_wrote_stays(
    kind: str,
    output: str,
    said: str,
    tiny: TinyCheckpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = shutil.copytree(tiny("llama3"), tmp_path / "base")
    shutil.copytree(base, tmp_path / "other")
    write_run(tmp_path / "tuned", base, "llama3", quantization="nf4", strength=0.1)
    for file in ("notes/notes.txt", "project/Modelfile", "project/model.gguf", "project/src/main.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("mine")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = contents(tmp_path)
    options = ["--output", f"../{output}", "--verify", "false"]
    assert main(["export", kind, "--run", "../tuned", *options]) == 2
    err = capsys.readouterr().err
    assert said in err and "where:  --output" in err and "remedy" in err
    assert contents(tmp_path) == before


@pytest.mark.parametrize("kind", ["merged", "ollama"])
def test_an_earlier_export_is_replaced_where_a_link_leads(kind: str, run: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    command = ["export", kind, "--run", str(run), "--output", str(tmp_path / "link"), "--verify", "false"]
    assert main(command) == 0
    before = contents(tmp_path / "disk")
    assert before and main(command) == 0
    assert (tmp_path / "link").is_symlink() and contents(tmp_path / "disk") == before
    assert left(tmp_path) == ["disk", "link"]


def test_help_imports_nothing_heavy() -> None:
    script = "import sys; from app.__main__ import main; main(['export', '--help']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "lora-gguf" in done.stdout and "usage" in done.stdout


def test_ctrl_c_is_one_line_and_the_old_export_stays(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", "merged", "--run", str(run), "--output", str(tmp_path / "model"), "--verify", "false"]
    assert main(command) == 0
    before = (tmp_path / "model" / "model.safetensors").read_bytes()

    def interrupted(*arguments: object) -> memoryview:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(merged, "_produce", interrupted)
        assert main(command) == 130
    assert "goes on where it stopped" in capsys.readouterr().err
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before
    assert main(command) == 0
    assert left(tmp_path) == ["model"]


def test_a_model_too_large_for_memory_is_checked_against_the_run_alone(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scorers, "ACTIVATIONS", 1 << 60)
    assert main(["export", "merged", "--run", str(run), "--prompts", "3"]) == 0
    found = report(run, "merged")
    (verdict,) = found["verdicts"]  # type: ignore[misc]
    assert verdict["twin"] is None and found["twin"] is None
    assert "left out" in (run / "reports" / "export-merged.md").read_text()
