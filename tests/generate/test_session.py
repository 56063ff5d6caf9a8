"""Several runs over one base: each answers as when it is opened alone, and what must not be opened is not."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from app.artifact import RunDirectory
from app.errors import RunError
from app.generate.engine import Engine
from app.generate.sampling import Sampling
from app.generate.session import Session, open_base, open_run, open_runs
from conftest import TinyCheckpoint
from export.conftest import write_run

OPTIONS = Sampling(max_tokens=16)
PROMPT = list(range(40, 60))


@pytest.fixture(scope="module")
def runs(tiny: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    for name, strength in (("v1.0", 0.1), ("v1.1", 0.3)):
        write_run(folder / name, tiny("llama3"), "llama3", quantization="nf4", strength=strength)
    return {name: folder / name for name in ("v1.0", "v1.1")}


def text(session: Session) -> str:
    return Engine(session, slots=1, context=64).generate([PROMPT], OPTIONS)[0].text


def test_each_answers_as_alone(runs: dict[str, Path], tiny: TinyCheckpoint) -> None:
    alone: dict[str | None, str] = {name: text(open_run(run, device="cpu")) for name, run in runs.items()}
    alone[None] = text(open_base(str(tiny("llama3")), "llama3", device="cpu"))
    assert len(set(alone.values())) == 3
    session = open_runs(runs, device="cpu")
    assert text(session) == alone["v1.0"]  # the first one is on
    engine = Engine(session, slots=2, context=64)
    for name in ("v1.1", None, "v1.0", None, "v1.1", "v1.0"):
        session.use(name)
        assert engine.generate([PROMPT], OPTIONS)[0].text == alone[name]
    assert not any(parameter.requires_grad for parameter in session.model.parameters())


def test_runs_of_different_bases_are_refused(runs: dict[str, Path], tiny: TinyCheckpoint, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_run(other, tiny("smollm2"), "smollm2", quantization="nf4", strength=0.1)
    with pytest.raises(RunError, match=r"(?s)not trained on one base.*v1\.0: .*other: "):
        open_runs({"v1.0": runs["v1.0"], "other": other}, device="cpu")


def test_a_base_that_moved_is_found_where_it_is_said_to_be(
    runs: dict[str, Path], tiny: TinyCheckpoint, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs["v1.0"], run)
    manifest = json.loads(RunDirectory(run).manifest_path.read_text())
    manifest["base"]["id"] = "/gone/away"
    RunDirectory(run).manifest_path.write_text(json.dumps(manifest))
    assert text(open_run(run, device="cpu", base=str(tiny("llama3")))) == text(open_run(runs["v1.0"], device="cpu"))
    with pytest.raises(RunError, match="another tokenizer or template"):
        open_run(run, device="cpu", base=str(tiny_of_another_vocabulary(tiny, tmp_path)))


def tiny_of_another_vocabulary(tiny: TinyCheckpoint, tmp_path: Path) -> Path:
    """The same checkpoint, with two tokens exchanged in its tokenizer."""
    folder = tmp_path / "changed"
    shutil.copytree(tiny("llama3"), folder)
    file = folder / "tokenizer.json"
    value = json.loads(file.read_text())
    vocabulary = value["model"]["vocab"]
    vocabulary["a"], vocabulary["e"] = vocabulary["e"], vocabulary["a"]
    file.write_text(json.dumps(value))
    return folder


def test_pickled_adapters_are_not_loaded(runs: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs["v1.0"], run)
    adapter = RunDirectory(run).adapter
    (adapter / "adapter_model.safetensors").unlink()
    torch.save({}, adapter / "adapter_model.bin")
    with pytest.raises(RunError, match=r"no adapter_model\.safetensors"):
        open_run(run, device="cpu")
