"""The model card: what an adapter says of itself, and that its own instructions load it."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml

from app.artifact import RunDirectory
from app.card import model_card
from conftest import TinyCheckpoint
from support.fitting import arguments, fit, write_csv


@pytest.fixture(scope="module")
def run(tiny: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    folder = tmp_path_factory.mktemp("card")
    run = RunDirectory(folder / "sums")
    fit(
        *arguments(
            tiny("smollm2"), write_csv(folder / "q.csv"), run.path, model__family="smollm2", trainer__max_steps=2
        )
    )
    return run


def parts(card: str) -> tuple[dict[str, object], str]:
    front, text = re.fullmatch(r"---\n(.*?)\n---\n(.*)", card, re.S).groups()  # type: ignore[union-attr]
    return yaml.safe_load(front), text


def test_every_adapter_of_a_run_has_one_with_its_result(run: RunDirectory) -> None:
    result = run.read_manifest().result
    for folder in (run.adapter, run.adapter_last):
        front, text = parts((folder / "README.md").read_text())
        assert front["license"] == "apache-2.0" and front["library_name"] == "peft"
        assert "base_model" not in front  # a folder of this machine, whose path is not told
        assert str(run.path.parent) not in text and "More Information Needed" not in text
        assert f"| {result['best_val_loss']:.4g} |" in text and f"| optimizer steps | {result['steps']} |" in text
        assert re.search(r"sha256:[0-9a-f]{64} \(\d+ train", text)


def test_its_instructions_load_the_adapter(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = Path(run.read_manifest().base.id)
    (code,) = re.findall(r"```python\n(.*?)```", (run.adapter / "README.md").read_text(), re.S)
    monkeypatch.chdir(run.adapter)
    names: dict[str, object] = {}
    exec(code.replace(f'"{base.name}"', repr(str(base))).replace("max_new_tokens=256", "max_new_tokens=3"), names)
    assert type(names["model"]).__name__.startswith("Peft") and capsys.readouterr().out.endswith("\n")


def test_a_base_of_the_hub_is_named_with_its_revision_and_an_evaluation_is_told(
    run: RunDirectory, tmp_path: Path
) -> None:
    manifest = run.read_manifest()
    hub = dataclasses.replace(manifest.base, id="org/base", revision="abc", quantization="none")
    evaluated = RunDirectory(tmp_path / "evaluated")
    measured = {"value": 4.25, "n": 9}
    metric = {"title": "Perplexity", "better": "lower", "base": {"value": 7.0, "n": 9}, "tuned": measured}
    evaluated.reports.mkdir(parents=True)
    (evaluated.reports / "report.json").write_text(json.dumps({"split": "test", "metrics": [metric]}))
    lora = {"r": 8, "lora_alpha": 16, "use_dora": True}
    front, text = parts(model_card(evaluated, dataclasses.replace(manifest, base=hub), lora, kind="adapter"))
    assert front["base_model"] == "org/base" and front["tags"] == ["lora", "sft"]
    assert '"org/base", revision="abc"' in text and "BitsAndBytes" not in text and "DoRA (rank 8" in text
    assert "| Perplexity | 7 | 4.25 | lower |" in text
