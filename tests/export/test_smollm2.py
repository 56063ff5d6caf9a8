"""The small real model, with an adapter on all layers, through merge, GGUF and llama.cpp."""

import json
from pathlib import Path

import pytest

from app.__main__ import main
from app.data.records import Message
from app.data.tokenize import encode
from app.export.gguf_file import write_gguf
from app.export.ollama import go_template
from app.export.target import publish
from app.export.tuned import open_tuned
from app.generate.engine import Engine
from app.generate.sampling import Sampling
from app.generate.session import open_run
from export.conftest import write_run
from export.test_ollama import ollama_data
from support.gotemplate import render_go

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
    names = sorted(path.name for path in (run / "export" / "gguf").iterdir())
    assert names == [f"SmolLM2-135M-{quant}.gguf" for quant in ("F16", "F32", "Q4_K_M")]


def test_chat_llama_cpp_and_the_ollama_template_answer_the_same(smollm2: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    from app.export.runtime import LlamaCpp

    run = tmp_path / "tuned"
    write_run(run, smollm2, "smollm2", quantization="nf4", strength=0.001)
    tuned = open_tuned(run, exact=True)
    chat, file = open_run(run), tmp_path / "model.gguf"
    write_gguf(tuned, file, quant="f16", advance=lambda amount: None)
    publish(file)
    stops = chat.tokenizer.convert_tokens_to_ids(list(chat.family.stop_tokens))
    template = go_template(chat.family.chat, engine_adds_bos=chat.family.gguf.add_bos)
    with LlamaCpp(file, context=256) as model:
        # Short: chat computes in bfloat16, and further on two continuations are nearly equally probable.
        for question in ("What is the capital of France?", "Write the numbers from one to five."):
            asked = [Message(role="user", content=question)]
            ids = encode(asked, chat.tokenizer, chat.family, answer_next=True).input_ids
            (said,) = Engine(chat, slots=1, context=256).generate([list(ids)], Sampling(max_tokens=6))
            (text,) = render_go([(template, ollama_data(asked, chat.family.chat))])
            assert model.encode(text) == list(ids)
            assert len(said.text) > 5 and model.greedy(model.encode(text), tokens=6, stops=stops) == said.text
