"""The small real model, with an adapter on all layers, through merge, GGUF and llama.cpp."""

import json
from pathlib import Path

import pytest

from app.__main__ import main
from export.conftest import write_run

pytestmark = pytest.mark.slow


def test_all_types_are_the_same_model_as_the_run(smollm2: Path, tmp_path: Path) -> None:
    """7.5e-5 (F32) and 0.044 (F16) were the largest differences of a logit seen; KL 1e-11, 4e-6, 0.07."""
    pytest.importorskip("llama_cpp")
    run = tmp_path / "tuned"
    write_run(run, smollm2, "smollm2", quantization="nf4", strength=0.02)
    assert main(["export", "gguf", "--run", str(run), "--quant", "f32,f16,q4_k_m", "--prompts", "3"]) == 0
    verdicts = {v["kind"]: v for v in json.loads((run / "reports" / "export-gguf.json").read_text())["verdicts"]}
    assert verdicts["f32"]["twin"]["logit"] < 1e-3 and verdicts["f32"]["twin"]["top1"] == 1.0
    assert verdicts["f16"]["twin"]["logit"] < 0.2 and verdicts["f16"]["twin"]["top1"] >= 0.98
    assert verdicts["f32"]["twin"]["kl"] < verdicts["f16"]["twin"]["kl"] < verdicts["q4_k_m"]["twin"]["kl"]
    assert verdicts["f32"]["run"]["answers"] == verdicts["f32"]["twin"]["answers"]
    names = sorted(path.name for path in (run / "export" / "gguf").iterdir())
    assert names == [f"SmolLM2-135M-{quant}.gguf" for quant in ("F16", "F32", "Q4_K_M")]
